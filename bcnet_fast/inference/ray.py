"""Inference on a Ray cluster, or on all cores of one machine. Needs the extra `ray`.

`infer_ray` gives shards to workers. Each worker writes the parts of its shards, as `infer --shard` does, so results,
kills and resuming work as in `inference.shards`. Ray only starts the workers and reports which have ended.
`predict` is for pipelines of Ray Data, which read and write by themselves.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..data.shard import Shard
from ..errors import InputError
from ..progress import progress
from ..results.parts import Header, Part, numbers_of, parts_in
from ..storage.address import Address, Place, place_of
from ..storage.lock import Lock
from ..storage.optional import require_pyarrow
from ..storage.remote import remove
from ..text import count
from .options import InferOptions
from .ray_cluster import LOCAL, cluster, most_workers, require_address, require_ray
from .ray_dataset import predict
from .ray_pool import Pool
from .ray_worker import Job
from .run import InferReport, Inputs, held_features, open_inputs
from .shards import about_run, require_folder

__all__ = ["RayRun", "infer_ray", "predict", "start"]

_LOCK = ".ray.lock"  # in the folder of the parts
_SHARDS_A_WORKER = 8  # at least, so that all end at about the same time


class RayRun:
    """A run that is prepared, with workers that load the network; `start` makes one.

    options: of the run.
    """

    def __init__(self, options: InferOptions, inputs: Inputs, pool: Pool, shards: int, workers: int) -> None:
        self.options, self._inputs, self.pool, self._shards, self._workers = options, inputs, pool, shards, workers

    def finish(self, started: float) -> InferReport:
        """Do the remaining work. started: start time by `time.perf_counter`. InputError: as in `infer_ray`."""
        options, pool = self.options, self.pool
        total = len(self._inputs.archive.ids) + len(self._inputs.unusable)
        work = pool.run([Shard(index, self._shards) for index in range(self._shards)])
        try:
            for _ in progress(work, total=total, what="videos", at=lambda: pool.finished):
                pass
        except KeyboardInterrupt:
            finished = count(pool.stop(), "finished video")
            print(f"{options.output} has {finished}; continue with --resume", file=sys.stderr)
            raise
        except InputError:
            pool.stop()
            raise
        if pool.changed:
            changed = count(pool.changed, "video")
            print(
                f"note: {changed} with other feature files than before in {options.features}: done again",
                file=sys.stderr,
            )
        reports = pool.reports.values()
        return InferReport(
            options.output,
            sum(report.videos for report in reports),
            sum(report.windows for report in reports),
            sum(report.proposals for report in reports),
            time.perf_counter() - started,
            f"{next(iter(reports)).details}, {count(self._workers, 'Ray worker')}",
            pool.failures(),
            None,
        )


def infer_ray(options: InferOptions) -> InferReport:
    """Write the proposals of all videos as parts into the folder `options.output`, see `infer_shard`.

    `options.ray` is the address of a cluster, see `cluster`. `options.workers` is the number of processes with a
    network; 0 is as many as the cluster has room for.

    InputError: Ray is not installed or cannot be reached, a file or option cannot be used, a worker does not see the
    files, or another run writes to the folder.
    """
    started = time.perf_counter()
    with start(options) as run:
        return run.finish(started)


@contextlib.contextmanager
def start(options: InferOptions) -> Iterator[RayRun]:
    """Start what `infer_ray` needs and wait until one worker has loaded its network; all of it ends with the block.

    InputError: as in `infer_ray`.
    """
    require_folder(options)
    require_address(options.ray or LOCAL)
    require_ray()
    if options.part_format == "parquet":
        require_pyarrow()
    device = "cpu" if options.device == "auto" and not options.gpus_per_worker else options.device
    inner = replace(options, resume=True, overwrite=False, workers=0, device=device)
    inputs = open_inputs(inner)
    about = about_run(inner, inputs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_held_folder(options.output))
        stack.enter_context(held_features(options))
        existing = _existing(options, about)
        cpus, gpus = options.cpus_per_worker, options.gpus_per_worker
        ray = stack.enter_context(cluster(options.ray or LOCAL, options.workers * cpus or None))
        _require_gpus(ray, options)
        workers = options.workers or most_workers(ray, cpus, gpus)
        # Video files belong to a network, which each worker opens.
        job = Job(inner, None if options.videos else inputs, about, os.getcwd(), _LOCK)
        pool = Pool(ray, job, workers)
        stack.callback(pool.close)
        pool.wait()
        if options.overwrite:
            for path in existing:
                remove(path) if isinstance(path, Address) else path.unlink()
            existing = []
        yield RayRun(options, inputs, pool, _shards(options, existing, len(inputs.archive.ids), workers), workers)


@contextlib.contextmanager
def _held_folder(output: str) -> Iterator[None]:
    """Lock the folder of the parts for this driver; it is created if missing. InputError: another driver has it.

    Addresses have no locks; there, the parts of each writer have names of their own.
    """
    folder = place_of(output)
    if isinstance(folder, Address):
        yield
        return
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / _LOCK, output)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release(remove=True)
        if is_new:
            with contextlib.suppress(OSError):  # it has parts
                folder.rmdir()


def _existing(options: InferOptions, about: Header) -> list[Place]:
    """The parts of earlier runs. InputError: they are of another run, or no flag says what to do with them."""
    paths = parts_in(options.output)
    if paths and not (options.resume or options.overwrite):
        raise InputError(
            f"{options.output} has parts such as {paths[0].name}; "
            "continue with --resume, or replace them with --overwrite"
        )
    if options.resume:
        parts = [Part(path) for path in paths]
        for part in parts:
            part.require_run(about)
        videos = sum(part.header.videos for part in parts)
        print(f"resumed: {count(len(parts), 'part')} with {count(videos, 'video')}")
    return paths


def _shards(options: InferOptions, existing: Sequence[Place], videos: int, workers: int) -> int:
    """Number of shards. A resumed run keeps the number if its workers have enough: parts belong to these shards."""
    known = max((numbers_of(path)[1] for path in existing), default=0)
    if known >= workers:
        return known
    return min(max(_SHARDS_A_WORKER * workers, math.ceil(videos / options.part_videos)), videos)


def _require_gpus(ray: Any, options: InferOptions) -> None:
    """InputError: a cluster that was started here has no GPU to lend."""
    has = ray.cluster_resources().get("GPU", 0)
    wanted = options.gpus_per_worker
    if wanted and not has and options.ray == LOCAL:
        raise InputError(f"--gpus-per-worker is {wanted:g}, but this machine has no GPU; expected 0")
    if has and not wanted and options.device == "auto":
        print(f"note: the workers compute on CPUs; --gpus-per-worker lends them the {has:g} GPUs", file=sys.stderr)
