"""The interface of every layout of features on disk, and the limits of reading it."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..storage.address import Place
from .sidecar import Sidecar

ARRAY_NAMES = ("feats", "features")  # name of the feature array in a file or HDF5 group of several arrays


@dataclass(frozen=True)
class ReadLimits:
    """Limits of reading a feature file. A field has the meaning of the flag with the same name.

    max_video_gib: memory of the features of one video, GiB; a file of a few KiB can declare any size.
    trust_hdf5_links: read HDF5 data sets whose values are in other files, or composed of other data sets.
    """

    max_video_gib: float = 4.0
    trust_hdf5_links: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.max_video_gib < math.inf:
            raise InputError(f"--max-video-gib is {self.max_video_gib}, expected a positive number")

    @property
    def max_bytes(self) -> int:
        """`max_video_gib` in bytes."""
        return int(self.max_video_gib * 2**30)

    def require(self, size: int, where: object, shape: Sequence[int]) -> None:
        """Raise InputError if features of this size in bytes, stored with this shape, are too large."""
        if size > self.max_bytes:
            raise InputError(
                f"{where} has shape {list(shape)}, {size / 2**30:.3g} GiB in memory, expected at most "
                f"{self.max_video_gib:.3g} GiB (--max-video-gib)"
            )


class Source(abc.ABC):
    """A layout: `videos` has the names in it, `open` returns the stored array of a name."""

    kind: str
    expected: str  # what a video is expected to be, in messages; where videos differ: `expected_of`
    every = 1  # default: use every N-th row
    row_stride: float | None = None  # video frames between rows, if the layout fixes it
    time_first = False  # the layout fixes [T, C]
    start: str | None = None  # start method of processes that read, as in `multiprocessing`; None: the default
    threads: int | None = None  # PyTorch threads of such a process; None: one
    videos: dict[str, Any]

    def expected_of(self, name: str) -> str:
        """What the video of a name is expected to be, in messages."""
        return self.expected

    @abc.abstractmethod
    def where(self, name: str) -> str:
        """File, and dataset inside it, of a video."""

    @abc.abstractmethod
    def open(self, name: str) -> Any:
        """Return the array, or an object with shape, dtype, ndim and slicing. May raise anything: `FeatureArchive`
        turns it into that video's failure.
        """

    def sidecar(self, name: str) -> Sidecar | None:
        """The sidecar that `extract` wrote for a video; None without one. InputError: it is damaged."""
        return None

    def files(self, name: str) -> list[Place]:
        """The files that hold a video, and perhaps others."""
        return [self.videos[name]]

    def reading_order(self, names: Sequence[str]) -> list[str]:
        """The names in the order that is fastest to read."""
        return list(names)

    def facts(self, name: str) -> Any:
        """Facts learned by reading a video, for `note` in another process; None: there are none."""
        return None

    def note(self, name: str, facts: Any) -> None:  # noqa: B027
        """Take over the `facts` of a video."""

    def interrupt(self) -> None:  # noqa: B027
        """Ask a read in another thread to end soon. Does nothing by default, because most reads are short."""

    def close(self) -> None:  # noqa: B027
        """Close open files; files of single arrays are closed as soon as they are read."""


class SharedFiles(Source):
    """Files that hold several videos each: the value of a name in `videos` begins with the number of its file."""

    _files: list[Place]

    def where(self, name: str) -> str:
        return f"{self.files(name)[0]}: {name}"

    def files(self, name: str) -> list[Place]:
        return [self._files[self.videos[name][0]]]

    def reading_order(self, names: Sequence[str]) -> list[str]:
        return sorted(names, key=self.videos.__getitem__)
