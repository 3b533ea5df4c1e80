"""Where the time of BCNet's network goes on a CPU, kernel by kernel, beside the rate of large products.

    python bench/engine_profile.py [--threads N] [--json FILE]

One THUMOS14 window in float32, two thirds of its anchors matched, with the seeded weights of the tests. Every call of a
kernel is timed inside the network, so that it finds the caches as they are there. A product of 2048 x 2048 matrices is
timed before each window, by the faster of PyTorch's ways; medians of both. Columns:

    calls   in one window
    ms      of all of them
    GFLOP   of their products as they are made, without softmax, LayerNorm, gathering and the layout of data
    %       of the product's rate
    lost    ms beyond what the products would take at that rate
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from latency import make_features
from support import floors
from support.environment import begin
from support.systems import lengths_of, threshold_for, variants, write_checkpoint
from support.tables import print_table
from support.timing import timed_extension

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError
from bcnet_fast.ops import native
from bcnet_fast.storage.checkpoint import read_config
from bcnet_fast.storage.output import write_json

WINDOWS, SIZE = 15, 2048


def products(x: Any, *weights: Any) -> float:
    """Multiply-adds of rows with each weight; of paired rows and columns, Strassen's algorithm saves an eighth."""

    def saved(weight: Any) -> float:
        pair_of_panels = 2 * native.module.PANEL
        paired = len(x) // 2 * 2 * (weight.outputs // pair_of_panels * pair_of_panels)
        return paired * weight.groups * weight.inputs / 8 if weight.strassen else 0.0

    return sum(len(x) * w.groups * w.inputs * w.outputs - saved(w) for w in weights)


def linear(x: Any, weight: Any, *_: Any, **__: Any) -> tuple[str, float]:
    return f"{len(x)} x {weight.inputs} -> {weight.outputs}", products(x, weight)


def feed_forward(x: Any, first: Any, second: Any, *_: Any, **__: Any) -> tuple[str, float]:
    name = f"{len(x)} x {first.inputs} -> {first.outputs} -> {second.outputs}"
    return name, products(x, first, second)


def folded_feed_forward(x: Any, attention: Any, folded: Any, _: Any, second: Any, *__: Any) -> tuple[str, float]:
    name = f"{len(x)} x {attention.inputs} -> {attention.outputs}, {folded.outputs} -> {second.outputs}"
    return name, products(x, attention, folded, second)


def convolution(x: Any, weight: Any, *_: Any, **__: Any) -> tuple[str, float]:
    return f"{x.shape[0]} x {x.shape[1]} -> {weight.groups * weight.outputs}, {x.dtype}", products(x, weight)


def attention(query: Any, key: Any, values: Any, *_: Any, **__: Any) -> tuple[str, float]:
    name = f"{len(query)} x {len(key)}, {len(values)} stream{'s' * (len(values) - 1)}, {query.dtype}"
    return name, len(query) * len(key) * (query.shape[1] + sum(value.shape[1] for value in values))


def project_anchors(x: Any, _: Any, weight: Any, __: Any, out: Any, **___: Any) -> tuple[str, float]:
    name = f"{len(x)} x {weight.inputs} x {weight.groups} bins -> {len(out)} x {weight.outputs}"
    return name, products(x, weight)


def sample(rows: Any, *_: Any, **__: Any) -> tuple[str, float]:
    return f"{rows.shape[-2]} x {rows.shape[-1]}", 0.0


_DESCRIBED = (linear, feed_forward, folded_feed_forward, convolution, attention, project_anchors, sample)
KERNELS = {function.__name__: function for function in _DESCRIBED}


def timed_kernels(calls: list[tuple[str, float, float]]) -> AbstractContextManager[None]:
    """Inside the block, the kernels write their name, multiply-adds and seconds to `calls`."""

    def record(name: str, seconds: float, *arguments: Any, **options: Any) -> None:
        shape, multiply_adds = KERNELS[name](*arguments, **options)
        calls.append((f"{name.replace('_', ' ')} {shape}", multiply_adds, seconds))

    return timed_extension(KERNELS, record)


def large_product() -> Callable[[], float]:
    """Times one, by the faster of PyTorch's ways, and returns its FLOPs a second."""
    products = floors.float_products(SIZE, torch.float32)

    def rate() -> float:
        times = []
        for product in products:
            started = time.perf_counter()
            product()
            times.append(time.perf_counter() - started)
        return 2 * SIZE**3 / min(times)

    return rate


def measure() -> tuple[list[dict[str, Any]], float]:
    """The rows of the table, by time lost, and the rate of large products in FLOP/s."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), "bcnet", "thumos14")
        config, systems = read_config(checkpoint), variants("cpu", "bcnet")
        window = make_features(config)[0][:1]
        lengths = lengths_of(window)
        system = systems["bcnet_fast fp32"](checkpoint, "cpu")
        system.set_threshold(threshold_for(2 / 3, system.scores(window), lengths, config))
    rate, rates = large_product(), []
    calls: list[tuple[str, float, float]] = []
    by_kernel: dict[str, list[list[tuple[float, float]]]] = {}
    with timed_kernels(calls):
        for _ in range(WINDOWS + 1):
            rates.append(rate())
            calls.clear()
            system.network(window, lengths)
            for name in dict.fromkeys(name for name, *_ in calls):
                by_kernel.setdefault(name, []).append([rest for other, *rest in calls if other == name])
    typical = statistics.median(rates[1:])
    rows = []
    for name, windows in by_kernel.items():
        milliseconds = 1e3 * statistics.median(sum(seconds for _, seconds in window) for window in windows[1:])
        flops = 2 * sum(products for products, _ in windows[0])
        ideal = 1e3 * flops / typical
        figures = {"calls": len(windows[0]), "ms": milliseconds, "gflop": 1e-9 * flops}
        rows.append({"kernel": name, **figures, "percent": 100 * ideal / milliseconds, "lost_ms": milliseconds - ideal})
    return sorted(rows, key=lambda row: -row["lost_ms"]), typical


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--threads", type=int, metavar="N", help="default: as many as PyTorch takes")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    args = parser.parse_args(argv)
    if native.module is None:
        raise BackendError(native.reason)
    facts = begin(args.threads, (args.json,))
    rows, rate = measure()
    header = ["kernel", "calls", "ms", "GFLOP", "%", "lost"]
    names = ("ms", "gflop", "percent", "lost_ms")
    print_table(header, [[r["kernel"], r["calls"], *(f"{r[n]:.1f}" for n in names)] for r in rows])
    total, flops = (sum(row[name] for row in rows) for name in ("ms", "gflop"))
    share = 1e11 * flops / rate / (1e-3 * total) if total else 0.0
    print(f"all kernels: {total:.0f} ms, {share:.0f} % of the rate of large products, {1e-9 * rate:.0f} GFLOP/s")
    if args.json:
        write_json(args.json, {"environment": facts, "rate_gflops": 1e-9 * rate, "rows": rows})
        print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    run(main)
