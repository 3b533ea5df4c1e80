"""What the benchmarks share: the machine's record, timing of alternatives side by side, and the CSV of results."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bcnet_fast.doctor import cpu_name  # noqa: E402
from bcnet_fast.errors import InputError  # noqa: E402
from bcnet_fast.ops import native as _native  # noqa: E402
from bcnet_fast.storage.files import require_writable  # noqa: E402

COLUMNS = (
    *("commit", "op", "backend", "mode", "dtype", "shape", "median_ms", "p20_ms", "p80_ms", "peak_mib", "speedup"),
    *("device", "torch", "triton", "cuda", "python", "threads", "date"),
)


class Timing(NamedTuple):
    """Milliseconds of one call over repeated runs."""

    median: float
    p20: float
    p80: float


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def environment(device: str = "cpu") -> dict[str, Any]:
    """The columns of a CSV row that describe the machine and the software."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    commit = _git("rev-parse", "--short", "HEAD")
    return {
        "commit": commit + ("+" if commit and _git("status", "--porcelain") else ""),  # "+": with uncommitted changes
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def begin(threads: int | None, outputs: Iterable[str | os.PathLike | None], device: str = "cpu") -> dict[str, Any]:
    """Check what all benchmarks take, set the number of threads, and print the environment, which is returned.

    InputError for a number of threads below 1 and for outputs (None: not wanted) that cannot be written.
    """
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads}: expected a number above 0")
    for path in filter(None, outputs):
        require_writable(path)
    if threads:
        torch.set_num_threads(threads)
    facts = environment(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value), flush=True)
    return facts


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next call, where it is glibc.

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
    module = _native.module

    def timed(name: str) -> Callable[..., Any]:
        function = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **options)
            record(name, time.perf_counter() - started, *arguments, **options)
            return result

        return call

    plain = {name: getattr(module, name) for name in dir(module)}
    _native.module = SimpleNamespace(**plain | {name: timed(name) for name in names})
    try:
        yield
    finally:
        _native.module = module


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    seconds: float = 2.0,
    most_runs: int = 200,
    least_runs: int = 3,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Time each call on the CPU, one run of each in turn, so that a disturbance of the machine meets all alike.

    A run of a short call is as many of it in a row as take 5 ms: right after another call, it would be timed with cold
    caches. A call is left out of further rounds once it has used `seconds` or made `most_runs`, but not before
    `least_runs`. Without `warm_up`, the first run of a long call counts: for code that has run before.
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


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under a header, numbers to the right."""
    cells = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    for row in [list(header), *cells]:
        print("  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of COLUMNS; what a row lacks stays empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path}")
