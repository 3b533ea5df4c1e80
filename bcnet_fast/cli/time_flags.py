"""Flags that select rows of feature files and place them in time."""

from __future__ import annotations

import argparse
from typing import Any

from ..data.timing import TimeFlags, TimeOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select rows and place them in time, the same in every command."""
    group = parser.add_argument_group("rows and time (a flag overrides --times, which overrides the preset)")
    group.add_argument(
        "--every", type=int, metavar="N", help="use every N-th row of the files (default: 1; two-stream layout: 5)"
    )
    group.add_argument("--fps", type=float, metavar="F", help="frames per second, for all videos")
    group.add_argument(
        "--stride", type=float, metavar="S", help="video frames between consecutive rows of the feature files"
    )
    group.add_argument("--offset", type=float, metavar="O", help="video frame at which the first row starts")
    group.add_argument("--duration", type=float, metavar="D", help="seconds, for all videos (useful for a single one)")
    group.add_argument(
        "--times",
        metavar="FILE",
        help="times per video: an annotation file, or a CSV with the column video and any of fps, stride, offset, "
        "duration, frames",
    )


def take_options(values: dict[str, Any]) -> TimeOptions:
    """Remove the flags of `add_arguments` from parsed values and return them. InputError: a flag is out of range."""
    flags = TimeFlags(**{name: values.pop(name) for name in ("fps", "stride", "offset", "duration")})
    return TimeOptions(flags, values.pop("every"), values.pop("times"))
