"""Flags that limit what reading a feature file may do."""

from __future__ import annotations

import argparse
from typing import Any

from ..data.source import ReadLimits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that limit reading, the same in every command."""
    group = parser.add_argument_group("limits of reading (docs/reliability.md)")
    group.add_argument(
        "--max-video-gib",
        type=float,
        default=ReadLimits.max_video_gib,
        metavar="G",
        help="largest features of one video in memory, GiB; a small file can declare any size",
    )
    group.add_argument(
        "--trust-hdf5-links",
        action="store_true",
        help="read HDF5 data sets whose values are in other files or other data sets",
    )


def take_limits(values: dict[str, Any]) -> ReadLimits:
    """Remove the flags of `add_arguments` from parsed values and return them. InputError: a flag is out of range."""
    return ReadLimits(values.pop("max_video_gib"), values.pop("trust_hdf5_links"))
