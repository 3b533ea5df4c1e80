"""One replay per precision under PyTorch's profiler: each kernel's calls and time as CSV, and the trace."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .context import Context
from .measuring import precisions, synchronize
from .networks import config_of, features_of, load

SHOWN = 10
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def kernels(context: Context) -> None:
    batch = 2 if context.small else 8
    features = features_of(config_of(context, "bcnet"), batch).to(context.device)
    if context.device == "cuda":
        # The first profile of a process pays for loading the tools.
        context.attempt(
            "first profile", _events, context, lambda: torch.ones(1, device="cuda").sum(), "first", seconds=8
        )
    for precision in precisions(context, "fp16", "bf16", "tf32", "fp32"):
        context.attempt(f"BCNet, {precision}", _profile, context, precision, features, seconds=4)
    context.note(f"BCNet, B = {batch}; the {SHOWN} that take most, all of them in the CSV files.")
    if context.device == "cpu":
        context.note("On a CPU these are operators, whose time has that of the operators they call in it.")


def _profile(context: Context, precision: str, features: torch.Tensor) -> None:
    model = load(context, "bcnet", precision)
    for _ in range(3):
        model(features)
    events = _events(context, lambda: model(features), precision)
    wanted = ON_DEVICE if context.device == "cuda" else ("cpu_op",)
    totals: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") in wanted:
            total = totals.setdefault(event["name"], [0, 0.0])
            total[0] += 1
            total[1] += event.get("dur", 0.0)
    if not totals:
        what = "kernel" if context.device == "cuda" else "operator"
        context.failure(f"{precision}: the profiler saw no {what}")
        return
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    whole = sum(time for _, (_, time) in ordered)
    path = context.out / f"kernels_{precision}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kernel", "calls", "total us"])
        writer.writerows([name, calls, f"{time:.3f}"] for name, (calls, time) in ordered)
    context.file(path)
    calls = sum(count for _, (count, _) in ordered)
    context.row(precision=precision, kernel="(all)", calls=calls, us=whole, **{"share, %": 100.0})
    for name, (count, time) in ordered[:SHOWN]:
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        context.row(
            precision=precision, kernel=shown, calls=count, us=time, **{"share, %": 100 * time / (whole or 1.0)}
        )


def _events(context: Context, call: Callable[[], Any], name: str) -> list[dict[str, Any]]:
    """The events of a call, whose trace is kept compressed."""
    activities = [ProfilerActivity.CPU]
    if context.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize(context.device)
    with profile(activities=activities) as profiled:
        call()
        synchronize(context.device)
    plain = context.work("traces") / f"{name}.json"
    profiled.export_chrome_trace(str(plain))
    text = plain.read_bytes()
    plain.unlink()
    packed = Path(context.out / f"trace_{name}.json.gz")
    if name != "first":
        packed.write_bytes(gzip.compress(text, 6))
        context.file(packed)
    return json.loads(text)["traceEvents"]
