"""When a snippet happens: from a boundary index to seconds, for every public feature layout.

One rule covers them all: `seconds(g) = (g * stride + offset) / fps`, or `g / T * duration` for a whole video that is
rescaled to T snippets. docs/formats.md lists the values of the public layouts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..config import Config
from ..errors import InputError
from .annotations import VideoAnnotation, read_annotations, strip_activitynet_prefix

if TYPE_CHECKING:
    from .features import FeatureArchive

Boundary = TypeVar("Boundary", float, np.ndarray)


@dataclass(frozen=True)
class SnippetTime:
    """Where the snippets of one video lie in time."""

    stride: float | None  # video frames between neighbouring snippets; may be None where `rescaled` is given
    offset: float  # video frame of boundary 0
    fps: float | None  # may be None where `rescaled` is given
    duration: float | None  # of the video, in seconds; never None where `rescaled` is given
    rescaled: int | None = None  # T, when the whole video is rescaled to T snippets

    def seconds(self, boundary: Boundary) -> Boundary:
        """Time of snippet boundary g in the video (snippet t lies between boundaries t and t + 1)."""
        if self.rescaled is not None:
            return boundary / self.rescaled * self.duration
        return (boundary * self.stride + self.offset) / self.fps


@dataclass(frozen=True)
class TimeFlags:
    """What the user states for all videos; it goes before anything that a file says."""

    fps: float | None = None  # video frames a second
    stride: float | None = None  # video frames between neighbouring rows of a feature file
    offset: float | None = None  # video frame of the boundary before the first row
    duration: float | None = None  # seconds

    def __post_init__(self) -> None:
        for name in ("fps", "stride", "offset", "duration"):
            value = getattr(self, name)
            low = -math.inf if name == "offset" else 0.0
            if value is not None and not low < value < math.inf:
                expected = "a finite number" if name == "offset" else "a positive number"
                raise InputError(f"--{name}: expected {expected}, found {value}")


@dataclass(frozen=True)
class TimeOptions:
    """What the user states about rows and time: numbers for all videos, and a file with those of each."""

    flags: TimeFlags = TimeFlags()
    every: int | None = None  # rows of a file from one snippet to the next; None: that of the layout
    times: str | None = None  # path of a file that `read_annotations` reads

    def resolver(
        self, config: Config, archive: FeatureArchive, known: Mapping[str, VideoAnnotation] | None = None
    ) -> TimeResolver:
        """The times of the videos of `archive`; `known` stands in for the file where there is none.

        InputError: the file cannot be read.
        """
        table = read_annotations(self.times, strip_prefix=config.data.strip_prefix) if self.times else known
        return TimeResolver(config, self.flags, table, every=archive.every, row_stride=archive.row_stride)


@dataclass(frozen=True)
class TimeFacts:
    """What is known of one video's time. None where nothing says it."""

    fps: float | None
    duration: float | None  # seconds
    frames: int | None  # of the video
    row_stride: float | None  # video frames between rows of the file, where flag, table or layout says so
    stride: float | None  # video frames between snippets; None when rows are skipped and `row_stride` is unknown
    offset: float  # video frame of boundary 0


class TimeResolver:
    """Puts together what flags, a table and the preset say, in this order of precedence.

    config: `data` gives stride, offset and rescaling, `model.window` the T of rescaling.
    table: id -> VideoAnnotation, as `read_annotations` gives it; videos may be missing. every: rows from one snippet to
    the next. row_stride: video frames between rows where the feature layout fixes that (`FeatureArchive.row_stride`).
    """

    def __init__(
        self,
        config: Config,
        flags: TimeFlags | None = None,
        table: Mapping[str, VideoAnnotation] | None = None,
        *,
        every: int = 1,
        row_stride: float | None = None,
    ) -> None:
        self.config = config
        self.flags = flags or TimeFlags()
        self.table = table or {}
        self.every = every
        self.row_stride = row_stride

    def matched(self, videos: Collection[str]) -> list[str]:
        """The videos that the table knows; ids are compared as they are."""
        return [video for video in videos if video in self.table]

    def require_match(self, videos: Collection[str], features: object, table: object) -> None:
        """InputError when a table was given that knows none of the videos; the message shows an id of each side."""
        if not self.table or self.matched(videos):
            return
        here = strip_activitynet_prefix(dict.fromkeys(videos), str(features))
        there = strip_activitynet_prefix(dict.fromkeys(self.table), str(table))
        hint = "; they agree without the prefix v_, which --preset activitynet13 drops" if here.keys() & there else ""
        raise InputError(
            f"{table}: expected some of the {len(videos)} videos of {features}, such as {next(iter(videos))!r}, "
            f"found {len(self.table)} others, such as {next(iter(self.table))!r}{hint}"
        )

    def facts(self, video: str) -> TimeFacts:
        """What is known of the time of `video`, without demanding that it suffices."""
        flags, row = self.flags, self.table.get(video) or VideoAnnotation(video)
        duration = _first(flags.duration, row.duration or None)
        frames = row.frames or None
        fps = _first(flags.fps, row.fps, frames / duration if frames and duration else None)
        if duration is None and frames and fps:
            duration = frames / fps
        row_stride = _first(flags.stride, row.feature_stride, self.row_stride)
        if row_stride is not None:
            stride = row_stride * self.every
        else:
            # The preset speaks of the rows as they are: it says nothing about files of which rows are skipped.
            stride = self.config.data.stride if self.every == 1 else None
        offset = _first(flags.offset, row.feature_offset, self.config.data.offset)
        return TimeFacts(fps, duration, frames, row_stride, stride, offset)

    def resolve(self, video: str, snippets: int, *, whole_snippets: bool = False) -> SnippetTime:
        """Time of a video of that many snippets. InputError names the video, what is missing and the flags for it.

        With `whole_snippets` a rescaled video ends with its last whole snippet of the preset's stride, as in the public
        BMN release.
        """
        facts = self.facts(video)
        if self.config.data.rescale:
            time = self._rescaled(video, snippets, facts)
            return replace(time, duration=self._covered(video, facts) * time.duration) if whole_snippets else time
        if facts.fps is None:
            raise InputError(
                f"video {video!r}: expected its frames per second, found none; "
                "give --fps, or --times FILE with a column fps (or frames and duration)"
            )
        return SnippetTime(self._stride(video, facts), facts.offset, facts.fps, facts.duration)

    def _rescaled(self, video: str, snippets: int, facts: TimeFacts) -> SnippetTime:
        window = self.config.model.window
        give = "give --duration, or --times FILE with a column duration (or frames and fps)"
        duration = facts.duration
        if duration is None:
            if facts.fps is None:
                raise InputError(f"video {video!r}: expected its duration in seconds, found none; {give}")
            if snippets == window and facts.row_stride is None:
                # Most likely a file that was rescaled before: its rows are not a preset's stride apart.
                raise InputError(
                    f"video {video!r}: expected its duration in seconds, found none, and {window} rows that may have "
                    f"been rescaled already; {give}, or --stride if they were not"
                )
            duration = snippets * self._stride(video, facts) / facts.fps
        return SnippetTime(facts.stride, facts.offset, facts.fps, duration, rescaled=window)

    def _covered(self, video: str, facts: TimeFacts) -> float:
        """The part of a video that whole snippets of the preset's stride make up."""
        if facts.frames is None:
            raise InputError(
                f"video {video!r}: expected its number of frames, which --protocol release needs, found none; "
                "give --times FILE with a column frames"
            )
        stride = self.config.data.stride
        return facts.frames // stride * stride / facts.frames

    def _stride(self, video: str, facts: TimeFacts) -> float:
        if facts.stride is None:
            raise InputError(
                f"video {video!r}: expected the video frames between rows of its file, because only every "
                f"{self.every} rows one is taken, found none; give --stride, or --times FILE with a column stride"
            )
        return facts.stride


def _first(*values: float | None) -> float | None:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
