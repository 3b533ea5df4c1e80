"""Threads of a command whose processor cores others may use too.

PyTorch starts as many threads as there are cores, and GCC's OpenMP runtime lets a thread that waits for the others spin
for milliseconds. Where a thread waits for a core that another process uses, the rest of them spins in vain.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SPINS = "10000"  # of a waiting thread before it sleeps: some 50 µs, instead of 300,000
_LOAD = Path("/proc/loadavg")
_LOOKS, _BETWEEN_S = 5, 0.002
# Variables by which a user has decided.
_WAITING = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
_NUMBER = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}


def spin_briefly() -> None:
    """Let threads that wait sleep soon, unless the environment says how they wait.

    The runtime reads this when torch is imported. Later, and for other runtimes than GCC's, it does nothing.
    """
    if "torch" not in sys.modules and not _WAITING & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


@contextlib.contextmanager
def fair_share() -> Iterator[None]:
    """Within it, PyTorch has no more threads than the cores that they would get, unless the environment says how many.

    For work whose results do not depend on the number of threads. It is decided once, on entering.
    """
    import torch  # after `spin_briefly`

    before = torch.get_num_threads()
    if not _NUMBER & os.environ.keys():
        torch.set_num_threads(share(before, others_running(), os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share(threads: int, others: int, cores: int) -> int:
    """Cores that a fair scheduler gives to this many threads beside `others`, at least one."""
    return max(1, min(threads, threads * cores // max(threads + others, 1)))


def others_running() -> int:
    """Threads of other processes that run or wait for a core at this moment; 0 where the system does not tell."""
    found = []
    for look in range(_LOOKS):
        if look:
            time.sleep(_BETWEEN_S)
        try:
            running = int(_LOAD.read_text().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return 0
        found.append(running - 1)  # this thread
    return max(0, sorted(found)[_LOOKS // 2])
