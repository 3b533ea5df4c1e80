"""Times of snippets: from a boundary index to seconds, for every public feature layout.

A single rule: `seconds(g) = (g * stride + offset) / fps`, or `g / T * duration` if the whole video is rescaled to T
snippets. docs/formats.md lists the values of the public layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..bounds import LARGEST, time_fault
from ..config import Config, TimeBase
from ..errors import InputError
from ..recipe import Recipe
from ..text import brief, count
from .annotations import VideoAnnotation, read_annotations, strip_activitynet_prefix
from .sidecar import Sidecar

if TYPE_CHECKING:
    from .features import FeatureArchive

Boundary = TypeVar("Boundary", float, np.ndarray)

# Relative difference up to which two frame rates or strides count as equal: 29.97 is 30.
_TOLERANCE = 0.002


@dataclass(frozen=True)
class SnippetTime:
    """Times of the snippets of one video."""

    stride: float  # video frames between consecutive snippets
    offset: float  # video frame of boundary 0
    fps: float
    duration: float | None  # seconds

    def seconds(self, boundary: Boundary) -> Boundary:
        """Time of snippet boundary g; snippet t lies between boundaries t and t + 1."""
        return (boundary * self.stride + self.offset) / self.fps


@dataclass(frozen=True)
class RescaledTime:
    """Times of the snippets of one video that is rescaled as a whole."""

    snippets: int  # T
    duration: float  # seconds

    def seconds(self, boundary: Boundary) -> Boundary:
        """As `SnippetTime.seconds`."""
        return boundary / self.snippets * self.duration


VideoTime = SnippetTime | RescaledTime


@dataclass(frozen=True)
class TimeFlags:
    """Values for all videos, which override those of files."""

    fps: float | None = None  # video frames per second
    stride: float | None = None  # video frames between consecutive rows of a feature file
    offset: float | None = None  # video frame at which the first row starts
    duration: float | None = None  # seconds

    def __post_init__(self) -> None:
        for name in ("fps", "stride", "offset", "duration"):
            value = getattr(self, name)
            if value is not None and (expected := time_fault(name, value)):
                raise InputError(f"--{name} is {value}, expected {expected}")


@dataclass(frozen=True)
class TimeOptions:
    """Rows in use and their times: values for all videos, and a file with values per video."""

    flags: TimeFlags = TimeFlags()
    every: int | None = None  # use every N-th row; None: the default of the layout
    times: str | None = None  # path for `read_annotations`

    def __post_init__(self) -> None:
        if self.every is not None and self.every > LARGEST:
            raise InputError(f"--every is {brief(self.every)}, expected at most {LARGEST}")

    def every_for(self, config: Config) -> int | None:
        """`every`, or that of the training; None: the default of the layout."""
        if self.every is not None or config.trained_on is None:
            return self.every
        return config.trained_on.every

    def resolver(
        self, config: Config, archive: FeatureArchive, known: Mapping[str, VideoAnnotation] | None = None
    ) -> TimeResolver:
        """Times of the videos of `archive`. `known` replaces the file if there is none.

        InputError: the file cannot be read or has a number out of range, or a flag contradicts the training of the
        checkpoint.
        """
        table = known
        if self.times:
            table = read_annotations(self.times, strip_prefix=config.data.strip_prefix)
            _require_in_range(table, self.times)
        return TimeResolver(
            config,
            self.flags,
            table,
            every=archive.every,
            row_stride=archive.row_stride,
            sidecar=archive.sidecar,
        )


@dataclass(frozen=True)
class TimeFacts:
    """Known facts about the time of one video; None if unknown."""

    fps: float | None
    duration: float | None  # seconds
    frames: int | None  # number of video frames
    row_stride: float | None  # video frames between rows of the file; None if only the preset has a value
    stride: float | None  # video frames between snippets; None if rows are skipped and `row_stride` is unknown
    offset: float  # video frame of boundary 0


class TimeResolver:
    """Combines flags, sidecars, a table, the layout and the training of the network, in this order of precedence.

    A sidecar is more reliable than a table, because it was written with the rows. The frame rate in an annotation file
    is that of the video, not of the frames that a recipe samples.

    The stride and offset of the preset count only for a network that was not trained by this package. A trained network
    refuses flags, and videos, whose snippets have another stride or offset than those it was trained on.

    config: `data` has stride, offset and rescaling; `model.window` is the T of rescaling; `trained_on` has the times of
        the training.
    table: id -> VideoAnnotation, as from `read_annotations`; videos may be missing.
    every: every N-th row is used.
    row_stride: video frames between rows, if the feature layout fixes it (`FeatureArchive.row_stride`).
    sidecar: what `extract` stated about the features of a video (`FeatureArchive.sidecar`).

    InputError: a flag contradicts `config.trained_on`.
    """

    def __init__(
        self,
        config: Config,
        flags: TimeFlags | None = None,
        table: Mapping[str, VideoAnnotation] | None = None,
        *,
        every: int = 1,
        row_stride: float | None = None,
        sidecar: Callable[[str], Sidecar | None] = lambda video: None,
    ) -> None:
        self.config = config
        self.flags = flags or TimeFlags()
        self.table = table or {}
        self.every = every
        self.row_stride = row_stride
        self._read_sidecar = sidecar
        self.base = config.trained_on or TimeBase()
        self._require_agreement()

    def _require_agreement(self) -> None:
        flags, base = self.flags, self.base
        if self.config.data.rescale:  # a video of any frame rate and stride becomes T snippets
            return
        if flags.fps is not None and not _agree(flags.fps, base.fps):
            raise InputError(
                f"--fps is {flags.fps:g}, expected {base.fps:g}, the frame rate of the training; "
                "for videos of another frame rate, give --times FILE with a column fps"
            )
        if flags.stride is not None and not _agree(flags.stride * self.every, base.stride):
            raise InputError(f"--stride is {flags.stride:g}, {self._expected_stride(flags.stride * self.every)}")
        if flags.offset is not None and base.offset is not None and flags.offset != base.offset:
            raise InputError(f"--offset is {flags.offset:g}, expected {base.offset:g}, the offset of the training")

    def _expected_stride(self, stride: float) -> str:
        """End of a message about snippets of another stride than those of the training."""
        thinned = f" with one in {self.every} rows used (--every)" if self.every > 1 else ""
        return (
            f"so that snippets are {stride:g} video frames apart{thinned}; expected {self.base.stride:g}, "
            "the stride of the training"
        )

    def matched(self, videos: Collection[str]) -> list[str]:
        """Videos that are in the table, by exact id."""
        return [video for video in videos if video in self.table]

    def require_match(self, videos: Collection[str], features: object, table: object) -> None:
        """Raise InputError if there is a table with none of the videos; the message shows an id of both."""
        if not self.table or self.matched(videos):
            return
        here = strip_activitynet_prefix(dict.fromkeys(videos), str(features))
        there = strip_activitynet_prefix(dict.fromkeys(self.table), str(table))
        hint = "; they agree without the prefix v_, which --preset activitynet13 removes" if here.keys() & there else ""
        raise InputError(
            f"{table} has {count(len(self.table), 'video')}, such as {next(iter(self.table))!r}, expected some of the "
            f"{len(videos)} in {features}, such as {next(iter(videos))!r}{hint}"
        )

    def facts(self, video: str) -> TimeFacts:
        """Known facts about the time of `video`, which may be too few."""
        flags, row = self.flags, self._known(video)
        duration = _first(flags.duration, row.duration or None)
        frames = row.frames or None
        fps = _first(flags.fps, row.fps, frames / duration if frames and duration else None, self.base.fps)
        if duration is None and frames and fps:
            duration = frames / fps
        row_stride = _first(flags.stride, row.feature_stride, self.row_stride, self.base.row_stride)
        if row_stride is not None:
            stride = row_stride * self.every
        else:
            # The preset's stride refers to consecutive rows. It is unknown for skipped rows, and for the features of a
            # training.
            stride = self.config.data.stride if self.every == 1 and self.config.trained_on is None else None
        offset = _first(flags.offset, row.feature_offset, self.base.offset)
        if offset is None:
            offset = self.config.data.offset
        return TimeFacts(fps, duration, frames, row_stride, stride, offset)

    def sidecar(self, video: str) -> Sidecar | None:
        """The sidecar of a video; None without a usable one. `resolve` refuses a damaged one."""
        try:
            return self._read_sidecar(video)
        except InputError:
            return None

    def _known(self, video: str) -> VideoAnnotation:
        """Facts about a video from its sidecar; the rest from the table."""
        row, side = self.table.get(video) or VideoAnnotation(video), self.sidecar(video)
        if side is None:
            return row
        return replace(
            row,
            duration=side.duration or row.duration,
            fps=side.fps,
            frames=round(side.duration * side.fps) or row.frames,
            feature_stride=side.stride,
            feature_offset=side.offset,
        )

    def recipe_of(self, videos: Collection[str]) -> Recipe | None:
        """The recipe of the features of all `videos`; None where `extract` did not make them.

        InputError: they are of several recipes, or only some are of one.
        """
        recipes = {video: side.recipe if (side := self.sidecar(video)) else None for video in videos}
        first, recipe = next(iter(recipes.items()), ("", None))
        for video, other in recipes.items():
            if (other is None) != (recipe is None):
                raise InputError(f"only one of the videos {first!r} and {video!r} has a sidecar, expected both or none")
            unlike = other.difference(recipe) if other and recipe else None
            if unlike:
                raise InputError(f"video {video!r} has other features than {first!r} ({unlike}), expected one recipe")
        return recipe

    def require_recipe(self, video: str) -> None:
        """Raise InputError if the sidecar of a video is damaged, or of another recipe than that of the training."""
        side, recipe = self._read_sidecar(video), self.config.recipe
        unlike = side.recipe.difference(recipe) if side and recipe else None
        if unlike:
            raise InputError(f"video {video!r} has other features than the training ({unlike}), expected its recipe")

    def resolve(self, video: str, snippets: int, *, whole_snippets: bool = False) -> VideoTime:
        """Times of a video with that many snippets. InputError: names the missing fact and its flags.

        With `whole_snippets`, a rescaled video ends with the last whole snippet of the preset's stride, as in the
        public BMN release.
        """
        self.require_recipe(video)
        facts = self.facts(video)
        for name in ("fps", "stride", "offset", "duration"):
            value = getattr(facts, name)
            if value is not None and (expected := time_fault(name, value)):
                raise InputError(f"video {video!r} has the {name} {value:g}, expected {expected}")
        if self.config.data.rescale:  # the length of a snippet differs from video to video anyway
            time = self._rescaled(video, snippets, facts)
            return replace(time, duration=self._covered(video, facts) * time.duration) if whole_snippets else time
        if facts.fps is None:
            raise InputError(
                f"video {video!r} has no known frame rate; "
                "give --fps, or --times FILE with a column fps (or frames and duration)"
            )
        stride = self._stride(video, facts)
        if not _agree(stride, self.base.stride):
            raise InputError(
                f"video {video!r} has rows of {facts.row_stride:g} frames, {self._expected_stride(stride)}"
            )
        if self.base.offset is not None and facts.offset != self.base.offset:
            raise InputError(
                f"video {video!r} has the offset {facts.offset:g}, expected {self.base.offset:g}, that of the training"
            )
        return SnippetTime(stride, facts.offset, facts.fps, facts.duration)

    def base_of(self, videos: Collection[str]) -> TimeBase:
        """Times that all `videos` have in common, as a network trained on them stores them."""
        facts = [self.facts(video) for video in videos]
        # The stride that a training took from its preset is that of its snippets, unless videos are rescaled.
        rescale = self.config.data.rescale
        return TimeBase(
            fps=_common([fact.fps for fact in facts]),
            row_stride=_common([_first(fact.row_stride, None if rescale else fact.stride) for fact in facts]),
            offset=_common([fact.offset for fact in facts]),
            every=self.every,
        )

    def _rescaled(self, video: str, snippets: int, facts: TimeFacts) -> RescaledTime:
        window = self.config.model.window
        give = "give --duration, or --times FILE with a column duration (or frames and fps)"
        duration = facts.duration
        if duration is None:
            if facts.fps is None:
                raise InputError(f"video {video!r} has no known duration; {give}")
            if snippets == window and facts.row_stride is None:
                # Probably a file that is already rescaled, whose rows have another stride than the preset.
                raise InputError(
                    f"video {video!r} has no known duration, and {window} rows that may be rescaled already; "
                    f"{give}, or --stride if they are not"
                )
            duration = snippets * self._stride(video, facts) / facts.fps
        return RescaledTime(window, duration)

    def _covered(self, video: str, facts: TimeFacts) -> float:
        """Fraction of a video that is covered by whole snippets of the preset's stride."""
        if facts.frames is None:
            raise InputError(
                f"video {video!r} has no known number of frames, which --protocol release requires; "
                "give --times FILE with a column frames"
            )
        stride = self.config.data.stride
        return facts.frames // stride * stride / facts.frames

    def _stride(self, video: str, facts: TimeFacts) -> float:
        if facts.stride is None:
            when = f"if only one in {self.every} rows is used" if self.every > 1 else "because the training had several"
            raise InputError(
                f"video {video!r} has no known stride, which is required {when}; "
                "give --stride, or --times FILE with a column stride"
            )
        return facts.stride


def _require_in_range(table: Mapping[str, VideoAnnotation], path: str) -> None:
    """Raise InputError if a number of a table is out of range; 0 stands for an unknown length."""
    for name, row in table.items():
        values = (
            ("fps", row.fps),
            ("stride", row.feature_stride),
            ("offset", row.feature_offset),
            ("duration", row.duration or None),
            ("frames", row.frames or None),
        )
        for column, value in values:
            if value is not None and (expected := time_fault(column, value)):
                raise InputError(f"{path}: video {name!r}: {column} is {value:g}, expected {expected}")


def _agree(value: float, expected: float | None) -> bool:
    """Whether a frame rate or stride is the expected one, or nothing is expected."""
    return expected is None or abs(value - expected) <= _TOLERANCE * expected


def _common(values: list[float | None]) -> float | None:
    """The value that all have, or None."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    middle = sorted(known)[len(known) // 2]
    return middle if all(abs(value - middle) <= _TOLERANCE * abs(middle) for value in known) else None


def _first(*values: float | None) -> float | None:
    """First value that is not None."""
    return next((value for value in values if value is not None), None)
