"""Seconds of `infer --ray`: the start of Ray, the loading of networks, and the work, apart."""

from __future__ import annotations

import time
from typing import Any

from bcnet_fast.inference.options import InferOptions
from bcnet_fast.inference.ray import start
from bcnet_fast.inference.ray_cluster import LOCAL, cluster


def timed(options: InferOptions) -> dict[str, Any]:
    """Run on a local cluster with `options.workers` workers, all of which are ready before the work begins.

    InputError: as of `infer_ray`.
    """
    began = time.perf_counter()
    with cluster(LOCAL, options.workers * options.cpus_per_worker):
        ray_runs = time.perf_counter()
        with start(options) as run:
            run.pool.wait(options.workers)
            ready = time.perf_counter()
            report = run.finish(ready)
        return {
            "workers": options.workers,
            "start_s": ray_runs - began,
            "load_s": ready - ray_runs,
            "work_s": report.seconds,
            "windows": report.windows,
        }
