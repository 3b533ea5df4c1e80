"""Feature files of many layouts as one lazy archive: an id gives a checked [T, C] float32 array, or one InputError.

Nothing is guessed: the channel axis is the one whose length is the configured width. docs/formats.md describes the
layouts. `FeatureArchive._reading` turns whatever a damaged or hostile file makes a reader raise, running out of memory
included, into the failure of that video.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from ..storage.address import Place, place_of
from ..storage.files import readable
from ..storage.remote import facts_of
from ..text import count
from .annotations import strip_activitynet_prefix
from .layouts import find_source
from .sidecar import Sidecar
from .source import ReadLimits, Source
from .workers import KILLED, end_with_parent, read_in_order

_BLOCK_ROWS = 4096  # snippets read at once, which bounds the memory for skipping rows and converting long videos


@dataclass(frozen=True, eq=False)
class FeatureSequence:
    """Features of one video, ready to be cut into windows."""

    features: np.ndarray  # [T, C] float32, C-contiguous, finite, T >= 2
    orientation: str  # of the stored array: "[T, C]" or "[C, T]"
    path: str  # file, and dataset inside it
    rows_in_file: int  # time steps of the file, of which every N-th is used
    dtype: str  # of the stored array
    note: str | None = None  # remark for the user on an ambiguity


@dataclass(frozen=True)
class StoredArray:
    """Array of one video on disk, in its own orientation."""

    shape: tuple[int, ...]
    dtype: str
    path: str


def open_features(
    path: str | os.PathLike,
    *,
    feature_dim: int | None,
    every: int | None = None,
    strip_prefix: bool = False,
    limits: ReadLimits = ReadLimits(),  # noqa: B008 (frozen)
) -> FeatureArchive:
    """Open an archive of features; reads names only.

    path: one file or a folder of files: .npy, .npz, .csv, .pt, HDF5 (in a folder, one video each), Parquet or tar; or a
        folder with the THUMOS14 two-stream files. It may be an address such as s3://bucket/folder.
    feature_dim: channels C of a row. None: only `FeatureArchive.stored` works.
    every: use every N-th row. None: 5 for the two-stream layout, else 1.
    strip_prefix: remove the ActivityNet prefix "v_" of the ids, as in its annotations and result files.
    limits: largest video, and whether HDF5 data sets may have their values in other files.

    InputError: there are no features at `path`, or two videos have the same id.
    """
    path = place_of(path)
    if feature_dim is not None and feature_dim < 1:
        raise InputError(f"feature_dim is {feature_dim}, expected at least 1")
    if every is not None and every < 1:
        raise InputError(f"--every is {every}, expected at least 1")
    source = find_source(path, limits)
    if not source.videos:
        raise InputError(f"{path}: no video in this {source.kind}")
    return FeatureArchive(path, source, feature_dim, every or source.every, strip_prefix, limits)


class FeatureArchive:
    """Features of many videos, see `open_features`. Can be pickled, and used after a fork.

    ids: names of the videos, sorted.
    kind: layout in words.
    path, feature_dim, every: see `open_features`.
    row_stride: video frames between rows of a file, if the layout fixes it, else None.
    """

    def __init__(
        self,
        path: Place,
        source: Source,
        feature_dim: int | None,
        every: int,
        strip_prefix: bool,
        limits: ReadLimits,
    ) -> None:
        self.path = path
        self.kind = source.kind
        self.feature_dim = feature_dim
        self.every = every
        self.row_stride = source.row_stride
        self.limits = limits
        self._source = source
        names = {name: name for name in sorted(source.videos)}
        # id -> name in the source
        self._names = strip_activitynet_prefix(names, str(path)) if strip_prefix else names
        self.ids: list[str] = sorted(self._names)

    def keep(self, videos: Container[str]) -> int:
        """Forget all other videos; return their number."""
        before = len(self.ids)
        self.ids = [video for video in self.ids if video in videos]
        return before - len(self.ids)

    def files(self, video: str) -> list[Place]:
        """The files that hold the features of a video, and perhaps those of others."""
        return self._source.files(self._names[video])

    def reading_order(self, videos: Sequence[str]) -> list[str]:
        """Videos in the order that is fastest to read: that of rows and members of a large file."""
        videos_of = {self._names[video]: video for video in videos}
        return [videos_of[name] for name in self._source.reading_order(list(videos_of))]

    def sidecar(self, video: str) -> Sidecar | None:
        """The sidecar that `extract` wrote for a video; None without one. InputError: it is damaged."""
        return self._source.sidecar(self._names[video]) if video in self._names else None

    def versions(self) -> dict[str, list[tuple[int, int]]]:
        """For each video, size and version of its files, `remote.facts_of`; none for a file that is not there."""
        known: dict[Place, list[tuple[int, int]]] = {}
        found: dict[str, list[tuple[int, int]]] = {}
        for video in self.ids:
            for path in (files := self.files(video)):
                if path not in known:
                    known[path] = [facts] if (facts := facts_of(path)) else []
            found[video] = [version for path in files for version in known[path]]
        return found

    def version(self, video: str) -> list[list[int]]:
        """The entry of `versions` for one video, without those of the others."""
        return [list(facts) for path in self.files(video) if (facts := facts_of(path))]

    def stored(self, video: str) -> StoredArray:
        """Shape and dtype on disk; for .npy, .npz and HDF5 no values are read. InputError: it cannot be opened."""
        with self._reading(video) as (source, name):
            array = source.open(name)
            _require_real(array, source.where(name))
            return StoredArray(tuple(array.shape), str(array.dtype), source.where(name))

    def load(self, video: str) -> FeatureSequence:
        """Read, orient, convert and check every N-th row of a video. InputError: unusable, including NaN values."""
        if self.feature_dim is None:
            raise ValueError("feature_dim is None, expected the number of channels to find the channel axis")
        with self._reading(video) as (source, name):
            array = source.open(name)
            return from_array(
                array,
                self.feature_dim,
                source.where(name),
                every=self.every,
                time_first=source.time_first,
                limits=self.limits,
            )

    @property
    def start(self) -> str | None:
        """Start method of processes that read; None: PyTorch's default."""
        return self._source.start

    @property
    def threads(self) -> int | None:
        """PyTorch threads of a process that reads; None: one."""
        return self._source.threads

    def facts(self, video: str) -> Any:
        """Facts that this process learned by reading a video, for `note` in another process."""
        return self._source.facts(self._names[video]) if video in self._names else None

    def note(self, video: str, facts: Any) -> None:
        """Take over the `facts` of another process."""
        if video in self._names:
            self._source.note(self._names[video], facts)

    def interrupt(self) -> None:
        """Ask a long read in another thread to end soon."""
        self._source.interrupt()

    def close(self) -> None:
        """Close the open files of this process; the next read opens them again."""
        self._source.close()

    @contextlib.contextmanager
    def _reading(self, video: str) -> Iterator[tuple[Source, str]]:
        """Yield the source and the video's name in it. InputError: any error inside the block."""
        if video not in self._names:
            raise InputError(f"{self.path}: no video {video!r}")
        name = self._names[video]
        with readable(self._source.where(name), self._source.expected_of(name)):
            yield self._source, name


def from_array(
    array: Any,
    feature_dim: int,
    where: str,
    *,
    every: int = 1,
    time_first: bool = False,
    limits: ReadLimits | None = None,
) -> FeatureSequence:
    """Orient, convert and check every N-th row of the features of a video.

    array: [T, C] or [C, T] by the length C = feature_dim, in memory or in an HDF5 file.
    where: its name in messages.
    time_first: whether it can only be [T, C].
    limits: limits of the read; None: `array` is in memory already.

    InputError: unusable, including NaN values.
    """
    _require_real(array, where)
    time_axis, channel_axis, note = _orient(array.shape, feature_dim, time_first, where)
    rows = array.shape[time_axis]
    snippets = len(range(0, rows, every))
    if snippets < 2:
        rows_of = f" (one in {every} of {count(rows, 'row')})" if every > 1 else ""
        raise InputError(f"{where} has {count(snippets, 'snippet')}{rows_of}, expected at least 2")
    if limits is not None:
        # A chunk of HDF5, which is unpacked as a whole, may be larger than the array.
        values = max(math.prod(array.shape), math.prod(getattr(array, "chunks", None) or ()))
        limits.require(values * max(array.dtype.itemsize, np.float32().itemsize), where, array.shape)
    features = _read(array, time_axis, channel_axis, every)
    _check_finite(features, every, where)
    orientation = "[T, C]" if time_axis < channel_axis else "[C, T]"
    return FeatureSequence(features, orientation, where, rows, str(array.dtype), note)


def _require_real(array: Any, where: str) -> None:
    if array.dtype.kind not in "fiu":
        raise InputError(f"{where} has dtype {array.dtype}, expected real numbers")


def iterate(
    archive: FeatureArchive, videos: Sequence[str], *, workers: int = 0, prefetch: int = 2
) -> Iterator[tuple[str, FeatureSequence | InputError]]:
    """Load `videos` in order while the caller computes; an unusable video yields its InputError.

    workers: processes that read. 0: one background thread of this process.
    prefetch: videos loaded ahead (by each worker), which bounds the memory.

    The features do not depend on either.
    """
    if workers > 0:
        # Forked workers must not inherit open HDF5 files, whose position older HDF5 would share between them.
        archive.close()

        def loader(names: Sequence[str], one_by_one: bool) -> DataLoader:
            return DataLoader(
                _Videos(archive, names),
                batch_size=None,
                num_workers=1 if one_by_one else workers,
                prefetch_factor=1 if one_by_one else max(1, prefetch),
                collate_fn=_unchanged,
                worker_init_fn=end_with_parent(archive.threads),
                multiprocessing_context=archive.start,
                generator=torch.Generator(),  # without it, starting workers advances the global random state
            )

        for video, found in zip(videos, read_in_order(videos, loader), strict=True):
            result, facts = found or (InputError(KILLED.format(video)), None)
            archive.note(video, facts)
            yield video, result
        return
    pending: deque[tuple[str, Any]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="features")
    try:
        for video in videos:
            pending.append((video, pool.submit(_load_or_error, archive, video)))
            if len(pending) > prefetch:
                name, future = pending.popleft()
                yield name, future.result()
        while pending:
            name, future = pending.popleft()
            yield name, future.result()
    except BaseException:
        archive.interrupt()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _load_or_error(archive: FeatureArchive, video: str) -> FeatureSequence | InputError:
    try:
        return archive.load(video)
    except InputError as error:
        return error


def _unchanged(item: Any) -> Any:
    return item


class _Videos(Dataset):
    def __init__(self, archive: FeatureArchive, videos: Sequence[str]) -> None:
        self.archive = archive
        self.videos = list(videos)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[FeatureSequence | InputError, Any]:
        video = self.videos[index]
        return _load_or_error(self.archive, video), self.archive.facts(video)


def _orient(shape: Sequence[int], feature_dim: int, time_first: bool, where: str) -> tuple[int, int, str | None]:
    """Time axis, channel axis and a remark. Axes of length 1 are ignored if exactly two others remain."""
    axes = list(range(len(shape)))
    if len(shape) > 2:
        axes = [axis for axis in axes if shape[axis] != 1]
    if len(axes) != 2:
        raise InputError(f"{where} has shape {list(shape)}, expected [T, C] or [C, T]")
    first, second = axes
    if shape[second] == feature_dim:
        ambiguous = shape[first] == feature_dim and not time_first
        return first, second, f"both axes have length {feature_dim}; using [T, C]" if ambiguous else None
    if shape[first] == feature_dim and not time_first:
        return second, first, None
    raise InputError(f"{where} has shape {list(shape)}, expected {feature_dim} channels")


def _read(array: Any, time_axis: int, channel_axis: int, every: int) -> np.ndarray:
    """Read every N-th time step as [T, C] float32.

    Reads contiguous blocks, because a strided selection of a chunked HDF5 dataset is several times slower. A block has
    whole chunks, because each read of a part of a chunk unpacks all of it.
    """
    rows = array.shape[time_axis]
    out = np.empty((len(range(0, rows, every)), array.shape[channel_axis]), np.float32)
    index: list[Any] = [0] * array.ndim
    index[channel_axis] = slice(None)
    chunks = getattr(array, "chunks", None)
    chunk = chunks[time_axis] if chunks else 1
    block_rows = -(-_BLOCK_ROWS // chunk) * chunk
    for first in range(0, rows, block_rows):
        index[time_axis] = slice(first, min(first + block_rows, rows))
        block = array[tuple(index)]
        block = block if time_axis < channel_axis else block.T
        taken = block[-first % every :: every]
        done = -(-first // every)
        with np.errstate(over="ignore"):  # too large for float32: becomes infinite and is reported as such
            out[done : done + len(taken)] = taken
    return out


def _check_finite(features: np.ndarray, every: int, where: str) -> None:
    finite = np.isfinite(features)
    if finite.all():
        return
    row, channel = np.unravel_index(np.argmin(finite), features.shape)
    nans = int(np.isnan(features).sum())
    infinite = int(finite.size - finite.sum()) - nans
    raise InputError(
        f"{where} has {nans} NaN and {infinite} infinite values, the first at row {row * every}, channel {channel}; "
        "expected finite values"
    )
