"""Flags of `infer` for one of several runs that share an archive."""

from __future__ import annotations

import argparse

from ..errors import InputError
from ..inference.run import InferOptions
from ..results.parts import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of shards and parts."""
    group = parser.add_argument_group("several runs for one archive (docs/how_to/archives.md)")
    group.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th share of N, from 0, and write parts into the folder --output; merge joins them. auto: "
        "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, or RANK and WORLD_SIZE",
    )
    group.add_argument(
        "--part-format", choices=FORMATS, default=InferOptions.part_format, help="of parts; parquet needs pyarrow"
    )
    group.add_argument(
        "--part-videos",
        type=int,
        default=InferOptions.part_videos,
        metavar="N",
        help="most videos of a part; it is also written after a minute and after 200,000 proposals",
    )
    group.add_argument(
        "--retry-failed", action="store_true", help="with --resume, do videos that have failed once more"
    )


def check(options: InferOptions) -> None:
    """InputError: a flag needs another one."""
    if not options.shard:
        for name in ("part_format", "part_videos", "retry_failed"):
            if getattr(options, name) != getattr(InferOptions, name):
                raise InputError(f"--{name.replace('_', '-')} needs --shard")
        return
    for name in ("page", "refine"):
        if getattr(options, name):
            raise InputError(f"--{name} needs the results of all shards, expected no --shard; see merge")
    if options.retry_failed and not options.resume:
        raise InputError("--retry-failed needs --resume")
