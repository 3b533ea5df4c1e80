"""One variant in a process of its own, for bench/latency.py: it starts this file, and reads its output."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bcnet_fast.errors import BackendError
from bcnet_fast.storage.checkpoint import read_config

from .systems import EXPORTS, lengths_of, variants
from .timing import alternate, finished, memory_mib

BENCH = Path(__file__).resolve().parents[1]


def run_apart(**given: Any) -> dict[str, float | None]:
    """Result of `measure` with these arguments in a fresh process. BackendError with the reason if the process dies."""
    paths = filter(None, (str(BENCH), os.environ.get("PYTHONPATH")))
    done = subprocess.run(
        [sys.executable, "-m", "support.process", json.dumps(given)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BackendError(f"{given['name']}: its own process failed: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    name: str, checkpoint: str, features: str, threshold: float | None, device: str, threads: int, alone: bool
) -> dict[str, float | None]:
    """Seconds to load and for the first window, the network's time if `alone`, the most memory taken.

    features: a NumPy file [1, C, T]; to make them takes more memory than they do.
    """
    torch.set_num_threads(threads)
    config, window = read_config(checkpoint), torch.from_numpy(np.load(features))
    if name in EXPORTS:
        importlib.import_module(name)
    before = memory_mib("VmRSS")
    times = [time.perf_counter()]
    system = variants(device, config.model.name)[name](Path(checkpoint), device)
    times.append(time.perf_counter())
    system.set_threshold(threshold)
    network = finished(functools.partial(system.network, window, lengths_of(window)), device)
    network()
    times.append(time.perf_counter())
    alone_ms = alternate({name: network})[name].median if alone else None
    cuda = device == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else memory_mib("VmHWM")
    own = None if cuda or before is None else peak - before
    seconds = {"load_s": times[1] - times[0], "first_s": times[2] - times[1]}
    return {**seconds, "alone_ms": alone_ms, "peak_mib": peak, "own_mib": own}


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
