"""A command's network on idle cores and beside busy processes, with the threads that it takes by itself and others.

    python bench/contended.py --busy 0 [--json FILE]
    python bench/contended.py --busy 4 [--json FILE]

Each row is one process that loads a network, runs one batch, and then is timed over a fixed number of windows:

    default    as the commands start: threads by load, and waiting threads that soon sleep
    before     as PyTorch starts: a thread for each core, and waiting threads that spin
    1 thread   OMP_NUM_THREADS=1
    later      as default, but the busy processes start after the first batch

The file keeps the rows of the other numbers of busy processes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"demo": 400, "thumos14": 2}  # windows that are timed
VARIANTS: dict[str, dict[str, str]] = {
    "default": {},
    "before": {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(os.cpu_count())},
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "later": {},
}
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def child(name: str) -> None:
    """Print threads and seconds of a network; between the first batch and the others, wait for a line."""
    threads = importlib.import_module("bcnet_fast.cli.threads")  # before torch, as in a command
    import torch

    import bcnet_fast

    with threads.fair_share():
        model = bcnet_fast.load(name, device="cpu")
        config = model.config.model
        window = torch.randn(1, config.feature_dim, config.window, generator=torch.Generator().manual_seed(0))
        model(window)
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        for _ in range(NETWORKS[name]):
            model(window)
        print(json.dumps({"threads": torch.get_num_threads(), "seconds": time.perf_counter() - began}), flush=True)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """That many processes that compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def timed(name: str, variant: str, count: int) -> dict[str, Any]:
    """Threads and seconds of one process."""
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS} | VARIANTS[variant]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, __file__, "--child", name]
    with contextlib.ExitStack() as stack:
        if variant != "later":
            stack.enter_context(busy(count))
        process = stack.enter_context(
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        if variant == "later":
            stack.enter_context(busy(count))
        process.stdin.write("\n")
        process.stdin.flush()
        found = json.loads(process.stdout.readline())
    return found


def main() -> int:
    from support.environment import begin

    from bcnet_fast.cli.parser import Parser

    parser = Parser(description=__doc__)
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes that compute beside")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="processes of each kind; the median counts")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    facts = begin(None, [options.json]) | {"cores": os.cpu_count()}
    rows = []
    for name in NETWORKS:
        variants = [variant for variant in VARIANTS if options.busy or variant != "later"]
        found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
        for _ in range(options.runs):
            for variant in variants:
                found[variant].append(timed(name, variant, options.busy))
        for variant, runs in found.items():
            seconds = round(statistics.median(run["seconds"] for run in runs), 3)
            rows.append(
                {
                    "network": name,
                    "windows": NETWORKS[name],
                    "busy": options.busy,
                    "variant": variant,
                    "threads": sorted({run["threads"] for run in runs}),
                    "seconds": seconds,
                    "runs": [round(run["seconds"], 3) for run in runs],
                }
            )
            print(rows[-1], flush=True)
    if options.json:
        path = Path(options.json)
        before = json.loads(path.read_text())["rows"] if path.exists() else []
        rows += [row for row in before if row["busy"] != options.busy]
        rows.sort(key=lambda row: (row["network"], row["busy"]))
        path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        from bcnet_fast.cli.parser import run

        run(main)
