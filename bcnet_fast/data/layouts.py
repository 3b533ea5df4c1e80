"""How features lie on disk: what a path holds, and opening the stored array of one video, whatever its orientation."""

from __future__ import annotations

import abc
import contextlib
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError
from ..storage.files import require_file

# Imported by the functions that need it, so that all other layouts work where it is not installed.
if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".h5", ".hdf5")
ARRAY_NAMES = ("feats", "features")  # of the feature array where a file or an HDF5 group holds several arrays
STREAMS = ("flow", "rgb")  # in the order in which the public THUMOS14 codes concatenate them
SUBSETS = ("val", "test")
TWO_STREAM_EVERY = 5


def find_source(path: Path) -> Source:
    """The layout of `path`. Raises InputError when it is none, or names a video twice; opens no file of one array."""
    if not path.exists():
        raise InputError(f"{path}: expected a folder or file of features, found nothing there")
    if not path.is_dir():
        if path.suffix.lower() in _READERS:
            return _Files({path.stem: path}, f"{path.suffix.lower()} file")
        if path.suffix.lower() in HDF5_SUFFIXES or _is_hdf5(path):
            return _Hdf5(path)
        raise InputError(f"{path}: expected a file of the kind {_KINDS} or .h5, found {path.suffix or 'no suffix'!r}")
    try:
        files = [Path(entry) for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(unreadable(path, "a folder of features", error)) from error
    names = {file.name for file in files}
    if names & {f"{stream}_{subset}.h5" for stream in STREAMS for subset in SUBSETS}:
        return _TwoStream(path, names)
    files = [file for file in files if file.suffix.lower() in _READERS]
    suffixes = sorted({file.suffix.lower() for file in files})
    if not suffixes:
        hint = "; an HDF5 archive is given by its file name" if any(n.endswith(HDF5_SUFFIXES) for n in names) else ""
        raise InputError(f"{path}: expected files of the kind {_KINDS}, found none among {len(names)} files{hint}")
    videos: dict[str, Path] = {}
    for file in sorted(files):
        if file.stem in videos:
            raise InputError(
                f"{path}: expected one file for each video, found {videos[file.stem].name} and {file.name}"
            )
        videos[file.stem] = file
    if len(suffixes) > 1:
        raise InputError(f"{path}: expected files of one kind, found {' and '.join(suffixes)}")
    return _Files(videos, f"folder of {suffixes[0]} files")


def _is_hdf5(path: Path) -> bool:
    """Whether the signature of HDF5 is where its format allows it: at byte 0, 512, 1024, 2048 and so on."""
    signature, offset = b"\x89HDF\r\n\x1a\n", 0
    if not path.is_file() or not os.access(path, os.R_OK):
        return False
    with open(path, "rb") as file:
        while len(found := file.read(len(signature))) == len(signature):
            if found == signature:
                return True
            offset = max(512, 2 * offset)
            file.seek(offset)
    return False


def _import_h5py(path: Path) -> Any:
    """h5py, which only this layout needs. InputError says how to install it."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path}: reading HDF5 needs h5py: pip install 'bcnet_fast[hdf5]'") from error
    return h5py


def unreadable(where: object, expected: str, error: Exception) -> str:
    """The one line of an InputError about a file whose own reader failed with `error`."""
    lines = str(error).strip().splitlines()
    return f"{where}: expected {expected}, found something unreadable ({lines[0] if lines else type(error).__name__})"


class Source(abc.ABC):
    """One layout: `videos` holds the names in it, `open` gives the stored array of a name."""

    kind: str
    every = 1  # rows from one snippet to the next, unless the user says otherwise
    row_stride: float | None = None  # video frames between rows, where the layout fixes that
    time_first = False  # the layout fixes [T, C]
    videos: dict[str, Any]

    @abc.abstractmethod
    def open(self, name: str) -> tuple[Any, str]:
        """An array (or anything with shape, dtype, ndim and slicing) and the words that name it in an error."""

    def close(self) -> None:  # noqa: B027
        """Files of single arrays are closed as soon as they are read."""


class _Files(Source):
    def __init__(self, videos: dict[str, Path], kind: str) -> None:
        self.videos = videos
        self.kind = kind

    def open(self, name: str) -> tuple[Any, str]:
        path = self.videos[name]
        suffix = path.suffix.lower()
        require_file(path, f"a {suffix} file of features")
        return _READERS[suffix](path), str(path)


class _Hdf5Files:
    """Open HDF5 files of this process; never shared with a forked or pickled copy."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, Path], h5py.File] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": {}}

    def get(self, path: Path) -> h5py.File:
        key = (os.getpid(), path)
        if key not in self._open:
            self._open[key] = _open_hdf5(path)
        return self._open[key]

    def close(self) -> None:
        for key in [key for key in self._open if key[0] == os.getpid()]:
            self._open.pop(key).close()


class _Hdf5(Source):
    """A dataset for each video; a group may hold the datasets of several videos, or one video's `features`."""

    kind = "HDF5 file"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = _Hdf5Files()
        self.videos: dict[str, str] = {}
        with _listing(path) as file:
            for name in file:
                if not _is_group(file, name):
                    self._add(name, name)
                    continue
                inside = list(file[name])
                own = [array for array in ARRAY_NAMES if array in inside]
                if own:
                    self._add(name, f"{name}/{own[0]}")
                for video in inside if not own else ():
                    self._add(video, f"{name}/{video}")

    def _add(self, video: str, dataset: str) -> None:
        if video in self.videos:
            raise InputError(
                f"{self.path}: expected one dataset for each video, found {self.videos[video]} and {dataset}"
            )
        self.videos[video] = dataset

    def open(self, name: str) -> tuple[Any, str]:
        return _dataset(self.files, self.path, self.videos[name]), f"{self.path}: {self.videos[name]}"

    def close(self) -> None:
        self.files.close()


class _TwoStream(Source):
    """flow_val.h5 + rgb_val.h5, flow_test.h5 + rgb_test.h5, or both pairs: one row for each video frame."""

    kind = "two-stream folder (flow and RGB, a row for each frame)"
    every = TWO_STREAM_EVERY
    row_stride = 1.0
    time_first = True

    def __init__(self, folder: Path, names: set[str]) -> None:
        self.folder = folder
        self.files = _Hdf5Files()
        self.videos: dict[str, str] = {}  # id -> subset
        for subset in SUBSETS:
            pair = [f"{stream}_{subset}.h5" for stream in STREAMS]
            present = [name for name in pair if name in names]
            if len(present) == 1:
                missing = next(name for name in pair if name not in names)
                raise InputError(f"{folder}: expected {missing} beside {present[0]}, found nothing there")
            # The union, so that a video that one stream lacks is reported and not dropped in silence.
            videos: set[str] = set()
            for name in present:
                with _listing(folder / name) as file:
                    videos.update(file)
            for video in videos:
                if video in self.videos:
                    raise InputError(f"{folder}: expected each video in one subset, found {video!r} in val and in test")
                self.videos[video] = subset

    def open(self, name: str) -> tuple[Any, str]:
        paths = [self.folder / f"{stream}_{self.videos[name]}.h5" for stream in STREAMS]
        parts = [_dataset(self.files, path, name) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            if part.ndim != 2:
                raise InputError(f"{path}: {name}: expected a [frames, channels] array, found {list(part.shape)}")
        return _SideBySide(parts), f"{paths[0]} + {paths[1].name}: {name}"

    def close(self) -> None:
        self.files.close()


class _SideBySide:
    """Arrays [T, C] of possibly unequal T joined along the channels and cut to the shortest."""

    ndim = 2

    def __init__(self, parts: list[h5py.Dataset]) -> None:
        self.parts = parts
        self.shape = (min(part.shape[0] for part in parts), sum(part.shape[1] for part in parts))
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, channels = index
        return np.concatenate([part[rows] for part in self.parts], axis=1)[:, channels]


def _open_hdf5(path: Path) -> h5py.File:
    require_file(path, "an HDF5 file of features")
    h5py = _import_h5py(path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(unreadable(path, "an HDF5 file of features", error)) from error


@contextlib.contextmanager
def _listing(path: Path) -> Iterator[h5py.File]:
    """Open a file for its names only: it is closed again before any worker is forked."""
    with _open_hdf5(path) as file:
        try:
            yield file
        except (KeyError, OSError, RuntimeError) as error:
            raise InputError(unreadable(path, "an HDF5 file of features", error)) from error


def _is_group(file: h5py.File, name: str) -> bool:
    import h5py

    try:
        return file.get(name, getclass=True) is h5py.Group
    except (KeyError, OSError, RuntimeError):
        return False  # a link to nowhere: found when it is read, and no reason to lose the other videos


def _dataset(files: _Hdf5Files, path: Path, name: str) -> h5py.Dataset:
    import h5py

    where = f"{path}: {name}"
    try:
        dataset = files.get(path)[name]
    except (KeyError, OSError, RuntimeError) as error:
        if name not in files.get(path):
            raise InputError(f"{where}: expected a dataset of this name, found none") from error
        raise InputError(unreadable(where, "a dataset of features", error)) from error
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        found = "an empty dataset" if isinstance(dataset, h5py.Dataset) else "a group"
        raise InputError(f"{where}: expected a dataset of features, found {found}")
    return dataset


def _read_npy(path: Path) -> np.ndarray:
    try:
        # Mapped, so that shape and dtype cost nothing; object arrays are refused (they would run pickled code).
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy parses the header as Python source, and a damaged one fails in any way.
        raise InputError(unreadable(path, "a .npy array of numbers", error)) from error


def _read_npz(path: Path) -> np.ndarray:
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a complete zip archive")
        with np.load(path, allow_pickle=False) as file:
            return file[_only_array(file.files, path)]
    except InputError:
        raise
    except Exception as error:  # the headers of arrays, as above, and what zip archives add
        raise InputError(unreadable(path, "a .npz file with an array of numbers", error)) from error


def _read_csv(path: Path) -> np.ndarray:
    expected = "a .csv file of numbers with or without a header row"
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = _is_header(file.readline())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a file without rows, which becomes an error below
            array = np.loadtxt(
                path, np.float32, delimiter=",", comments=None, skiprows=int(header), ndmin=2, encoding="utf-8-sig"
            )
    except (OSError, ValueError) as error:
        raise InputError(unreadable(path, expected, error)) from error
    if array.size == 0:
        raise InputError(f"{path}: expected {expected}, found no row of numbers")
    return array


def _read_pt(path: Path) -> np.ndarray:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own: a damaged file gives nearly any
        raise InputError(
            f"{path}: expected a .pt file with a tensor, found something that torch.load refuses "
            f"({type(error).__name__}; only tensors are loaded, never pickled code)"
        ) from error
    if isinstance(content, dict):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
        content = tensors[_only_array(list(tensors), path)]
    if not isinstance(content, torch.Tensor) or content.layout is not torch.strided:
        raise InputError(f"{path}: expected a dense tensor or a dict with one, found {type(content).__name__}")
    if content.is_floating_point() and content.dtype not in (torch.float16, torch.float32, torch.float64):
        content = content.float()  # NumPy has no bfloat16
    return content.detach().numpy()


def _only_array(names: list[str], path: Path) -> str:
    """The single name, or the one that is called after features."""
    chosen = names if len(names) == 1 else [name for name in names if name in ARRAY_NAMES]
    if len(chosen) != 1:
        raise InputError(
            f"{path}: expected one array, or one named {' or '.join(ARRAY_NAMES)}, found {', '.join(names) or 'none'}"
        )
    return chosen[0]


def _is_header(line: str) -> bool:
    """Names without a single number, or the column numbers 0, 1, 2, ... that pandas writes for unnamed columns."""
    cells = [cell.strip() for cell in line.split(",")]
    return not any(map(_is_number, cells)) or cells == [str(column) for column in range(len(cells))]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".pt": _read_pt,
}
_KINDS = ", ".join(_READERS)
