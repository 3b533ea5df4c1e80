"""Layouts of features on disk: list the videos at a path, and open the array of one, in its own orientation."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..storage.address import Address, Place
from ..storage.arrays import StoredArray, open_npy, open_npz
from ..storage.files import readable, require_file
from ..storage.foreign import no_features
from ..storage.pickles import bytes_of, is_plain, load_tensors
from ..storage.remote import facts_of, listed, read_whole, size_of
from ..text import count, some
from . import hdf5, parquet, webdataset
from .sidecar import Sidecar, read_sidecar, sidecar_path
from .source import ARRAY_NAMES, ReadLimits, Source


def find_source(path: Place, limits: ReadLimits) -> Source:
    """Find the layout of `path`; files of single arrays stay closed. InputError: unknown layout, repeated video.

    An address with the suffix of a file is taken for a file, any other for a folder.
    """
    if isinstance(path, Address):
        is_folder = path.whole.endswith("/") or not (path.suffix.lower() in _FILES or webdataset.is_tar(path.name))
    elif not path.exists():
        raise InputError(f"{path} does not exist, expected a file or folder of features")
    else:
        is_folder = path.is_dir()
    return _find_in_folder(path, limits) if is_folder else _find_file(path, limits)


def _find_file(path: Place, limits: ReadLimits) -> Source:
    suffix = path.suffix.lower()
    if suffix in hdf5.SUFFIXES or (suffix not in _READERS and hdf5.is_hdf5(path)):
        return hdf5.Hdf5(path, limits)
    if suffix in _READERS:
        facts = facts_of(path) if isinstance(path, Address) else None
        return _Files(path.parent, {path.stem: path.name}, f"{suffix} file", limits, {path.name: facts})
    if suffix in parquet.SUFFIXES:
        return parquet.ParquetRows([path], "Parquet file", limits)
    if webdataset.is_tar(path.name):
        return webdataset.Tars([path], "tar", limits)
    raise InputError(f"{path} has suffix {path.suffix!r}, expected {_KINDS}{no_features(path)}")


def _find_in_folder(path: Place, limits: ReadLimits) -> Source:
    # Everything named like a feature file is listed: broken links, folders and pipes become failures of their videos
    # instead of being dropped. Names stay text, because a Path for each takes ten times the memory.
    facts: dict[str, tuple[int, int] | None] = {}
    if isinstance(path, Address):
        facts = dict(listed(path))
        names = sorted(name for name in facts if not name.startswith("."))
        if not names:
            raise InputError(f"{path} does not exist or has no file, expected a file or folder of features")
    else:
        with readable(path, "a folder of features"), os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    if hdf5.is_two_stream(names):
        return hdf5.TwoStream(path, {name: _inside(path, name, facts) for name in names}, limits)
    # Other files may lie beside arrays, but not the other way round. Arrays may be of several kinds: a stray one fails
    # alone.
    for suffixes in (_ARRAYS, hdf5.SUFFIXES):
        videos: dict[str, str] = {}
        kinds: set[str] = set()
        for name in names:
            video, suffix = os.path.splitext(name)
            if suffix.lower() not in suffixes:
                continue
            if video in videos:
                raise InputError(f"{path} has {videos[video]} and {name}, expected one file per video")
            videos[video] = name
            kinds.add(suffix.lower())
        if videos:
            return _Files(path, videos, f"folder of {' and '.join(sorted(kinds))} files", limits, facts)
    rows = [name for name in names if name.lower().endswith(parquet.SUFFIXES)]
    tars = [name for name in names if webdataset.is_tar(name)]
    if rows and tars:
        raise InputError(f"{path} has {rows[0]} and {tars[0]}, expected one kind")
    if rows:
        return parquet.ParquetRows([_inside(path, name, facts) for name in rows], "folder of Parquet files", limits)
    if tars:
        return webdataset.Tars([_inside(path, name, facts) for name in tars], "folder of tars", limits)
    there = "" if isinstance(path, Address) else _what_is_there([path / name for name in names])
    raise InputError(f"{path} has no file of features, expected {_KINDS}{there}")


def _inside(folder: Place, name: str, facts: Mapping[str, tuple[int, int] | None]) -> Place:
    place = folder / name
    if isinstance(place, Address):
        place.facts = facts.get(name)
    return place


def _what_is_there(entries: list[Path]) -> str:
    """A hint at what a folder without features holds: an archive, files of another kind, or folders."""
    files = [entry for entry in entries if entry.is_file()]
    if files:
        return no_features(files[0]) or f"; it has {count(len(files), 'file')} of other kinds, such as {files[0].name}"
    return f"; it has {count(len(entries), 'folder')}, such as {entries[0].name}: give one of them" if entries else ""


class _Files(Source):
    """A file for each video. facts: sizes and versions of the files of another storage, by their names."""

    def __init__(
        self,
        folder: Place,
        videos: dict[str, str],
        kind: str,
        limits: ReadLimits,
        facts: Mapping[str, tuple[int, int] | None],
    ) -> None:
        self.folder = folder
        self.videos = videos
        self.kind = kind
        self.limits = limits
        self._facts = facts
        self._sidecars: dict[str, Sidecar | None] = {}

    def _suffix(self, name: str) -> str:
        return os.path.splitext(self.videos[name])[1].lower()

    def expected_of(self, name: str) -> str:
        return _EXPECTED[self._suffix(name)]

    def where(self, name: str) -> str:
        return str(self._file(name))

    def _file(self, name: str) -> Place:
        return _inside(self.folder, self.videos[name], self._facts)

    def files(self, name: str) -> list[Place]:
        return [self._file(name)]

    def sidecar(self, name: str) -> Sidecar | None:
        if name not in self._sidecars:
            path = sidecar_path(self._file(name))
            known = not isinstance(path, Address) or path.name in self._facts
            self._sidecars[name] = read_sidecar(path) if known else None
        return self._sidecars[name]

    def open(self, name: str) -> Any:
        path = self._file(name)
        return _READERS[self._suffix(name)](
            path if isinstance(path, Address) else require_file(path, self.expected_of(name)), self.limits
        )


def _whole(path: Address, limits: ReadLimits) -> IO[bytes]:
    """Read a file of another storage into memory. The limit allows for float64 and for a header."""
    return io.BytesIO(read_whole(path, 2 * limits.max_bytes + (1 << 20), "--max-video-gib"))


def _read_npy(path: Place, limits: ReadLimits) -> Any:
    if isinstance(path, Address):
        content = _whole(path, limits).read()
        return StoredArray(lambda: io.BytesIO(content))
    return open_npy(path)


def _read_npz(path: Place, limits: ReadLimits) -> Any:
    arrays = open_npz(_whole(path, limits) if isinstance(path, Address) else path)
    return arrays[_only_array(list(arrays), path)]()


def _read_csv(path: Place, limits: ReadLimits) -> np.ndarray:
    # A number of 4 bytes takes at least 2 bytes of text.
    size = size_of(path)
    if 2 * size > limits.max_bytes:
        raise InputError(
            f"{path} has {size / 2**30:.3g} GiB of text, expected at most half of "
            f"{limits.max_video_gib:g} GiB (--max-video-gib)"
        )
    raw = _whole(path, limits) if isinstance(path, Address) else open(path, "rb")
    with io.TextIOWrapper(raw, encoding="utf-8-sig") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on files without rows, which are an error below
        header = _is_header(file.readline())
        file.seek(0)
        array = np.loadtxt(file, np.float32, delimiter=",", comments=None, skiprows=int(header), ndmin=2)
    if array.size == 0:
        raise InputError(f"{path} has no row of numbers, expected {_EXPECTED['.csv']}")
    return array


def _read_pt(path: Place, limits: ReadLimits) -> np.ndarray:
    file = _whole(path, limits) if isinstance(path, Address) else None
    content = load_tensors(path, limits.max_bytes, "--max-video-gib", file)
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


def _read_hdf5(path: Place, limits: ReadLimits) -> np.ndarray:
    def only(names: list[str]) -> str:
        try:
            return _only_array(names, path)
        except InputError as error:
            raise InputError(f"{error}; an archive of several videos is read when its own path is given") from None

    return hdf5.read_only_dataset(path, limits, only)


def _only_array(names: Sequence[str], path: Place) -> str:
    """The only name, or the one in ARRAY_NAMES."""
    chosen = names if len(names) == 1 else [name for name in names if name in ARRAY_NAMES]
    if len(chosen) != 1:
        raise InputError(
            f"{path} has the arrays {some(names) or 'none'}, expected one, or one named {' or '.join(ARRAY_NAMES)}"
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


_READERS: dict[str, Callable[[Place, ReadLimits], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".pt": _read_pt,
    **dict.fromkeys(hdf5.SUFFIXES, _read_hdf5),
}
_ARRAYS = tuple(suffix for suffix in _READERS if suffix not in hdf5.SUFFIXES)
_FILES = (*_READERS, *parquet.SUFFIXES)
_EXPECTED = {
    ".npy": "a .npy array of numbers",
    ".npz": "a .npz file with an array of numbers",
    ".csv": "a .csv file of numbers with or without a header",
    ".pt": "a .pt file with tensors only; pickled code is never loaded",
    **dict.fromkeys(hdf5.SUFFIXES, "an HDF5 file with the features of one video"),
}
_KINDS = f"{', '.join(_ARRAYS)}, .h5, .parquet or .tar"
