"""Boundary probabilities of videos, one small .npz file each."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..storage.arrays import open_npz
from ..storage.files import readable, require_file
from ..storage.output import atomic_path
from .pictures import file_name

_EXPECTED = "boundary probabilities as infer --boundaries writes them: arrays times, start, end and duration"
_ARRAYS = ("times", "start", "end")
_LARGEST = 1 << 26  # bytes of a column as float64: that of a video of a day has fewer


@dataclass(frozen=True)
class Boundaries:
    """Probabilities that an action starts or ends.

    times: [T] float32, seconds, ascending.
    start, end: [T] float32, 0 to 1.
    duration_s: of the video, seconds.
    """

    times: np.ndarray
    start: np.ndarray
    end: np.ndarray
    duration_s: float


def boundary_path(folder: str | os.PathLike, video: str) -> Path:
    """The file of a video in a folder of boundary probabilities."""
    return Path(folder) / f"{file_name(video)}.npz"


def write_boundaries(folder: str | os.PathLike, video: str, found: Boundaries) -> None:
    """Write the file of one video, atomically."""
    times, start, end = (np.asarray(getattr(found, name), np.float32) for name in _ARRAYS)
    with atomic_path(boundary_path(folder, video)) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, times=times, start=start, end=end, duration=np.float64(found.duration_s))


def read_boundaries(folder: str | os.PathLike, video: str) -> Boundaries | None:
    """Read the file of one video; None if there is none. InputError: it holds something else."""
    path = boundary_path(folder, video)
    if not path.exists():
        return None
    with readable(require_file(path, _EXPECTED), _EXPECTED):
        members = open_npz(path)
        stored = {name: members[name]() for name in (*_ARRAYS, "duration")}
        for name, array in stored.items():
            if array.dtype.kind not in "fiu":
                raise ValueError(f"{name} has type {array.dtype}")
            if math.prod(array.shape) * max(array.dtype.itemsize, 8) > _LARGEST:
                raise ValueError(f"{name} has more than {_LARGEST >> 20} MiB")
        arrays = {name: array[...] for name, array in stored.items()}
        times, start, end = (np.asarray(arrays[name], np.float32) for name in _ARRAYS)
        duration = float(arrays["duration"])
        usable = times.ndim == 1 and times.shape == start.shape == end.shape
        usable = usable and all(np.isfinite(column).all() for column in (times, start, end, duration))
    if not usable or (np.diff(times) < 0).any():
        raise InputError(f"{path} has arrays that do not fit together, expected {_EXPECTED}")
    return Boundaries(times, start, end, duration)
