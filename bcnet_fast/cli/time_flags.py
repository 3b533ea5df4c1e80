"""The flags that say which rows are taken and when they happen."""

from __future__ import annotations

import argparse
from typing import Any

from ..data.timing import TimeFlags, TimeOptions


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


def take_options(values: dict[str, Any]) -> TimeOptions:
    """Take the flags of `add_arguments` out of parsed values. InputError for a flag out of range."""
    flags = TimeFlags(**{name: values.pop(name) for name in ("fps", "stride", "offset", "duration")})
    return TimeOptions(flags, values.pop("every"), values.pop("times"))
