"""Layouts of features on disk: list the videos at a path, and open the array of one, in its own orientation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..storage.arrays import open_npy, open_npz
from ..storage.files import readable, require_file
from ..storage.foreign import no_features
from ..storage.pickles import bytes_of, is_plain, load_tensors
from ..text import count
from . import hdf5
from .sidecar import Sidecar, read_sidecar, sidecar_path
from .source import ARRAY_NAMES, ReadLimits, Source


def find_source(path: Path, limits: ReadLimits) -> Source:
    """Find the layout of `path`; files of single arrays stay closed. InputError: unknown layout, repeated video."""
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a file or folder of features")
    if not path.is_dir():
        if path.suffix.lower() in _READERS:
            suffix = path.suffix.lower()
            return _Files(path.parent, {path.stem: path.name}, suffix, f"{suffix} file", limits)
        if path.suffix.lower() in hdf5.SUFFIXES or hdf5.is_hdf5(path):
            return hdf5.Hdf5(path, limits)
        raise InputError(f"{path} has suffix {path.suffix!r}, expected {_KINDS} or .h5{no_features(path)}")
    # Whatever is named like a file of features is listed: links to nothing, folders and pipes are failures of their
    # own videos, and not dropped. Names stay text: a path for each takes ten times the memory.
    with readable(path, "a folder of features"), os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    if hdf5.is_two_stream(names):
        return hdf5.TwoStream(path, set(names), limits)
    videos: dict[str, str] = {}
    suffixes: set[str] = set()
    for name in names:
        video, suffix = os.path.splitext(name)
        if suffix.lower() not in _READERS:
            continue
        if video in videos:
            raise InputError(f"{path} has {videos[video]} and {name}, expected one file per video")
        videos[video] = name
        suffixes.add(suffix.lower())
    if not suffixes:
        there = _what_is_there([path / name for name in names])
        raise InputError(f"{path} has no file of features, expected {_KINDS}{there}")
    if len(suffixes) > 1:
        raise InputError(f"{path} has {' and '.join(sorted(suffixes))} files, expected one kind")
    (suffix,) = suffixes
    return _Files(path, videos, suffix, f"folder of {suffix} files", limits)


def _what_is_there(entries: list[Path]) -> str:
    """A hint at what a folder without features holds: an archive, files of another kind, or folders."""
    archive = next((entry.name for entry in entries if entry.suffix.lower() in hdf5.SUFFIXES), None)
    if archive:
        return f"; for an HDF5 archive, give the file itself, such as {archive}"
    files = [entry for entry in entries if entry.is_file()]
    if files:
        return no_features(files[0]) or f"; it has {count(len(files), 'file')} of other kinds, such as {files[0].name}"
    return f"; it has {count(len(entries), 'folder')}, such as {entries[0].name}: give one of them" if entries else ""


class _Files(Source):
    def __init__(self, folder: Path, videos: dict[str, str], suffix: str, kind: str, limits: ReadLimits) -> None:
        self.folder = folder
        self.videos = videos
        self.kind = kind
        self.suffix = suffix
        self.expected = _EXPECTED[suffix]
        self.limits = limits
        self._sidecars: dict[str, Sidecar | None] = {}

    def where(self, name: str) -> str:
        return str(self.file(name))

    def file(self, name: str) -> Path:
        return self.folder / self.videos[name]

    def sidecar(self, name: str) -> Sidecar | None:
        if name not in self._sidecars:
            self._sidecars[name] = read_sidecar(sidecar_path(self.file(name)))
        return self._sidecars[name]

    def open(self, name: str) -> Any:
        return _READERS[self.suffix](require_file(self.file(name), self.expected), self.limits)


def _read_npy(path: Path, limits: ReadLimits) -> Any:
    return open_npy(path)


def _read_npz(path: Path, limits: ReadLimits) -> Any:
    arrays = open_npz(path)
    return arrays[_only_array(list(arrays), path)]()


def _read_csv(path: Path, limits: ReadLimits) -> np.ndarray:
    # A number of 4 bytes takes at least 2 bytes of text.
    if 2 * path.stat().st_size > limits.max_bytes:
        raise InputError(
            f"{path} has {path.stat().st_size / 2**30:.3g} GiB of text, expected at most half of "
            f"{limits.max_video_gib:g} GiB (--max-video-gib)"
        )
    with open(path, encoding="utf-8-sig") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about a file without rows, an error below
        header = _is_header(file.readline())
        file.seek(0)
        array = np.loadtxt(file, np.float32, delimiter=",", comments=None, skiprows=int(header), ndmin=2)
    if array.size == 0:
        raise InputError(f"{path} has no row of numbers, expected {_EXPECTED['.csv']}")
    return array


def _read_pt(path: Path, limits: ReadLimits) -> np.ndarray:
    content = load_tensors(path, limits.max_bytes, "--max-video-gib")
    if isinstance(content, dict):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        content = tensors[_only_array(list(tensors), path)]
    if not is_plain(content):
        found = f"{content.layout} on {content.device}" if type(content) is Tensor else type(content).__name__
        raise InputError(f"{path} has a {found}, expected a dense tensor or a dict with one")
    # An expanded tensor is checked before it is copied.
    limits.require(bytes_of(content), path, content.shape)
    if content.is_floating_point() and content.dtype not in (torch.float16, torch.float32, torch.float64):
        content = content.float()  # NumPy has no bfloat16
    return content.detach().resolve_neg().numpy()


def _only_array(names: Sequence[str], path: Path) -> str:
    """The only name, or the one in ARRAY_NAMES."""
    chosen = names if len(names) == 1 else [name for name in names if name in ARRAY_NAMES]
    if len(chosen) != 1:
        raise InputError(
            f"{path} has the arrays {', '.join(names) or 'none'}, expected one, or one named {' or '.join(ARRAY_NAMES)}"
        )
    return chosen[0]


def _is_header(line: str) -> bool:
    """Whether a line has no number, or the numbers 0, 1, 2, ... that pandas writes for unnamed columns."""
    cells = [cell.strip() for cell in line.split(",")]
    return not any(map(_is_number, cells)) or cells == [str(column) for column in range(len(cells))]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[Path, ReadLimits], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".pt": _read_pt,
}
_EXPECTED = {
    ".npy": "a .npy array of numbers",
    ".npz": "a .npz file with an array of numbers",
    ".csv": "a .csv file of numbers with or without a header",
    ".pt": "a .pt file with tensors only; pickled code is never loaded",
}
_KINDS = ", ".join(_READERS)
