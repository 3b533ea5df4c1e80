"""`python -m bcnet_fast.inspect PATH`: what a folder or file of features holds, and the flags to use it with."""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cli import time_flags
from .cli.parser import Parser, run
from .data.features import FeatureArchive, FeatureSequence, StoredArray, iterate, open_features
from .data.timing import TimeResolver
from .data.windows import window_starts
from .errors import InputError
from .presets import DATA_SETS, PRESETS
from .progress import progress
from .storage.checkpoint import read_config

DESCRIPTION = """\
Read feature files and print, for each video and summed up: shape, orientation, dtype, snippets that are all zero, the
seconds of a row, the duration that follows from them against the stated one, the number of windows, and what looks
like a mistake. Ends with the flags for python -m bcnet_fast.infer.

Without --preset, --checkpoint and --feature-dim only shapes are read, and the widths that fit are named.
Exit code: 0 all videos can be used, 1 some cannot (listed), 2 none can."""
DEFAULT_PRESET = "thumos14"
SYSTEM = PRESETS["bcnet"]  # those of the other systems read features alike
LISTED = 10  # videos shown one by one
TOLERANCE = 0.02  # relative difference of durations, or of frames a row, that is worth a remark ...
TOLERANCE_S = 1.0  # ... when it is more than this many seconds, and more than one row, as well


@dataclass(frozen=True)
class VideoReport:
    """What was found for one usable video; None where too little is known."""

    video: str
    rows: int  # of the file
    snippets: int  # of which every N-th row was taken
    stored: str  # orientation and dtype on disk
    zero_rows: int  # snippets of which all values are 0
    row_stride: float | None  # video frames of a row
    row_s: float | None  # seconds of a row
    implied_s: float | None  # duration that the rows make
    stated_s: float | None  # duration by flag or table
    frames_per_row: float | None  # that would make the rows last as long as the video
    windows: int
    per_frame: bool  # a row for each video frame, where the preset expects fewer
    note: str | None  # of the reader

    @property
    def differs(self) -> bool:
        """Whether the rows do not last as long as the video is stated to."""
        if self.implied_s is None or self.stated_s is None:
            return False
        return abs(self.implied_s - self.stated_s) > max(TOLERANCE_S, TOLERANCE * self.stated_s, self.row_s)

    @property
    def remarks(self) -> list[str]:
        """What the user should look at."""
        remarks = [self.note] if self.note else []
        if self.zero_rows:
            remarks.append(f"{self.zero_rows} of {self.snippets} snippets are all zero")
        if self.per_frame:
            remarks.append("a row for each video frame")
        elif self.differs:
            remarks.append(f"rows of {self.row_stride:g} frames do not make up the stated duration")
        return remarks


def describe(video: str, sequence: FeatureSequence, resolver: TimeResolver) -> VideoReport:
    """Compare the features of one video with what is known of its time."""
    data, facts = resolver.config.data, resolver.facts(video)
    rows, snippets = sequence.rows_in_file, len(sequence.features)
    frames = facts.frames or (facts.duration * facts.fps if facts.duration and facts.fps else None)

    row_stride = facts.row_stride
    if row_stride is None and not data.rescale:
        row_stride = facts.stride  # the preset's; of a video that is rescaled it says nothing
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
        per_frame=per_frame and frames is not None and abs(frames / rows - 1) < TOLERANCE,
        note=sequence.note,
    )


def suggest(reports: Sequence[VideoReport], resolver: TimeResolver) -> tuple[dict[str, str], list[str]]:
    """Flags that would mend what was found, and in words why."""
    stride = f"{resolver.config.data.stride:g}"
    per_frame = [report for report in reports if report.per_frame]
    differ = [report for report in reports if report.differs]
    if per_frame:
        reason = f"{_named(per_frame)}: a row for each frame, the preset expects one for {stride}"
        return {"--every": stride, "--stride": "1"}, [f"{reason}: --every {stride} --stride 1"]
    if not differ:
        unconfirmed = [r for r in reports if r.stated_s is None and resolver.facts(r.video).row_stride is None]
        if unconfirmed and not resolver.config.data.rescale:
            return {}, [f"{_named(unconfirmed)}: {stride} frames a row is the preset's value, nothing confirms it"]
        return {}, []
    fits = [report.frames_per_row for report in differ if report.frames_per_row]
    middle = statistics.median(fits) if fits else 0.0
    if sum(abs(fit - middle) <= TOLERANCE * middle for fit in fits) > len(differ) / 2:
        whole = abs(round(middle) - middle) <= TOLERANCE * middle
        fitting = f"{round(middle) if whole else round(middle, 3):g}"
        reason = f"{_named(differ)}: the stated durations fit {fitting} frames a row"
        return {"--stride": fitting}, [f"{reason}: --stride {fitting}"]
    if len(reports) > 1 and len({report.rows for report in reports}) == 1:
        rows = f"all {len(reports)} videos have {reports[0].rows} rows, whatever their duration"
        return {}, [f"{rows}: they look rescaled, as --preset activitynet13 expects them"]
    return {}, [f"{_named(differ)}: the stated durations fit no common stride: check fps, stride and durations"]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bcnet_fast.inspect", description=DESCRIPTION)
    parser.add_argument("path", metavar="PATH", help="folder, file or HDF5 archive of features (docs/formats.md)")
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--preset", choices=DATA_SETS, help="the system that is to use the features")
    system.add_argument("--checkpoint", metavar="FILE", help="weights that are to use them: bring their own preset")
    parser.add_argument("--feature-dim", type=int, metavar="C", help="channels of a row (default: the preset's)")
    parser.add_argument("--videos", type=int, metavar="N", help="read only the first N videos (default: all)")
    parser.add_argument("--all", action="store_true", help=f"list every video, not only the first {LISTED}")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read (0: only this one)")
    time_flags.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.videos is not None and args.videos < 1:
        raise InputError(f"--videos: expected 1 or more, found {args.videos}")
    if args.workers < 0:
        raise InputError(f"--workers: expected 0 or more, found {args.workers}")

    config = read_config(args.checkpoint) if args.checkpoint else SYSTEM[args.preset or DEFAULT_PRESET]
    feature_dim = args.feature_dim
    if args.checkpoint and feature_dim not in (None, config.model.feature_dim):
        raise InputError(
            f"--feature-dim: expected {config.model.feature_dim} as in {args.checkpoint}, found {feature_dim}"
        )
    if feature_dim is None and (args.preset or args.checkpoint):
        feature_dim = config.model.feature_dim
    archive = open_features(args.path, feature_dim=feature_dim, every=args.every, strip_prefix=config.data.strip_prefix)
    resolver = time_flags.time_resolver(args, config, archive)
    resolver.require_match(archive.ids, args.path, args.times)
    videos = archive.ids[: args.videos]
    part = f", of which the first {len(videos)} are read" if len(videos) < len(archive.ids) else ""
    print(f"{args.path}: {archive.kind}, {_count(len(archive.ids))}{part}")
    if feature_dim is None:
        stored, errors = _stored(archive, videos)
        if stored:
            _print_shapes(stored, None if args.all else LISTED)
        _print_errors(errors, usable=bool(stored))
        if stored:
            _print_widths(stored, archive.path)
        return 0 if not errors else 1 if stored else 2

    thinned = f", one of every {archive.every} rows taken" if archive.every > 1 else ""
    chosen = "" if args.preset or args.checkpoint else " (by default)"
    print(f"preset {config.preset}{chosen}, {feature_dim} channels{thinned}")
    reports: list[VideoReport] = []
    errors: list[InputError] = []
    for video, loaded in progress(iterate(archive, videos, workers=args.workers), len(videos), "videos"):
        if isinstance(loaded, InputError):
            errors.append(loaded)
        else:
            reports.append(describe(video, loaded, resolver))
    if not reports:
        _print_errors(errors, usable=False)
        stored, _ = _stored(archive, videos)
        if any(feature_dim not in array.shape for array in stored.values()):
            _print_shapes(stored, LISTED)
            _print_widths(stored, archive.path)
        return 2
    _print_videos(reports, None if args.all else LISTED)
    _print_summary(reports)
    if args.times:
        _print_table_use(archive.ids, resolver, args.times)
    _print_errors(errors, usable=True)
    _print_flags(reports, resolver, args, feature_dim)
    return 1 if errors else 0


def _stored(archive: FeatureArchive, videos: Sequence[str]) -> tuple[dict[str, StoredArray], list[InputError]]:
    """What is on disk for each video, whatever its width; arrays that cannot be opened or are empty are errors."""
    stored: dict[str, StoredArray] = {}
    errors: list[InputError] = []
    for video in videos:
        try:
            array = archive.stored(video)
            if 0 in array.shape:
                raise InputError(f"{array.path}: expected rows of features, found shape {list(array.shape)}")
        except InputError as error:
            errors.append(error)
        else:
            stored[video] = array
    return stored, errors


def _print_shapes(stored: Mapping[str, StoredArray], listed: int | None) -> None:
    rows = [(video, str(list(array.shape)), array.dtype) for video, array in stored.items()]
    _print_table([("video", "shape", "dtype"), *rows], listed)


def _print_widths(stored: Mapping[str, StoredArray], path: Path) -> None:
    """Print which numbers of channels would fit, and how to go on with them."""
    lengths = Counter(length for array in stored.values() for length in set(array.shape) - {1})
    most = max(lengths.values(), default=0)
    widths = sorted(length for length in lengths if lengths[length] == most > len(stored) / 2)
    if widths:
        found = " or ".join(map(str, widths))
        print(f"\n{found} is the length of an axis in {most} of {_count(len(stored))}. If that is the channels:")
    else:
        print(f"\nno axis has the same length in most of the {_count(len(stored))}: they do not belong together")
    for width in widths:
        presets = [f"--preset {name}" for name, config in SYSTEM.items() if config.model.feature_dim == width]
        for flag in presets or [f"--feature-dim {width}"]:
            print(f"  python -m bcnet_fast.inspect {shlex.quote(str(path))} {flag}")


def _print_videos(reports: Sequence[VideoReport], listed: int | None) -> None:
    rows = [("video", "rows", "snippets", "stored as", "s/row", "implied s", "stated s", "windows", "remarks")]
    for report in reports:
        times = _number(report.row_s, 4), _number(report.implied_s, 1), _number(report.stated_s, 1)
        counts = str(report.rows), str(report.snippets)
        rows.append((report.video, *counts, report.stored, *times, str(report.windows), "; ".join(report.remarks)))
    _print_table(rows, listed)


def _print_summary(reports: Sequence[VideoReport]) -> None:
    stored = Counter(report.stored for report in reports)
    rows, snippets = _span((r.rows for r in reports), 0), _span((r.snippets for r in reports), 0)
    implied, stated = _span((r.implied_s for r in reports), 1, " s"), _span((r.stated_s for r in reports), 1, " s")
    compared = [r for r in reports if r.implied_s is not None and r.stated_s is not None]
    differ = f"; they differ in {sum(r.differs for r in compared)} of {_count(len(compared))}" if compared else ""
    print(f"\n{_count(len(reports))} can be used")
    print(f"  rows: {rows}; snippets: {snippets}; windows in all: {sum(r.windows for r in reports)}")
    print(f"  stored as: {', '.join(f'{kind} ({_count(count)})' for kind, count in stored.most_common())}")
    print(f"  NaN or infinite values: none; all-zero snippets: {sum(r.zero_rows for r in reports)}")
    print(f"  time of a row: {_span((r.row_s for r in reports), 4, ' s')}")
    print(f"  duration by rows: {implied}; stated: {stated}{differ}")
    print(f"  remarks on: {_count(sum(bool(r.remarks) for r in reports))}")


def _print_table_use(videos: Sequence[str], resolver: TimeResolver, table: str) -> None:
    matched = resolver.matched(videos)
    missing = sorted(set(videos) - set(matched))
    without = f", not {_some(missing)}" if missing else ""
    unused = len(resolver.table) - len(matched)
    others = f"; has {unused} more, without features here" if unused else ""
    print(f"  {table}: knows {len(matched)} of {_count(len(videos))}{without}{others}")


def _print_errors(errors: Sequence[InputError], *, usable: bool) -> None:
    """List the errors: part of the report when some videos are usable, else why the command fails (exit code 2)."""
    file = sys.stdout if usable else sys.stderr
    if errors:
        print(f"\n{_count(len(errors))} cannot be used", file=file)
    for error in errors:
        print(f"  {error}", file=file)


def _print_flags(
    reports: Sequence[VideoReport], resolver: TimeResolver, args: argparse.Namespace, feature_dim: int
) -> None:
    config = resolver.config
    mended, notes = suggest(reports, resolver)
    system = {"--checkpoint": args.checkpoint} if args.checkpoint else {"--preset": config.preset}
    flags = {"--features": args.path, **system}
    for name in ("every", "fps", "stride", "offset", "duration", "times"):
        value = getattr(args, name)
        if value is not None:
            flags[f"--{name}"] = value if isinstance(value, str) else f"{value:g}"
    flags.update(mended)
    try:
        for report in reports:
            resolver.resolve(report.video, report.snippets)
    except InputError as error:
        notes.append(f"still missing: {error}")
    if feature_dim != config.model.feature_dim:
        flags["--feature-dim"] = str(feature_dim)
        trained = f"useful output needs a --checkpoint trained on {feature_dim} channels"
        notes.append(f"these flags run random weights; {trained}")
    print("\nflags for python -m bcnet_fast.infer")
    print("  " + " ".join(f"{flag} {shlex.quote(value)}" for flag, value in flags.items()))
    for note in notes:
        print(f"  note: {note}")


def _print_table(rows: Sequence[Sequence[str]], listed: int | None) -> None:
    shown = rows if listed is None else rows[: listed + 1]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    print()
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(shown) < len(rows):
        print(f"... and {len(rows) - len(shown)} more (--all lists them)")


def _span(values: Iterable[float | None], digits: int, unit: str = "") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not known"
    low, high = _number(min(known), digits), _number(max(known), digits)
    return (low if low == high else f"{low} to {high}") + unit


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _count(videos: int) -> str:
    return f"{videos} video{'' if videos == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _named(reports: Sequence[VideoReport]) -> str:
    return f"{_count(len(reports))} ({_some([report.video for report in reports])})"


if __name__ == "__main__":
    run(main)
