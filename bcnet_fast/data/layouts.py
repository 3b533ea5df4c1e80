"""Layouts of features on disk: list the videos at a path, and open the array of one, in its own orientation."""

from __future__ import annotations

import abc
import contextlib
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InputError
from ..storage.files import require_file
from ..storage.foreign import no_features
from ..text import count

# An extra: only the functions that need it import it.
if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".h5", ".hdf5")
ARRAY_NAMES = ("feats", "features")  # name of the feature array in a file or HDF5 group of several arrays
STREAMS = ("flow", "rgb")  # order of concatenation in the public THUMOS14 codes
SUBSETS = ("val", "test")
TWO_STREAM_EVERY = 5


def find_source(path: Path) -> Source:
    """Find the layout of `path`; files of single arrays stay closed. InputError: unknown layout, repeated video."""
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a file or folder of features")
    if not path.is_dir():
        if path.suffix.lower() in _READERS:
            return _Files({path.stem: path}, f"{path.suffix.lower()} file")
        if path.suffix.lower() in HDF5_SUFFIXES or _is_hdf5(path):
            return _Hdf5(path)
        raise InputError(f"{path} has suffix {path.suffix!r}, expected {_KINDS} or .h5{no_features(path)}")
    try:
        is_file = {Path(entry): entry.is_file() for entry in os.scandir(path) if not entry.name.startswith(".")}
    except OSError as error:
        raise InputError(unreadable(path, "a folder of features", error)) from error
    files = [entry for entry, regular in is_file.items() if regular]
    names = {file.name for file in files}
    if names & {f"{stream}_{subset}.h5" for stream in STREAMS for subset in SUBSETS}:
        return _TwoStream(path, names)
    files = [file for file in files if file.suffix.lower() in _READERS]
    suffixes = sorted({file.suffix.lower() for file in files})
    if not suffixes:
        raise InputError(f"{path} has no file of features, expected {_KINDS}{_what_is_there(sorted(is_file))}")
    videos: dict[str, Path] = {}
    for file in sorted(files):
        if file.stem in videos:
            raise InputError(f"{path} has {videos[file.stem].name} and {file.name}, expected one file per video")
        videos[file.stem] = file
    if len(suffixes) > 1:
        raise InputError(f"{path} has {' and '.join(suffixes)} files, expected one kind")
    return _Files(videos, f"folder of {suffixes[0]} files")


def _what_is_there(entries: list[Path]) -> str:
    """A hint at what a folder without features holds: an archive, files of another kind, or folders."""
    archive = next((entry.name for entry in entries if entry.suffix.lower() in HDF5_SUFFIXES), None)
    if archive:
        return f"; for an HDF5 archive, give the file itself, such as {archive}"
    files = [entry for entry in entries if entry.is_file()]
    if files:
        return no_features(files[0]) or f"; it has {count(len(files), 'file')} of other kinds, such as {files[0].name}"
    return f"; it has {count(len(entries), 'folder')}, such as {entries[0].name}: give one of them" if entries else ""


def _is_hdf5(path: Path) -> bool:
    """Whether the HDF5 signature is at an offset that the format allows: 0, 512, 1024, 2048 and so on."""
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
    """Import h5py, which is an extra. InputError: it is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path}: reading HDF5 needs h5py: pip install 'bcnet_fast[hdf5]'") from error
    return h5py


def unreadable(where: object, expected: str, error: Exception) -> str:
    """One-line message about a file whose reader failed with `error`."""
    lines = str(error).strip().splitlines()
    return f"{where} cannot be read ({lines[0] if lines else type(error).__name__}), expected {expected}"


class Source(abc.ABC):
    """A layout: `videos` has the names in it, `open` returns the stored array of a name."""

    kind: str
    every = 1  # default: use every N-th row
    row_stride: float | None = None  # video frames between rows, if the layout fixes it
    time_first = False  # the layout fixes [T, C]
    videos: dict[str, Any]

    @abc.abstractmethod
    def open(self, name: str) -> tuple[Any, str]:
        """Return the array (or an object with shape, dtype, ndim and slicing) and its name for errors."""

    def close(self) -> None:  # noqa: B027
        """Close open files; files of single arrays are closed as soon as they are read."""


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
    """Open HDF5 files of this process, never shared with forked or pickled copies."""

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
    """One dataset per video; a group contains the datasets of several videos, or the `features` of one."""

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
            raise InputError(f"{self.path} has {self.videos[video]} and {dataset}, expected one dataset per video")
        self.videos[video] = dataset

    def open(self, name: str) -> tuple[Any, str]:
        return _dataset(self.files, self.path, self.videos[name]), f"{self.path}: {self.videos[name]}"

    def close(self) -> None:
        self.files.close()


class _TwoStream(Source):
    """flow_val.h5 + rgb_val.h5, flow_test.h5 + rgb_test.h5, or both pairs, with one row per video frame."""

    kind = "two-stream folder (flow and RGB, one row per frame)"
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
                raise InputError(f"{folder} has {present[0]} but not {missing}, expected both")
            # The union, so that a video missing in one stream is reported.
            videos: set[str] = set()
            for name in present:
                with _listing(folder / name) as file:
                    videos.update(file)
            for video in videos:
                if video in self.videos:
                    raise InputError(f"{folder}: video {video!r} is in val and test, expected one subset")
                self.videos[video] = subset

    def open(self, name: str) -> tuple[Any, str]:
        paths = [self.folder / f"{stream}_{self.videos[name]}.h5" for stream in STREAMS]
        parts = [_dataset(self.files, path, name) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            if part.ndim != 2:
                raise InputError(f"{path}: {name} has shape {list(part.shape)}, expected [frames, channels]")
        return _SideBySide(parts), f"{paths[0]} + {paths[1].name}: {name}"

    def close(self) -> None:
        self.files.close()


class _SideBySide:
    """Arrays [T, C] concatenated along the channels and cut to the shortest T."""

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
def _listing(path: Path) -> Iterator[Mapping[str, Any]]:
    """Open a file to list names; it is closed again before workers are forked."""
    with _open_hdf5(path) as file:
        try:
            yield file
        except (KeyError, OSError, RuntimeError) as error:
            raise InputError(unreadable(path, "an HDF5 file of features", error)) from error


def _is_group(file: Any, name: str) -> bool:
    import h5py

    try:
        return file.get(name, getclass=True) is h5py.Group
    except (KeyError, OSError, RuntimeError):
        return False  # a dangling link: reported when it is read, without losing the other videos


def _dataset(files: _Hdf5Files, path: Path, name: str) -> h5py.Dataset:
    import h5py

    where = f"{path}: {name}"
    try:
        dataset = files.get(path)[name]
    except (KeyError, OSError, RuntimeError) as error:
        if name not in files.get(path):
            raise InputError(f"{where} does not exist, expected a dataset of features") from error
        raise InputError(unreadable(where, "a dataset of features", error)) from error
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        found = "an empty dataset" if isinstance(dataset, h5py.Dataset) else "a group"
        raise InputError(f"{where} is {found}, expected a dataset of features")
    return dataset


def _read_npy(path: Path) -> np.ndarray:
    try:
        # Memory-mapped, so that shape and dtype are free; object arrays fail, because they would run pickled code.
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
    expected = "a .csv file of numbers with or without a header"
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = _is_header(file.readline())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a file without rows, an error below
            array = np.loadtxt(
                path, np.float32, delimiter=",", comments=None, skiprows=int(header), ndmin=2, encoding="utf-8-sig"
            )
    except (OSError, ValueError) as error:
        raise InputError(unreadable(path, expected, error)) from error
    if array.size == 0:
        raise InputError(f"{path} has no row of numbers, expected {expected}")
    return array


def _read_pt(path: Path) -> np.ndarray:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise any exception
        raise InputError(
            f"{path}: torch.load fails ({type(error).__name__}), expected a .pt file with tensors only; "
            "pickled code is never loaded"
        ) from error
    if isinstance(content, dict):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
        content = tensors[_only_array(list(tensors), path)]
    if not isinstance(content, torch.Tensor) or content.layout is not torch.strided:
        raise InputError(f"{path} has a {type(content).__name__}, expected a dense tensor or a dict with one")
    if content.is_floating_point() and content.dtype not in (torch.float16, torch.float32, torch.float64):
        content = content.float()  # NumPy has no bfloat16
    return content.detach().numpy()


def _only_array(names: list[str], path: Path) -> str:
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


_READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".pt": _read_pt,
}
_KINDS = ", ".join(_READERS)
