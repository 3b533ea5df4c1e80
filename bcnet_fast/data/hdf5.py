"""Features in HDF5 files: one for all videos, one for each, or the four of the THUMOS14 two-stream layout.

Data sets that lie in other files, or are composed of others, are refused unless the user trusts the file. They can
expose any file that the process may read, and one that refers to itself ends the process inside the HDF5 library.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..storage.address import Address, Place
from ..storage.files import parse_json, readable, require_file
from ..storage.remote import RemoteFile
from .sidecar import KEY, Sidecar
from .source import ARRAY_NAMES, ReadLimits, Source

# An optional dependency, imported only by the functions that need it.
if TYPE_CHECKING:
    import h5py

SUFFIXES = (".h5", ".hdf5")
STREAMS = ("flow", "rgb")  # order of concatenation in the public THUMOS14 codes
SUBSETS = ("val", "test")
TWO_STREAM_EVERY = 5
_EXPECTED = "an HDF5 file of features"


def is_hdf5(path: Place) -> bool:
    """Whether the HDF5 signature is at an offset that the format allows: 0, 512, 1024, 2048 and so on."""
    signature, offset = b"\x89HDF\r\n\x1a\n", 0
    if isinstance(path, Address) or not path.is_file() or not os.access(path, os.R_OK):
        return False
    with readable(path, "a feature file"), open(path, "rb") as file:
        while len(found := file.read(len(signature))) == len(signature):
            if found == signature:
                return True
            offset = max(512, 2 * offset)
            file.seek(offset)
    return False


def is_two_stream(names: Iterable[str]) -> bool:
    """Whether a folder with these files has the THUMOS14 two-stream layout."""
    return bool({f"{stream}_{subset}.h5" for stream in STREAMS for subset in SUBSETS}.intersection(names))


class _Hdf5Files:
    """Open HDF5 files of this process, never shared with forked or pickled copies."""

    def __init__(self, trusted: bool) -> None:
        self.trusted = trusted
        self._open: dict[tuple[int, Place], h5py.File] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"trusted": self.trusted, "_open": {}}

    def dataset(self, path: Place, name: str) -> h5py.Dataset:
        """A data set by its name with slashes. InputError: it is not a data set, or its values are elsewhere."""
        import h5py

        key, where = (os.getpid(), path), f"{path}: {name}"
        if key not in self._open:
            self._open[key] = _open_hdf5(path)
        file, stored = self._open[key], stored_name(name)
        try:
            elsewhere = is_elsewhere(file, stored)
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{where} does not exist, expected a dataset of features") from error
        if elsewhere and not self.trusted:
            raise InputError(f"{where} is a link to another file; if you trust it, allow it (--trust-hdf5-links)")
        found = file[stored]
        if not isinstance(found, h5py.Dataset):
            raise InputError(f"{where} is a group, expected a dataset of features")
        # Checked before the shape, which a virtual data set takes from others.
        layout = found.id.get_create_plist()
        if not self.trusted and (layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count()):
            raise InputError(
                f"{where} has its values in other files or data sets; if you trust them, allow it (--trust-hdf5-links)"
            )
        if found.shape is None:
            raise InputError(f"{where} is an empty dataset, expected a dataset of features")
        return found

    def close(self) -> None:
        for key in [key for key in self._open if key[0] == os.getpid()]:
            self._open.pop(key).close()


class Hdf5(Source):
    """One dataset per video; a group contains the datasets of several videos, or the `features` of one."""

    kind = "HDF5 file"
    expected = "a dataset of features"

    def __init__(self, path: Place, limits: ReadLimits) -> None:
        self.path = path
        self._files = _Hdf5Files(limits.trust_hdf5_links)
        self.videos: dict[str, str] = {}
        self._sidecars: dict[str, Sidecar | None] = {}
        with _listing(path) as file:
            self._extracted = KEY in file.attrs
            for name in names_in(file):
                if not _is_own_group(file, name, limits.trust_hdf5_links):
                    self._add(name, name)
                    continue
                inside = names_in(file[stored_name(name)])
                own = [array for array in ARRAY_NAMES if array in inside]
                if own:
                    self._add(name, f"{name}/{own[0]}")
                for video in inside if not own else ():
                    self._add(video, f"{name}/{video}")

    def _add(self, video: str, dataset: str) -> None:
        if video in self.videos:
            raise InputError(f"{self.path} has {self.videos[video]} and {dataset}, expected one dataset per video")
        self.videos[video] = dataset

    def where(self, name: str) -> str:
        return f"{self.path}: {self.videos[name]}"

    def files(self, name: str) -> list[Place]:
        return [self.path]

    def open(self, name: str) -> h5py.Dataset:
        return self._files.dataset(self.path, self.videos[name])

    def sidecar(self, name: str) -> Sidecar | None:
        if name not in self._sidecars:
            found = None
            if self._extracted:
                with readable(self.where(name), self.expected):
                    found = sidecar_of(self.open(name), self.where(name))
            self._sidecars[name] = found
        return self._sidecars[name]

    def close(self) -> None:
        self._files.close()


def read_only_dataset(path: Place, limits: ReadLimits, choose: Callable[[list[str]], str]) -> np.ndarray:
    """The data set of a file with one video, read as a whole. choose: picks one of several names; raises InputError."""
    files = _Hdf5Files(limits.trust_hdf5_links)
    try:
        with _listing(path) as file:
            names = names_in(file)
        found = files.dataset(path, choose(names))
        values = max(math.prod(found.shape), math.prod(found.chunks or ()))
        limits.require(values * found.dtype.itemsize, path, found.shape)
        return found[()]
    finally:
        files.close()


class TwoStream(Source):
    """flow_val.h5 + rgb_val.h5, flow_test.h5 + rgb_test.h5, or both pairs, with one row per video frame."""

    kind = "two-stream folder (flow and RGB, one row per frame)"
    expected = "datasets of features"
    every = TWO_STREAM_EVERY
    row_stride = 1.0
    time_first = True

    def __init__(self, folder: Place, files: dict[str, Place], limits: ReadLimits) -> None:
        """files: paths by their names in the folder."""
        self._places = files
        self._files = _Hdf5Files(limits.trust_hdf5_links)
        self.videos: dict[str, str] = {}  # id -> subset
        for subset in SUBSETS:
            pair = [f"{stream}_{subset}.h5" for stream in STREAMS]
            present = [name for name in pair if name in files]
            if len(present) == 1:
                missing = next(name for name in pair if name not in files)
                raise InputError(f"{folder} has {present[0]} but not {missing}, expected both")
            # The union, so that a video missing in one stream is reported.
            videos: set[str] = set()
            for name in present:
                with _listing(files[name]) as file:
                    videos.update(names_in(file))
            for video in videos:
                if video in self.videos:
                    raise InputError(f"{folder}: video {video!r} is in val and test, expected one subset")
                self.videos[video] = subset

    def where(self, name: str) -> str:
        flow, rgb = self._paths(name)
        return f"{flow} + {rgb.name}: {name}"

    def files(self, name: str) -> list[Place]:
        return self._paths(name)

    def open(self, name: str) -> _SideBySide:
        paths = self._paths(name)
        parts = [self._files.dataset(path, name) for path in paths]
        for path, part in zip(paths, parts, strict=True):
            if part.ndim != 2:
                raise InputError(f"{path}: {name} has shape {list(part.shape)}, expected [frames, channels]")
        return _SideBySide(parts)

    def close(self) -> None:
        self._files.close()

    def _paths(self, name: str) -> list[Place]:
        return [self._places[f"{stream}_{self.videos[name]}.h5"] for stream in STREAMS]


class _SideBySide:
    """Arrays [T, C] concatenated along the channels and cut to the shortest T."""

    ndim = 2

    def __init__(self, parts: list[h5py.Dataset]) -> None:
        self.parts = parts
        self.shape = (min(part.shape[0] for part in parts), sum(part.shape[1] for part in parts))
        self.dtype = np.result_type(*(part.dtype for part in parts))
        chunks = [part.chunks for part in parts if part.chunks]
        # The largest extent of each axis bounds what reading a part takes into memory.
        self.chunks = tuple(map(max, *chunks, (1, self.shape[1]))) if chunks else None

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, channels = index
        return np.concatenate([part[rows] for part in self.parts], axis=1)[:, channels]


def sidecar_of(dataset: h5py.Dataset, where: str) -> Sidecar | None:
    """The sidecar of a data set, which `where` names; None without one. InputError: it is damaged."""
    text = dataset.attrs.get(KEY)
    return Sidecar.from_dict(parse_json(text, where), where) if isinstance(text, str) else None


def require_h5py(path: Place, doing: str = "reading") -> Any:
    """The library. InputError: it is not installed."""
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise InputError(f"{path}: {doing} HDF5 needs h5py: pip install 'bcnet_fast[hdf5]'") from error


def _open_hdf5(path: Place) -> h5py.File:
    if not isinstance(path, Address):
        require_file(path, _EXPECTED)
    h5py = require_h5py(path)
    with readable(path, _EXPECTED):
        return h5py.File(RemoteFile(path) if isinstance(path, Address) else path, "r")


@contextlib.contextmanager
def _listing(path: Place) -> Iterator[h5py.File]:
    """Open a file to list names; it is closed again before workers are forked."""
    with _open_hdf5(path) as file, readable(path, _EXPECTED):
        yield file


def names_in(group: Any) -> list[str]:
    """Names in a group; bytes that are not UTF-8 become surrogates, as in file names."""
    return [name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name for name in group]


def stored_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _is_own_group(file: h5py.File, name: str, trusted: bool) -> bool:
    import h5py

    stored = stored_name(name)
    try:
        if not trusted and is_elsewhere(file, stored):
            return False
        return isinstance(file[stored], h5py.Group)
    except Exception:
        return False  # a dangling link, or a damaged entry: reported when it is read, without losing the other videos


def is_elsewhere(file: h5py.File, stored: bytes) -> bool:
    """Whether a name, or the group that it is in, is a link to another file.

    KeyError or RuntimeError: the name does not exist.
    """
    from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue]

    # The methods of h5py.File do not take names that are not UTF-8.
    links = file.id.links
    group = stored.rpartition(b"/")[0]
    return any(links.get_info(name).type == h5l.TYPE_EXTERNAL for name in (group, stored) if name)
