"""The number of threads on a machine whose cores others use too.

PyTorch starts a thread for each core, and a thread that waits for another one spins. Where one of them waits for a core
that another process uses, the rest spins in vain: two threads on two busy cores may take ten times as long as one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from .errors import BackendError

_STATED = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}  # variables by which a user has decided
_LOAD, _OWN = Path("/proc/loadavg"), Path("/proc/self/task")
_LOOKS, _BETWEEN_S = 3, 0.001
_EVERY_S = 1.0


class _Use:
    """Whether PyTorch's threads have computed in this process, and in the one it was forked from before the fork."""

    here = before_fork = False


def require_usable() -> None:
    """Check that PyTorch can compute with its threads here, and note that it does.

    BackendError: this process was forked after they were used. It has none of them, and would wait for them forever.
    """
    if torch.get_num_threads() > 1:
        if _Use.before_fork:
            raise BackendError(
                "this process was forked after PyTorch had computed with threads, which would never end here; call "
                "torch.set_num_threads(1) first, or start processes by 'spawn'"
            )
        _Use.here = True


def _after_fork() -> None:
    _Use.before_fork = _Use.here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class FairShare:
    """Limit PyTorch to the threads that the scheduler would give cores; restore their number at the end of the block.

    Does nothing if OMP_NUM_THREADS or MKL_NUM_THREADS is set, or if the system does not report running threads. For
    work whose results do not depend on the number of threads.
    """

    def __enter__(self) -> FairShare:
        self._before = torch.get_num_threads()
        self._next = 0.0
        self.renew()
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)

    def renew(self) -> None:
        """Check again what else runs, at most once a second."""
        now = time.monotonic()
        if now >= self._next and not _STATED & os.environ.keys():
            self._next = now + _EVERY_S
            torch.set_num_threads(share(self._before, others_running(), os.cpu_count() or 1))


def share(threads: int, others: int, cores: int) -> int:
    """Cores that a fair scheduler gives to this many threads beside `others`, at least one."""
    return max(1, min(threads, threads * cores // max(threads + others, 1)))


def others_running() -> int:
    """Threads of other processes that run or wait for a core; 0 where the system does not tell."""
    found = []
    for look in range(_LOOKS):
        if look:
            time.sleep(_BETWEEN_S)
        try:
            running = int(_LOAD.read_text().split()[3].partition("/")[0])
            own = sum(_state(task) == "R" for task in _OWN.iterdir())
        except (OSError, ValueError, IndexError):
            return 0
        found.append(running - own)
        if found[-1] <= 0:
            return 0
    return sorted(found)[_LOOKS // 2]


def _state(task: Path) -> str:
    """State of a thread: R if it runs or waits for a core."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # it has ended
        return ""
