"""Flags of `infer` for one of several runs that share an archive."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import InputError
from ..inference.options import InferOptions
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

    ray = parser.add_argument_group("all cores, or a Ray cluster (docs/how_to/archives.md)")
    ray.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="do all shards on all cores of this machine, or on the Ray cluster HOST:PORT (auto: that of this "
        "machine), and write parts into the folder --output; --workers is then the number of processes with a network, "
        "0 for as many as there is room for",
    )
    ray.add_argument(
        "--cpus-per-worker",
        type=int,
        default=InferOptions.cpus_per_worker,
        metavar="N",
        help="CPUs that Ray reserves for each, and its threads",
    )
    ray.add_argument(
        "--gpus-per-worker",
        type=float,
        default=InferOptions.gpus_per_worker,
        metavar="F",
        help="GPUs of each, such as 1 or 0.25; 0: they compute on CPUs",
    )


def check(options: InferOptions) -> None:
    """InputError: a flag needs another one, or excludes it."""
    if options.shard and options.ray:
        raise InputError("--ray and --shard exclude each other, expected one of them")
    _require_flag(options, ("shard", "ray"), ("part_format", "part_videos", "retry_failed"))
    _require_flag(options, ("ray",), ("cpus_per_worker", "gpus_per_worker"))
    if options.ray:
        _check_ray(options)
    if options.shard or options.ray:
        flag = "ray" if options.ray else "shard"
        for name in ("page", "refine"):
            if getattr(options, name):
                raise InputError(f"--{name} needs the results of all shards, expected no --{flag}; see merge")
        if options.retry_failed and not options.resume:
            raise InputError("--retry-failed needs --resume")


def _require_flag(options: InferOptions, needed: Sequence[str], names: Sequence[str]) -> None:
    if not any(getattr(options, flag) for flag in needed):
        for name in names:
            if getattr(options, name) != getattr(InferOptions, name):
                raise InputError(f"--{name.replace('_', '-')} needs {' or '.join(f'--{flag}' for flag in needed)}")


def _check_ray(options: InferOptions) -> None:
    if options.profile or options.trace:
        raise InputError("--profile and --trace time one process, expected no --ray")
    if options.device.startswith("cuda") and not options.gpus_per_worker:
        raise InputError(f"--device is {options.device} with --ray, expected --gpus-per-worker too")
