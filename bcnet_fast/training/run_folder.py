"""The folder of a training: checkpoints, what a resumed training needs, and the log.

    best.safetensors    the checkpoint of the epoch with the highest validation AUC, or mAP
    last.safetensors    that of the last finished epoch
    state.safetensors   weights, the optimizer's moments and the log so far: what --resume continues from
    log.csv             the losses and the validation recall of every epoch
    learning_curve.png  the same as a picture, once all epochs are done
    tensorboard/        the same for TensorBoard, where it is installed

Every file is replaced as a whole, the state last. After a kill at any moment, the unfinished epoch begins again, and
its files replace those that were written before.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import Config, SecondStageConfig
from ..errors import InputError
from ..storage.checkpoint import read_training_state, save_checkpoint, save_training_state
from ..storage.files import readable
from ..storage.lock import locked_folder
from ..storage.output import atomic_text, require_apart
from ..text import brief

Row = dict[str, float]
_STATE = "state.safetensors"
# Files of a training that could also be inputs.
_FILES = ("log.csv", "last.safetensors", "best.safetensors", _STATE)


def require_usable(folder: str | os.PathLike, *, resume: bool) -> None:
    """InputError: the folder is a file, has links, or holds a training that is not to be resumed."""
    folder = Path(folder)
    # Writing a file replaces what a link leads to.
    for path in (folder / name for name in (*_FILES, "learning_curve.png")):
        if os.path.islink(path):
            raise InputError(f"{path} is a link, expected a regular file, or none")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file, expected a folder for the training")
    if not resume and any((folder / name).exists() for name in (_STATE, "best.safetensors")):
        raise InputError(f"{folder} holds a training; continue it with --resume, or choose another --output")


def require_inputs_apart(folder: str | os.PathLike, **inputs: str | os.PathLike | None) -> None:
    """InputError: the folder or a file that a training writes there is an input; for `inputs`, see `require_apart`."""
    require_apart({"--output": [folder, *(Path(folder) / name for name in _FILES)]}, **inputs)


def locked(folder: str | os.PathLike) -> AbstractContextManager[None]:
    """Keep other trainings out of the folder, see `locked_folder`."""
    return locked_folder(Path(folder), _STATE)


class Run:
    """One training in its folder; `rows` is the log, a row for each finished epoch."""

    def __init__(
        self,
        folder: str | os.PathLike,
        config: Config | SecondStageConfig,
        facts: dict[str, Any],
        *,
        figure: str = "AUC",
    ) -> None:
        """facts: everything else that decides the results, as JSON; a resumed training must have the same.
        figure: the column of the log whose highest value is the best epoch's
        """
        self.folder, self.config, self.figure = Path(folder), config, figure
        self.settings = _as_json({"config": config.to_dict(), **facts})
        self.rows: list[Row] = []
        self._board: Any = None

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def begin(self, *, resume: bool) -> dict[str, Tensor] | None:
        """Check that the folder can be used; returns the tensors to continue from, or None for a new training.

        InputError: a training is there already, or one of other settings is to be resumed.
        """
        require_usable(self.folder, resume=resume)
        state = self.folder / _STATE
        if not state.exists():
            return None
        tensors, facts = read_training_state(state)
        expected = "the state of a training with settings and a log"
        with readable(state, expected):
            before, rows = {"config": None} | facts["settings"], list(facts["rows"])
            for number, row in enumerate(rows, 1):
                if not {"epoch", "total", self.figure} <= row.keys() == rows[0].keys() or row["epoch"] != number:
                    raise InputError(f"{state} has a damaged row {number} of the log, expected {expected}")
                if not all(type(value) in (int, float) and math.isfinite(value) for value in row.values()):
                    raise InputError(f"{state} has no finite numbers in row {number} of the log, expected {expected}")
        # An older version stored fewer settings; the missing ones get their defaults.
        before["config"] = _as_json(type(self.config).from_dict(before["config"], str(state)).to_dict())
        differences = _differences(before, self.settings)
        if differences:
            raise InputError(
                f"{state} is of a training with other settings, expected the same: {'; '.join(differences)}"
            )
        self.rows = rows
        return tensors

    @property
    def best(self) -> float:
        """The highest validation figure so far, in percent."""
        return max((row[self.figure] for row in self.rows), default=float("-inf"))

    def save_last(self, weights: dict[str, Tensor]) -> Path:
        save_checkpoint(self.path("last"), weights, self.config)
        return self.path("last")

    def finish_epoch(self, row: Row, weights: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
        """Write everything of an epoch; returns whether it is the best so far."""
        better = row[self.figure] > self.best
        if better:
            save_checkpoint(self.path("best"), weights, self.config)
        rows = [*self.rows, row]
        with atomic_text(self.folder / "log.csv") as file:
            writer = csv.DictWriter(file, list(row), extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._to_tensorboard(row)
        save_training_state(self.folder / _STATE, state, {"settings": self.settings, "rows": rows})
        self.rows = rows
        return better

    def _to_tensorboard(self, row: Row) -> None:
        if self._board is None:
            self._board = _tensorboard(self.folder / "tensorboard", int(row["epoch"]))
        if self._board:
            for name, value in row.items():
                if name != "epoch":
                    self._board.add_scalar(name, value, int(row["epoch"]))
            self._board.flush()


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings))  # which turns tuples into lists


def _tensorboard(folder: Path, epoch: int) -> Any:
    """A writer that drops what an interrupted training wrote for `epoch` and later ones; False without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(
            "note: no TensorBoard log, which needs: pip install tensorboard; log.csv has the same numbers",
            file=sys.stderr,
        )
        return False
    return SummaryWriter(str(folder), purge_step=epoch)


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Settings that differ, as text; the number of epochs may change."""
    if name == "config.train.epochs" or before == now:
        return []
    if name in ("config.trained_on", "config.recipe") and before is None:  # older versions did not store it
        return []
    if name in ("windows", "proposals"):  # a digest
        return [f"{name} (of other videos, instances or times)"]
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        return [
            line
            for key in keys
            for line in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [f"{name.removeprefix('config.')} ({brief(before)}, now {brief(now)})"]
