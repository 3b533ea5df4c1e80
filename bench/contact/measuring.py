"""Shared by the steps: precisions, errors, comparison of bits, times, and predicted floors of a device."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import roofline
import torch
from torch import Tensor

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def precisions(context: Any, *names: str) -> list[str]:
    """Those of `names` that the device multiplies in: TF32 and bfloat16 need sm_80."""
    if context.device == "cpu":
        return [name for name in names if name != "tf32"]
    if torch.cuda.get_device_capability() < (8, 0):
        context.note("The device is older than sm_80: it has neither TF32 nor products in bfloat16.")
        return [name for name in names if name not in ("tf32", "bf16")]
    return list(names)


def error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest of ||found - exact|| / ||exact|| over pairs of tensors."""
    pairs = zip(found, exact, strict=True)
    return max(float((f.double() - e).norm() / (e.norm() or 1.0)) for f, e in pairs)


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether all bits agree; NaN agrees with nothing."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def on_side_stream(call: Callable[[], Any], device: str) -> Any:
    """The result of the call on a stream of its own, with the present stream waiting for it."""
    if device != "cuda":
        return call()
    stream, present = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        result = call()
    present.wait_stream(stream)
    torch.cuda.synchronize()
    return result


@contextlib.contextmanager
def poisoned_memory(device: str) -> Iterator[None]:
    """Inside the block, fresh memory holds NaN and the largest integers, so that unwritten memory shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        if not bool(torch.empty(8, device=device).isnan().all()):
            raise RuntimeError("torch.empty is not filled with NaN under deterministic algorithms")
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of the call, which has run before, and the tensors that each replay writes."""
    stream, present = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        call()
    present.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = call()
    return graph, result


def milliseconds(call: Callable[[], Any], device: str, seconds: float = 0.15, most: int = 200) -> float:
    """Median time of a call that has run before: by events on the device around short series, else by the clock."""
    call()
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    once = max(1e-6, time.perf_counter() - started)
    rounds = 5
    repeats = max(1, min(most, int(seconds / once / rounds)))
    times = []
    for _ in range(rounds):
        times.append(_series(call, device, repeats) / repeats)
    return statistics.median(times)


def _series(call: Callable[[], Any], device: str, repeats: int) -> float:
    if device != "cuda":
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        return 1e3 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def predicted_ms(device: str, work: roofline.Work, precision: str) -> float | None:
    """The floor of some work by the published rates of this device; None where there are none."""
    rates = roofline.known_gpu(torch.cuda.get_device_name()) if device == "cuda" else None
    if rates is None or precision == "fp64":
        return None
    return roofline.gpu_floor_us(work, rates, "fp16" if precision == "bf16" else precision) / 1e3
