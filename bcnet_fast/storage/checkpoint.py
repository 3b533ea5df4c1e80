"""Checkpoints: one safetensors file with the weights, and the configuration in its metadata. No pickles.

What a training needs to go on is in a file of the same kind, with the number of the epoch and the like as JSON.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import Config
from ..errors import InputError
from .files import atomic_path, parse_json, require_file

FORMAT = "bcnet_fast"  # name of the metadata entry with the configuration
EXPECTED = "a bcnet_fast checkpoint (.safetensors)"
TRAINING_FORMAT = "bcnet_fast_training"  # the same in the state of a training


def save_checkpoint(path: str | os.PathLike, state: Mapping[str, Tensor], config: Config) -> None:
    """Write weights and configuration, atomically. InputError names the file when that fails, say on a full disk."""
    _save(path, state, FORMAT, config.to_dict())


def save_training_state(path: str | os.PathLike, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
    """Write what a training needs to go on, like `save_checkpoint`; `facts` is anything that JSON can hold."""
    _save(path, tensors, TRAINING_FORMAT, facts)


def read_training_state(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_training_state` wrote. InputError names a file that is missing, damaged or something else."""
    with _opened(path) as file:
        facts = (file.metadata() or {}).get(TRAINING_FORMAT)
        if facts is None:
            raise InputError(f"{path}: expected the state of a training, found other safetensors")
        # Clones, because the file is replaced while they are in use.
        return {name: file.get_tensor(name).clone() for name in file.keys()}, parse_json(facts, path)


def _save(path: str | os.PathLike, state: Mapping[str, Tensor], kind: str, facts: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # One entry only: safetensors writes several in random order, and equal weights should make equal files.
    metadata = {kind: json.dumps(facts)}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise InputError(f"{path}: could not be written: {error}") from error
        # safetensors makes files that only their owner may read. The umask cannot be read without setting it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """An open safetensors file; whatever is wrong with it becomes an InputError that names it."""
    path = require_file(path, EXPECTED)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected {EXPECTED}, found another kind of file; see python -m bcnet_fast.convert")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected {EXPECTED}, found a damaged file ({error})") from error


def read_config(path: str | os.PathLike) -> Config:
    """The configuration of a checkpoint. InputError names the file when it is missing, damaged, or something else."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if FORMAT not in metadata:
        raise InputError(f"{path}: expected {EXPECTED}, found safetensors without its configuration in the metadata")
    return Config.from_dict(parse_json(metadata[FORMAT], path, "a configuration in the metadata"), str(path))


class StoredWeights(Mapping[str, Tensor]):
    """The weights of a checkpoint, each read from the file when it is asked for, and released by who asked.

    So a network can be prepared from a file without having it in memory as a whole.
    """

    def __init__(self, path: str | os.PathLike, network: nn.Module) -> None:
        """InputError lists every missing, unknown and misshaped key, going by `network`, of which only shapes count."""
        self.path = path
        with _opened(path) as file:
            self._shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
        problems = _mismatches(network, self._shapes)
        if problems:
            problems["not finite"] = [name for name in self._shapes if not _finite(self._read(name))]
            raise InputError(_unfitting(path, problems))

    def __getitem__(self, name: str) -> Tensor:
        """InputError when the weight is not finite."""
        if name not in self._shapes:
            raise KeyError(name)
        return self._checked(name)

    def rows(self, name: str, count: int) -> Iterator[Tensor]:
        """A weight in parts of at most `count` rows, so that it need not be in memory as a whole either."""
        for begin in range(0, self._shapes[name][0], count):
            yield self._checked(name, slice(begin, begin + count))

    def _checked(self, name: str, rows: slice | None = None) -> Tensor:
        part = self._read(name, rows)
        if not _finite(part):
            raise InputError(_unfitting(self.path, {"not finite": [name]}))
        return part

    def _read(self, name: str, rows: slice | None = None) -> Tensor:
        # Opened anew each time: a tensor is a part of the mapped file, and what of that was looked at once stays in
        # memory until the last tensor of the same opening is gone.
        with _opened(self.path) as file:
            return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def rows_of(state: Mapping[str, Tensor], name: str, count: int) -> Iterable[Tensor]:
    """A weight in parts of at most `count` rows, one after the other."""
    return state.rows(name, count) if isinstance(state, StoredWeights) else state[name].split(count)


def check_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raise InputError that lists every missing, unknown and misshaped key, and any weight that is not finite."""
    problems = _mismatches(network, {name: list(tensor.shape) for name, tensor in state.items()})
    problems["not finite"] = [name for name, tensor in state.items() if not _finite(tensor)]
    if any(problems.values()):
        raise InputError(_unfitting(source, problems))


def _finite(tensor: Tensor) -> bool:
    # NaN is passed on by both, and this makes no tensor of the weights' size.
    return tensor.numel() == 0 or all(math.isfinite(bound.item()) for bound in tensor.aminmax())


def _mismatches(network: nn.Module, shapes: Mapping[str, list[int]]) -> dict[str, list[str]]:
    """By kind, the keys that do not fit; empty when all do."""
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unknown": [name for name in shapes if name not in expected],
        "misshaped": [
            f"{name} (expected {expected[name]}, found {shape})"
            for name, shape in shapes.items()
            if name in expected and expected[name] != shape
        ],
    }
    return {kind: names for kind, names in problems.items() if names}


def _unfitting(source: str | os.PathLike, problems: Mapping[str, list[str]]) -> str:
    listed = [f"{title}: {', '.join(names)}" for title, names in problems.items() if names]
    return f"{source}: weights do not fit the network; {'; '.join(listed)}"
