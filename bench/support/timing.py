"""Timing of alternatives side by side, and the memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from bcnet_fast.ops import native


class Timing(NamedTuple):
    """Milliseconds of one call over repeated runs."""

    median: float
    p20: float
    p80: float


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next call; other C libraries are left alone.

    Else large outputs come from the system anew in one call and not in the next, and the first use of new memory takes
    longer than many operators.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        most = 2**31 - 1
        library.mallopt(-1, most)  # M_TRIM_THRESHOLD
        library.mallopt(-3, most)  # M_MMAP_THRESHOLD


@contextlib.contextmanager
def timed_extension(names: Iterable[str], record: Callable[..., None]) -> Iterator[None]:
    """Inside the block, these functions of the native extension tell each call: record(name, seconds, *arguments,
    **options)."""
    module = native.module

    def timed(name: str) -> Callable[..., Any]:
        function = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **options)
            record(name, time.perf_counter() - started, *arguments, **options)
            return result

        return call

    plain = {name: getattr(module, name) for name in dir(module)}
    native.module = SimpleNamespace(**plain | {name: timed(name) for name in names})
    try:
        yield
    finally:
        native.module = module


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    seconds: float = 2.0,
    most_runs: int = 200,
    least_runs: int = 3,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Time each call on the CPU, one run of each in turn, so that a disturbance of the machine meets all alike.

    A run of a short call repeats it for 5 ms: right after another call, it would be timed with cold caches. A call is
    left out of further rounds once it has used `seconds` or made `most_runs`, but not before `least_runs`. Without
    `warm_up`, the first run of a long call counts: for code that has run before.
    """

    def run(call: Callable[[], Any], repeats: int) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        return 1e3 * (time.perf_counter() - started) / repeats

    for call in calls.values() if warm_up else ():
        call()  # The first run loads code and memory.
    first = {name: run(call, 1) for name, call in calls.items()}
    repeats = {name: max(1, int(5 / milliseconds)) for name, milliseconds in first.items()}
    times = {name: [milliseconds] if repeats[name] == 1 else [] for name, milliseconds in first.items()}
    waiting = dict(calls)
    while waiting:
        for name, call in list(waiting.items()):
            times[name].append(run(call, repeats[name]))
            spent = repeats[name] * sum(times[name])
            enough = len(times[name]) >= most_runs or spent >= 1e3 * seconds
            if enough and len(times[name]) >= least_runs:
                del waiting[name]
    return {name: summarize(values) for name, values in times.items()}


def finished(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The call, returning when the device is done."""
    if device == "cpu":
        return call

    def synchronized():
        call()
        torch.cuda.synchronize()

    return synchronized


def summarize(milliseconds: Sequence[float]) -> Timing:
    """Median, 20 % and 80 % point of at least two times."""
    points = statistics.quantiles(milliseconds, n=5, method="inclusive")
    return Timing(statistics.median(milliseconds), points[0], points[3])


def memory_mib(field: str) -> float | None:
    """MiB of a field of this process's memory, as Linux counts them: VmRSS now, VmHWM at most; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) / 1024
