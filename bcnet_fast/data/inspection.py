"""Contents of feature files, compared with the stated times of their videos."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..presets import FITTED
from ..text import count, some
from .features import FeatureSequence
from .timing import TimeResolver
from .windows import window_starts

# Differences of durations, or of frames per row, that deserve a remark: relative, and also absolute (and > 1 row).
_TOLERANCE = 0.02
_TOLERANCE_S = 1.0


@dataclass(frozen=True)
class VideoReport:
    """Findings for one usable video; None where too little is known."""

    video: str
    rows: int  # of the file
    snippets: int  # rows in use, every N-th of the file
    stored: str  # orientation and dtype on disk
    zero_rows: int  # snippets whose values are all 0
    row_stride: float | None  # video frames per row
    row_s: float | None  # seconds per row
    implied_s: float | None  # duration implied by the rows
    stated_s: float | None  # duration stated by flag or table
    frames_per_row: float | None  # at which implied and stated duration agree
    windows: int
    per_frame: bool  # one row per video frame, although the preset expects fewer
    note: str | None  # remark of the reader

    @property
    def differs(self) -> bool:
        """Whether implied and stated duration differ."""
        if self.implied_s is None or self.stated_s is None or self.row_s is None:
            return False
        return abs(self.implied_s - self.stated_s) > max(_TOLERANCE_S, _TOLERANCE * self.stated_s, self.row_s)

    @property
    def remarks(self) -> list[str]:
        """Likely mistakes."""
        remarks = [self.note] if self.note else []
        if self.zero_rows:
            remarks.append(f"{self.zero_rows} of {self.snippets} snippets are all zero")
        if self.per_frame:
            remarks.append("one row per video frame")
        elif self.differs:
            remarks.append(f"rows of {self.row_stride:g} frames contradict the stated duration")
        return remarks


def describe(video: str, sequence: FeatureSequence, resolver: TimeResolver) -> VideoReport:
    """Compare the features of one video with its known times."""
    data, facts = resolver.config.data, resolver.facts(video)
    rows, snippets = sequence.rows_in_file, len(sequence.features)
    frames = facts.frames or (facts.duration * facts.fps if facts.duration and facts.fps else None)

    row_stride = facts.row_stride
    if row_stride is None and not data.rescale and resolver.config.preset != FITTED:
        row_stride = facts.stride  # that of the preset, which says nothing about rescaled videos or a user's own
    row_s = row_stride / facts.fps if row_stride and facts.fps else None
    implied_s = rows * row_s if row_s else None
    if row_s is None and data.rescale and facts.duration:
        row_s = facts.duration / rows

    starts = [0]
    if not data.rescale:
        starts = window_starts(snippets, resolver.config.model.window, data.window_stride, keep_tail=True)
    per_frame = not data.rescale and resolver.every == 1 and data.stride > 1
    return VideoReport(
        video=video,
        rows=rows,
        snippets=snippets,
        stored=f"{sequence.orientation} {sequence.dtype}",
        zero_rows=int((~sequence.features.any(axis=1)).sum()),
        row_stride=row_stride,
        row_s=row_s,
        implied_s=implied_s,
        stated_s=facts.duration,
        frames_per_row=frames / rows if frames else None,
        windows=len(starts),
        per_frame=per_frame and frames is not None and abs(frames / rows - 1) < _TOLERANCE,
        note=sequence.note,
    )


def suggest(reports: Sequence[VideoReport], resolver: TimeResolver) -> tuple[dict[str, str], list[str]]:
    """Flags that fix the findings, and the reasons."""
    stride = f"{resolver.config.data.stride:g}"
    per_frame = [report for report in reports if report.per_frame]
    differ = [report for report in reports if report.differs]
    if per_frame:
        reason = f"{_named(per_frame)}: one row per frame, the preset expects one per {stride}"
        return {"--every": stride, "--stride": "1"}, [f"{reason}: --every {stride} --stride 1"]
    rescale = resolver.config.data.rescale
    unstated = [r for r in reports if not rescale and resolver.facts(r.video).row_stride is None]
    if resolver.config.preset == FITTED:
        differ = differ or [report for report in unstated if report.frames_per_row]
        if unstated and not differ:
            return {}, [
                f"missing: --stride, the video frames from one row to the next, of {_named(unstated)}; "
                "a --times FILE with durations and frame rates would show it"
            ]
    if not differ:
        unconfirmed = [report for report in unstated if report.stated_s is None]
        if unconfirmed:
            return {}, [
                f"{_named(unconfirmed)}: {stride} frames per row is the value of the preset, and nothing confirms it"
            ]
        return {}, []
    fits = [report.frames_per_row for report in differ if report.frames_per_row]
    middle = statistics.median(fits) if fits else 0.0
    if sum(abs(fit - middle) <= _TOLERANCE * middle for fit in fits) > len(differ) / 2:
        whole = abs(round(middle) - middle) <= _TOLERANCE * middle
        fitting = f"{round(middle) if whole else round(middle, 3):g}"
        reason = f"{_named(differ)}: the stated durations fit {fitting} frames per row"
        return {"--stride": fitting}, [f"{reason}: --stride {fitting}"]
    if len(reports) > 1 and len({report.rows for report in reports}) == 1:
        rows = f"all {len(reports)} videos have {reports[0].rows} rows, regardless of duration"
        return {}, [f"{rows}: they look rescaled, as --preset activitynet13 expects them"]
    return {}, [f"{_named(differ)}: no common stride fits the stated durations: check fps, stride and durations"]


def _named(reports: Sequence[VideoReport]) -> str:
    return f"{count(len(reports), 'video')} ({some([report.video for report in reports])})"
