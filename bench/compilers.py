"""The native extension as two compilers build it, beside each other.

    python bench/compilers.py [--compiler clang++] [--json FILE] [--threads N]

Builds the extension once more with another compiler (some minutes), and times its functions beside those of the one
that is installed: each in a process of its own, in turn, so that a disturbance of the machine meets both. Sizes are
those of THUMOS14. Medians, and the ratio of both; above 1, the other compiler's code is the slower one.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from support.environment import ROOT, begin
from support.tables import print_table

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError
from bcnet_fast.ops import native
from bcnet_fast.storage.output import write_json

ROUNDS, AT_LEAST = 15, 0.01  # seconds of a round


def build(compiler: str, folder: str) -> str:
    """Build the extension for the CPU with a compiler, and return its path."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder, "--build-temp", f"{folder}/temp"]
    wanted = {"CC": compiler, "CXX": compiler, "BCNET_FAST_NATIVE": "1", "BCNET_FAST_CUDA": "0"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | wanted, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"{compiler} cannot build the extension: {done.stderr.strip().splitlines()[-1]}")
    return str(next(Path(folder, "bcnet_fast").glob("_C.*")))


def cases(module: Any, threads: int) -> dict[str, Callable[[], object]]:
    """Calls of the extension's functions, by what they do."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    x, out, normalized = array(256, 512), np.empty((256, 2048), np.float32), np.empty((256, 512), np.float32)
    weight = array(2048, 512)
    packed, int8 = module.PackedWeight(weight), module.PackedWeight(weight, 1, True)
    sequence, attended = array(256, 512), np.empty((256, 512), np.float32)
    start = np.sort(rng.uniform(0, 2000, 3000))
    segments = np.stack([start, start + rng.exponential(30, 3000)], 1).astype(np.float32)
    scores, offsets = rng.random(3000, np.float32), np.array([0, 3000])
    decay = {"method": 0, "sigma": 0.5, "threshold_low": 0.0, "threshold_high": 0.0, "min_score": 0.001}
    return {
        "linear, float32": partial(module.linear, x, packed, out, threads=threads),
        "linear, int8": partial(module.linear, x, int8, out, threads=threads),
        "attention": partial(
            module.attention, sequence, sequence, [sequence], [attended], heads=8, scale=0.125, threads=threads
        ),
        "add_layer_norm": partial(
            module.add_layer_norm, x, sequence, 1e-5, normalized, np.empty(256, np.float32), threads
        ),
        "soft_nms": partial(
            module.soft_nms,
            segments,
            scores,
            offsets,
            **decay,
            max_proposals=-1,
            length_epsilon=0.0,
            threads=threads,
        ),
    }


def serve(path: str, threads: int, connection: Connection) -> None:
    """Time a case as often as the other process asks; first tell the compiler, and the names of the cases."""
    specification = importlib.util.spec_from_file_location("bcnet_fast._C", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    calls = cases(module, threads)
    connection.send((module.COMPILER, list(calls)))
    while name := connection.recv():
        runs, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < AT_LEAST:
            calls[name]()
            runs += 1
        connection.send(1e3 * spent / runs)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--compiler", metavar="NAME", default="clang++", help="the other one (default clang++)")
    parser.add_argument("--threads", type=int, metavar="N", default=1, help="threads of a function (default 1)")
    parser.add_argument("--json", metavar="FILE", help="write the results")
    args = parser.parse_args(argv)
    if native.module is None:
        raise BackendError(native.reason)
    facts = begin(args.threads, [args.json])
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        connections = []
        for path in (native.module.__file__, build(args.compiler, folder)):
            mine, theirs = context.Pipe()
            context.Process(target=serve, args=(path, args.threads, theirs), daemon=True).start()
            connections.append(mine)
        (compilers, (names, _)) = zip(*(connection.recv() for connection in connections), strict=True)
        times: dict[str, list[list[float]]] = {name: [[], []] for name in names}
        for name in names * (ROUNDS + 1):
            for connection, found in zip(connections, times[name], strict=True):
                connection.send(name)
                found.append(connection.recv())
        for connection in connections:
            connection.send("")
    rows = []
    for name, both in times.items():
        ours, theirs = (statistics.median(found[1:]) for found in both)  # the first round warms up
        rows.append({"function": name, "ms": ours, "other_ms": theirs, "ratio": theirs / ours})
    print_table(["function", *(f"ms by {name}" for name in compilers), "ratio"], [list(row.values()) for row in rows])
    if args.json:
        write_json(args.json, {"environment": facts, "compilers": list(compilers), "rows": rows})
    return 0


if __name__ == "__main__":
    run(main)
