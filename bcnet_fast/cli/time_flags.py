"""The flags that say which rows are taken and when they happen."""

from __future__ import annotations

import argparse

from ..config import Config
from ..data.annotations import read_annotations
from ..data.features import FeatureArchive
from ..data.timing import TimeFlags, TimeResolver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say which rows are taken and when they happen, the same in every command."""
    group = parser.add_argument_group("rows and time (flag before --times before preset)")
    group.add_argument(
        "--every", type=int, metavar="N", help="take every N-th row of the files (default: 1; two-stream layout: 5)"
    )
    group.add_argument("--fps", type=float, metavar="F", help="video frames a second, of all videos")
    group.add_argument(
        "--stride", type=float, metavar="S", help="video frames between neighbouring rows of the feature files"
    )
    group.add_argument("--offset", type=float, metavar="O", help="video frame at which the first row begins")
    group.add_argument("--duration", type=float, metavar="D", help="seconds, of all videos (for a single video)")
    group.add_argument(
        "--times",
        metavar="FILE",
        help="time of each video: a CSV with a column video and any of fps, stride, offset, duration, frames, "
        "or an annotation file",
    )


def time_resolver(args: argparse.Namespace, config: Config, archive: FeatureArchive) -> TimeResolver:
    """What the flags of `add_arguments` say. InputError for a flag out of range or an unusable --times file."""
    flags = TimeFlags(args.fps, args.stride, args.offset, args.duration)
    table = read_annotations(args.times, strip_prefix=config.data.strip_prefix) if args.times else None
    return TimeResolver(config, flags, table, every=archive.every, row_stride=archive.row_stride)
