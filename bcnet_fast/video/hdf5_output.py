"""One HDF5 file as the output of `extract`: a data set [T, C] for each video, with its sidecar as an attribute.

Features of a video go to a folder beside the file, `features.h5.parts`, as they do without HDF5. When all videos are
read, a new file is written from the old one and the folder, brought to disk, and moved into place; the folder is then
removed. So there is an old or a new file at any time, never half of one, and a run that was killed goes on from the
folder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.hdf5 import is_elsewhere, is_hdf5, names_in, require_h5py, sidecar_of, stored_name
from ..data.sidecar import KEY, VERSION, Sidecar, read_sidecar, sidecar_path
from ..errors import InputError
from ..recipe import Recipe
from ..storage.files import readable
from ..storage.lock import Lock
from ..storage.output import atomic_path, require_writable
from ..text import brief
from .extraction import if_usable

_EXPECTED = "an HDF5 file that extract wrote, or a free name"


class Hdf5Output:
    """The file `path`, held by this run until `close`.

    parts: folder for the features of single videos until `finish`.
    stored: what is in the file, by the names of videos.

    InputError: h5py is not installed, the file is not of `extract`, cannot be written, or another run holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.parts = path, path.with_name(f"{path.name}.parts")
        self._h5py = require_h5py(path, "writing")
        self.stored: dict[str, Sidecar | None] = {}
        require_writable(path)
        require_writable(self.parts / "features.npy")
        self._lock = Lock(self.parts / ".lock", path)
        try:
            if path.exists():
                self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        if not is_hdf5(self.path):
            raise InputError(f"{self.path} is no HDF5 file, expected {_EXPECTED}")
        with readable(self.path, _EXPECTED), self._h5py.File(self.path, "r") as file:
            if KEY not in file.attrs:
                raise InputError(f"{self.path} holds data of another origin, expected {_EXPECTED}")
            for name in names_in(file):
                if is_elsewhere(file, stored_name(name)):
                    raise InputError(f"{self.path}: {brief(name)} is a link to another file, expected {_EXPECTED}")
                self.stored[name] = sidecar_of(file[stored_name(name)], f"{self.path}: {name}")
                # Left by a run that was killed between its two last steps.
                with contextlib.suppress(InputError):
                    if self.stored[name] is not None and read_sidecar(self._side(name)) == self.stored[name]:
                        self._remove(name)

    def find(self, name: str, video: Path, recipe: Recipe) -> Sidecar | None:
        """The sidecar of features of that recipe and video in the file; None: they must be extracted.

        InputError: features of another recipe or origin are there.
        """
        where = f"{self.path}: {name}"
        if name == ".":
            raise InputError(f"{video} would be the data set '.', expected another file name")
        if name not in self.stored:
            return None
        if (there := self.stored[name]) is None:
            raise InputError(f"{where} has no sidecar, expected features of extract; --overwrite replaces it")
        return if_usable(there, where, video, recipe)

    def target(self, name: str) -> Path:
        """Where the features of a video go before `finish`."""
        return self.parts / f"{name}.npy"

    def finish(self, names: Iterable[str]) -> None:
        """Bring the features of these videos from the folder into the file.

        InputError: the file cannot be written, and stays as it was.
        """
        new = list(names)
        if not new:
            return
        with atomic_path(self.path) as temporary:
            try:
                with self._h5py.File(temporary, "w") as file:
                    file.attrs[KEY] = VERSION
                    self._copy_others(file, new)
                    for name in new:
                        self._add(file, name)
            except (RuntimeError, ValueError) as error:  # of h5py, such as a full disk
                raise InputError(f"{self.path} cannot be written: {error}") from error
        for name in new:
            self._remove(name)

    def _add(self, file: Any, name: str) -> None:
        dataset = file.create_dataset(stored_name(name), data=np.load(self.target(name), mmap_mode="r"))
        side = read_sidecar(self._side(name))
        assert side is not None  # written before the features
        dataset.attrs[KEY] = json.dumps(side.to_dict(), allow_nan=False)

    def _copy_others(self, file: Any, new: Iterable[str]) -> None:
        if self.stored:
            with readable(self.path, _EXPECTED), self._h5py.File(self.path, "r") as old:
                for name in self.stored.keys() - set(new):
                    old.copy(old[stored_name(name)], file, stored_name(name))

    def close(self) -> None:
        """Let other runs have the file, and remove the folder if it is empty."""
        self._lock.release(remove=True)
        with contextlib.suppress(OSError):
            self.parts.rmdir()

    def _side(self, name: str) -> Path:
        return sidecar_path(self.target(name))

    def _remove(self, name: str) -> None:
        for path in (self.target(name), self._side(name)):
            path.unlink(missing_ok=True)
