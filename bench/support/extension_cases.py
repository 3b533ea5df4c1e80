"""Times functions of one build of the native extension, in a process of its own, as another process asks.

    python bench/support/extension_cases.py EXTENSION THREADS

Prints the compiler and the names of the cases as JSON, then the milliseconds of each case that it reads, a line each.
A process can load one build only, so that this one imports nothing of the package.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

AT_LEAST = 0.01  # seconds of calls for one time


def load(path: str) -> Any:
    specification = importlib.util.spec_from_file_location("bcnet_fast._C", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def cases(module: Any, threads: int) -> dict[str, Callable[[], object]]:
    """Calls of the extension's functions, by what they do, of sizes that THUMOS14 has."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def empty(*shape: int) -> np.ndarray:
        return np.empty(shape, np.float32)

    x, residual, weight = array(256, 512), array(256, 512), array(2048, 512)
    packed, int8 = module.PackedWeight(weight), module.PackedWeight(weight, 1, True)
    start = np.sort(rng.uniform(0, 2000, 3000))
    segments = np.stack([start, start + rng.exponential(30, 3000)], 1).astype(np.float32)
    decay = {"method": 0, "sigma": 0.5, "threshold_low": 0.0, "threshold_high": 0.0, "min_score": 0.001}
    decay |= {"max_proposals": -1, "length_epsilon": 0.0}
    return {
        "linear, float32": partial(module.linear, x, packed, empty(256, 2048), threads=threads),
        "linear, int8": partial(module.linear, x, int8, empty(256, 2048), threads=threads),
        "attention": partial(
            module.attention, x, residual, [x], [empty(256, 512)], heads=8, scale=0.125, threads=threads
        ),
        "add_layer_norm": partial(module.add_layer_norm, x, residual, 1e-5, empty(256, 512), empty(256), threads),
        "soft_nms": partial(
            module.soft_nms, segments, rng.random(3000, np.float32), np.array([0, 3000]), **decay, threads=threads
        ),
    }


def main(path: str, threads: str) -> None:
    module = load(path)
    calls = cases(module, int(threads))
    print(json.dumps([module.COMPILER, list(calls)]), flush=True)
    for line in sys.stdin:
        call, runs, started = calls[line.strip()], 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < AT_LEAST:
            call()
            runs += 1
        print(1e3 * spent / runs, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
