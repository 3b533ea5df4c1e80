"""`python -m bcnet_fast.inspect PATH`: what feature files contain, and which flags they need."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from .bounds import MOST_PROCESSES
from .cli import read_flags, time_flags
from .cli.parser import Parser, command_parser, program, require_in_bounds, run
from .config import Config
from .data.features import FeatureArchive, StoredArray, iterate, open_features
from .data.inspection import VideoReport, describe, suggest
from .data.source import ReadLimits
from .data.timing import TimeOptions, TimeResolver
from .errors import InputError
from .presets import DATA_SETS, FITTED, PRESET_NAMES, PRESETS
from .progress import progress
from .storage.checkpoint import read_config
from .text import count, shown, some

DESCRIPTION = """\
Show what feature files contain, per video and in total: shape, orientation, dtype, all-zero snippets, seconds per row,
implied and stated duration, number of windows, and likely mistakes. The last lines are the flags for
python -m bcnet_fast.infer, or for python -m bcnet_fast.train where no released network has the width of the features.

Without --preset, --checkpoint and --feature-dim, only shapes are read and possible widths listed. Features of extract
state their width. That of others is, with --times or --preset small, the length that all arrays share, where there is
only one.
Exit code: 0 all videos are usable, 1 some are not (listed), 2 none is."""
DEFAULT_PRESET = "thumos14"
SYSTEM = PRESETS["bcnet"]  # the other systems read features in the same way
LISTED = 10  # videos with a row of their own


@dataclass(frozen=True)
class InspectOptions:
    """Options of `inspect`. A field has the meaning of the argument or flag with the same name."""

    path: str
    preset: str | None = None
    checkpoint: str | None = None
    feature_dim: int | None = None
    videos: int | None = None
    all: bool = False
    workers: int = 0
    time: TimeOptions = field(default_factory=TimeOptions)
    limits: ReadLimits = field(default_factory=ReadLimits)


def build_parser() -> Parser:
    parser = command_parser("inspect", DESCRIPTION, ("path", "checkpoint", "times"))
    parser.add_argument("path", metavar="PATH", help="folder, file or address of features (docs/formats.md)")
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--preset", choices=PRESET_NAMES, help="preset that will use the features")
    system.add_argument("--checkpoint", metavar="FILE", help="checkpoint that will use the features")
    parser.add_argument("--feature-dim", type=int, metavar="C", help="channels per row (default: those of the preset)")
    parser.add_argument("--videos", type=int, metavar="N", help="read only the first N videos (default: all)")
    parser.add_argument("--all", action="store_true", help=f"list every video, not only the first {LISTED}")
    parser.add_argument(
        "--workers",
        type=int,
        default=InspectOptions.workers,
        metavar="N",
        help="processes that read features (0: only this one)",
    )
    time_flags.add_arguments(parser)
    read_flags.add_arguments(parser)
    return parser


def parse(argv: list[str] | None) -> InspectOptions:
    """Parse flags to options. InputError: a flag is out of range."""
    values = vars(build_parser().parse_args(argv))
    options = InspectOptions(time=time_flags.take_options(values), limits=read_flags.take_limits(values), **values)
    require_in_bounds(options, videos=1, workers=(0, MOST_PROCESSES), feature_dim=1)
    return options


def main(argv: list[str] | None = None) -> int:
    return inspect(parse(argv))


def inspect(options: InspectOptions) -> int:
    """Print the report and return the exit code."""
    config = read_config(options.checkpoint) if options.checkpoint else SYSTEM[options.preset or DEFAULT_PRESET]
    feature_dim = options.feature_dim
    if options.checkpoint and feature_dim not in (None, config.model.feature_dim):
        raise InputError(
            f"--feature-dim is {feature_dim}, expected {config.model.feature_dim} to fit {options.checkpoint}"
        )
    if feature_dim is None and (options.checkpoint or options.preset not in (None, FITTED)):
        feature_dim = config.model.feature_dim
    archive = _open(options, config, feature_dim)
    resolver = options.time.resolver(config, archive)
    resolver.require_match(archive.ids, options.path, options.time.times)
    videos = archive.ids[: options.videos]
    part = f", reading the first {len(videos)}" if len(videos) < len(archive.ids) else ""
    print(f"{options.path}: {archive.kind}, {count(len(archive.ids), 'video')}{part}")
    if feature_dim is None:
        feature_dim = _width_of_sidecars(archive, videos)
        archive = _open(options, config, feature_dim)
    if feature_dim is None:
        stored, errors = _stored(archive, videos)
        common = set.intersection(*(set(array.shape) for array in stored.values())) - {1} if stored else set()
        if len(common) != 1 or (options.time.times is None and options.preset is None):
            return _list_shapes(options, archive, resolver, stored, errors)
        (feature_dim,) = common
        archive = _open(options, config, feature_dim)
    if not (options.checkpoint or options.preset) and feature_dim != config.model.feature_dim:
        config = SYSTEM[FITTED]
        resolver = options.time.resolver(config, archive)

    thinned = f", one of every {archive.every} rows used" if archive.every > 1 else ""
    chosen = "" if options.preset or options.checkpoint else " (default)"
    print(f"preset {config.preset}{chosen}, {feature_dim} channels{thinned}")
    reports: list[VideoReport] = []
    errors: list[InputError] = []
    for video, loaded in progress(iterate(archive, videos, workers=options.workers), len(videos), "videos"):
        if isinstance(loaded, InputError):
            errors.append(loaded)
        else:
            reports.append(describe(video, loaded, resolver))
    if not reports:
        _print_errors(errors, usable=False)
        stored, _ = _stored(archive, videos)
        if any(feature_dim not in array.shape for array in stored.values()):
            _print_shapes(stored, LISTED)
            _print_widths(stored, options)
        return 2
    _print_videos(reports, None if options.all else LISTED)
    _print_summary(reports, config.model.window)
    if options.time.times:
        _print_table_use(archive.ids, resolver, options.time.times)
    _print_errors(errors, usable=True)
    _print_flags(reports, resolver, options, feature_dim)
    return 1 if errors else 0


def _width_of_sidecars(archive: FeatureArchive, videos: Sequence[str]) -> int | None:
    """The width that `extract` stated for all of the videos; None: it made none of them, or of several widths."""
    widths = set()
    for video in videos:
        with contextlib.suppress(InputError):
            widths.add(side.recipe.width if (side := archive.sidecar(video)) else None)
    return widths.pop() if len(widths) == 1 else None


def _open(options: InspectOptions, config: Config, feature_dim: int | None) -> FeatureArchive:
    every, strip_prefix = options.time.every_for(config), config.data.strip_prefix
    return open_features(
        options.path, feature_dim=feature_dim, every=every, strip_prefix=strip_prefix, limits=options.limits
    )


def _list_shapes(
    options: InspectOptions,
    archive: FeatureArchive,
    resolver: TimeResolver,
    stored: Mapping[str, StoredArray],
    errors: Sequence[InputError],
) -> int:
    """Print what is known without a width, and return the exit code."""
    if stored:
        _print_shapes(stored, None if options.all else LISTED)
    _print_errors(errors, usable=bool(stored))
    if stored:
        if options.time.times:
            _print_table_use(archive.ids, resolver, options.time.times)
        _print_widths(stored, options)
    return 0 if not errors else 1 if stored else 2


def _stored(archive: FeatureArchive, videos: Sequence[str]) -> tuple[dict[str, StoredArray], list[InputError]]:
    """Arrays on disk by video, of any width, and the errors of arrays that are empty or cannot be opened."""
    stored: dict[str, StoredArray] = {}
    errors: list[InputError] = []
    for video in videos:
        try:
            array = archive.stored(video)
            if 0 in array.shape:
                raise InputError(f"{array.path} has shape {list(array.shape)}, expected at least one row and channel")
        except InputError as error:
            errors.append(error)
        else:
            stored[video] = array
    return stored, errors


def _print_shapes(stored: Mapping[str, StoredArray], listed: int | None) -> None:
    rows = [(video, str(list(array.shape)), array.dtype) for video, array in stored.items()]
    _print_table([("video", "shape", "dtype"), *rows], listed)


def _print_widths(stored: Mapping[str, StoredArray], options: InspectOptions) -> None:
    """Print possible numbers of channels, and the commands to continue with."""
    lengths = Counter(length for array in stored.values() for length in set(array.shape) - {1})
    most = max(lengths.values(), default=0)
    widths = sorted(length for length in lengths if lengths[length] == most > len(stored) / 2)
    if widths:
        found = " or ".join(map(str, widths))
        print(f"\n{most} of {count(len(stored), 'video')} have an axis of length {found}. If it holds the channels:")
    else:
        print(
            f"\nno axis has the same length in most of the {count(len(stored), 'video')}: they do not belong together"
        )
    times = _as_text(_time_flags(options))
    for width in widths:
        presets = [f"--preset {name}" for name in DATA_SETS if SYSTEM[name].model.feature_dim == width]
        stated = f"--preset {FITTED} " if options.preset == FITTED else ""
        for flag in (not stated and presets) or [f"{stated}--feature-dim {width}"]:
            print(f"  {program('inspect')} {shlex.quote(str(options.path))} {flag} {times}".rstrip())


def _time_flags(options: InspectOptions) -> dict[str, str]:
    """The flags of rows and time that were stated, for a command to continue with."""
    stated = {"every": options.time.every, **asdict(options.time.flags), "times": options.time.times}
    return {
        f"--{name}": value if isinstance(value, str) else f"{value:g}"
        for name, value in stated.items()
        if value is not None
    }


def _as_text(flags: Mapping[str, str]) -> str:
    return " ".join(f"{flag} {shlex.quote(str(value))}" for flag, value in flags.items())


def _print_videos(reports: Sequence[VideoReport], listed: int | None) -> None:
    rows = [("video", "rows", "snippets", "stored as", "s/row", "implied s", "stated s", "windows", "remarks")]
    for report in reports:
        times = _number(report.row_s, 4), _number(report.implied_s, 1), _number(report.stated_s, 1)
        counts = str(report.rows), str(report.snippets)
        rows.append((report.video, *counts, report.stored, *times, str(report.windows), "; ".join(report.remarks)))
    _print_table(rows, listed)


def _print_summary(reports: Sequence[VideoReport], window: int) -> None:
    stored = Counter(report.stored for report in reports)
    rows, snippets = _span((r.rows for r in reports), 0), _span((r.snippets for r in reports), 0)
    implied, stated = _span((r.implied_s for r in reports), 1, " s"), _span((r.stated_s for r in reports), 1, " s")
    compared = [r for r in reports if r.implied_s is not None and r.stated_s is not None]
    differ = (
        f"; they differ in {sum(r.differs for r in compared)} of {count(len(compared), 'video')}" if compared else ""
    )
    print(f"\nusable: {count(len(reports), 'video')}")
    windows = f"windows in total: {sum(r.windows for r in reports)}, of {window} snippets"
    print(f"  rows: {rows}; snippets: {snippets}; {windows}")
    kinds = [f"{kind} ({count(number, 'video')})" for kind, number in stored.most_common()]
    print(f"  stored as: {', '.join(kinds)}")
    print(f"  NaN or infinite values: none; all-zero snippets: {sum(r.zero_rows for r in reports)}")
    print(f"  time per row: {_span((r.row_s for r in reports), 4, ' s')}")
    print(f"  duration by rows: {implied}; stated: {stated}{differ}")
    print(f"  with remarks: {count(sum(bool(r.remarks) for r in reports), 'video')}")


def _print_table_use(videos: Sequence[str], resolver: TimeResolver, table: str) -> None:
    matched = resolver.matched(videos)
    missing = sorted(set(videos) - set(matched))
    without = f", not {some(missing)}" if missing else ""
    unused = len(resolver.table) - len(matched)
    others = f"; it has {unused} more, without features" if unused else ""
    print(f"  {table}: has {len(matched)} of {count(len(videos), 'video')}{without}{others}")


def _print_errors(errors: Sequence[InputError], *, usable: bool) -> None:
    """List the errors: in the report if some videos are usable, else on stderr as the reason for exit code 2."""
    file = sys.stdout if usable else sys.stderr
    if errors:
        print(f"\nunusable: {count(len(errors), 'video')}", file=file)
    for error in errors:
        print(f"  {error}", file=file)


def _print_flags(
    reports: Sequence[VideoReport], resolver: TimeResolver, options: InspectOptions, feature_dim: int
) -> None:
    mended, notes = suggest(reports, resolver)
    try:
        for report in reports:
            resolver.resolve(report.video, report.snippets)
    except InputError as error:
        notes.append(f"missing: {error}")
    times = {**_time_flags(options), **mended}
    if resolver.config.preset == FITTED and not options.checkpoint:
        command, flags = "train", {"--preset": FITTED, "--features": str(options.path), **times}
        if any(video.instances for video in resolver.table.values()):
            flags["--annotations"] = flags.pop("--times")
        else:
            flags["--annotations"] = "FILE"
            notes.append("FILE is your annotation file: docs/formats.md")
        if options.feature_dim:
            flags["--set"] = f"model.feature_dim={feature_dim}"
    else:
        command, flags = "infer", _infer_flags(options, resolver.config, times, feature_dim)
        if "--feature-dim" in flags:
            trained = f"a --checkpoint trained on {feature_dim} channels"
            notes.append(f"these flags run random weights; useful output needs {trained}")
    print(f"\nflags for {program(command)}")
    print("  " + _as_text(flags))
    for note in notes:
        print(f"  note: {note}")


def _infer_flags(options: InspectOptions, config: Config, times: Mapping[str, str], feature_dim: int) -> dict[str, str]:
    system = {"--checkpoint": options.checkpoint} if options.checkpoint else {"--preset": config.preset}
    width = {"--feature-dim": str(feature_dim)} if feature_dim != config.model.feature_dim else {}
    return {"--features": str(options.path), **system, **times, **width}


def _print_table(rows: Sequence[Sequence[str]], listed: int | None) -> None:
    table = [[shown(cell) for cell in row] for row in (rows if listed is None else rows[: listed + 1])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(table) < len(rows):
        print(f"... and {len(rows) - len(table)} more (--all lists them)")


def _span(values: Iterable[float | None], digits: int, unit: str = "") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "unknown"
    low, high = _number(min(known), digits), _number(max(known), digits)
    return (low if low == high else f"{low} to {high}") + unit


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    run(main)
