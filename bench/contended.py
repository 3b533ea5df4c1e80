"""Networks on idle cores and beside busy processes, with the threads of `infer` and with fixed numbers of them.

    python bench/contended.py [--busy N] [--json FILE]

Processes of three kinds load the networks, and are then timed in turn over the same windows. The first timing is beside
the machine's other work, the second also beside busy processes, which start later. `others` in the file is how many
threads ran or waited for a core at the time, the busy processes included.

    by itself      as `infer`: threads by load, looked at once a second
    all threads    a thread for each core
    1 thread       OMP_NUM_THREADS=1
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from support.environment import begin

import bcnet_fast
from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.threads import FairShare, others_running

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"demo": 10, "thumos14": 1}  # windows that are timed at once
VARIANTS = {
    "by itself": {},
    "all threads": {"OMP_NUM_THREADS": str(os.cpu_count())},
    "1 thread": {"OMP_NUM_THREADS": "1"},
}
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def child(name: str) -> None:
    """Load a network; for each line that is read, time it and print the threads and the seconds."""
    with FairShare() as share:
        model = bcnet_fast.load(name, device="cpu")
        config = model.config.model
        window = torch.randn(1, config.feature_dim, config.window, generator=torch.Generator().manual_seed(0))
        model(window)
        print("ready", flush=True)
        for _ in sys.stdin:
            began = time.perf_counter()
            for _ in range(NETWORKS[name]):
                share.renew()
                model(window)
            print(json.dumps([torch.get_num_threads(), time.perf_counter() - began]), flush=True)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Run `count` processes that compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Timed:
    """A process that times a network."""

    def __init__(self, name: str, variant: str) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in SETTINGS} | VARIANTS[variant]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, __file__, "--child", name]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self._read()

    def __call__(self) -> tuple[int, float]:
        """Threads at the end, and seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        threads, seconds = json.loads(self._read())
        return threads, seconds

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def measure(name: str, count: int, rounds: int, processes: dict[str, Timed]) -> list[dict[str, Any]]:
    """Rows of a network beside `count` busy processes."""
    found: dict[str, list[tuple[int, float]]] = {variant: [] for variant in processes}
    others = []
    with busy(count):
        for _ in range(rounds):
            for variant, timed in processes.items():
                others.append(others_running())
                found[variant].append(timed())
    return [
        {
            "network": name,
            "windows": NETWORKS[name],
            "busy": count,
            "others": int(statistics.median(others)),
            "variant": variant,
            "threads": sorted({threads for threads, _ in of_variant}),
            "seconds": round(statistics.median(seconds for _, seconds in of_variant), 4),
            "rounds": [round(seconds, 4) for _, seconds in of_variant],
        }
        for variant, of_variant in found.items()
    ]


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--busy", type=int, default=4, metavar="N", help="processes that compute beside")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="repetitions; the median counts")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    options = parser.parse_args()
    facts = begin(None, [options.json]) | {"cores": os.cpu_count()}
    rows = []
    for name in NETWORKS:
        processes = {variant: Timed(name, variant) for variant in VARIANTS}
        try:
            for count in (0, options.busy):
                rows += measure(name, count, options.rounds, processes)
                print(*rows[-len(VARIANTS) :], sep="\n", flush=True)
        finally:
            for timed in processes.values():
                timed.process.kill()
                timed.process.wait()
    if options.json:
        Path(options.json).write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        run(main)
