"""Several engines, streams, threads, batch sizes and devices in one process, and its end."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from support.timing import memory_mib
from torch import Tensor

from .context import Context, Skip
from .engine import BOUNDS, exact_scores, require_graph
from .machine import ROOT
from .measuring import precisions, same, synchronize
from .networks import checkpoint, columns, config_of, features_of, load, relative_error

ROUNDS = 20


def _on(lane: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if lane is None else torch.cuda.stream(lane)


def _lane(context: Context) -> torch.cuda.Stream | None:
    """A new stream of the device; a CPU has none."""
    return torch.cuda.Stream() if context.device == "cuda" else None


def streams(context: Context) -> None:
    """Two engines replayed at the same time give the same results as each alone, also after one of them is gone."""
    names = precisions(context, "fp16", "fp32") if context.device == "cuda" else ["fp32", "fp32"]
    config = config_of(context, "bcnet")
    engines = [load(context, "bcnet", precision) for precision in names]
    given = [features_of(config, batch, seed).to(context.device) for batch, seed in ((1, 1), (2, 2))]
    expected = [columns(engine(features)) for engine, features in zip(engines, given, strict=True)]
    for engine, name in zip(engines, names, strict=True):
        require_graph(context, engine, name)
    matrix = torch.randn(512, 512, device=context.device)
    square = matrix @ matrix
    synchronize(context.device)

    def both() -> tuple[int, int]:
        """How many results of the engines, and of products on a third stream, are wrong."""
        wrong, wrong_products = 0, 0
        lanes = [_lane(context) for _ in range(3)]
        for _ in range(ROUNDS):
            found = []
            for lane, engine, features in zip(lanes, engines, given, strict=False):
                with _on(lane):
                    found.append(columns(engine(features)))
            with _on(lanes[2]):
                product = matrix @ matrix
            synchronize(context.device)
            wrong += sum(not same(f, e) for f, e in zip(found, expected, strict=False))
            wrong_products += not torch.equal(product, square)
        return wrong, wrong_products

    wrong, wrong_products = both()
    context.row(what=f"{names[0]} and {names[1]} side by side", calls=2 * ROUNDS, wrong=wrong)
    context.row(what="products on a third stream", calls=ROUNDS, wrong=wrong_products)
    context.check(not wrong, f"{wrong} of {2 * ROUNDS} results of two engines on two streams are wrong")
    context.check(not wrong_products, f"{wrong_products} of {ROUNDS} products beside the engines are wrong")

    engines[0](given[0])  # still running when it is destroyed
    del engines[0], given[0], expected[0]
    gc.collect()
    if context.device == "cuda":
        torch.cuda.empty_cache()
    wrong, wrong_products = both()
    context.row(what="the second, once the first is destroyed", calls=ROUNDS, wrong=wrong)
    context.check(not wrong, f"{wrong} of {ROUNDS} results are wrong after another engine was destroyed")
    again = load(context, "bcnet", names[0])
    features = features_of(config, 1, 1).to(context.device)
    fresh = columns(again(features))
    good = same(fresh, columns(again(features))) and same(columns(engines[0](given[0])), expected[0])
    context.row(what="a third engine in its place", calls=2, wrong=int(not good))
    context.check(good, "results are wrong after an engine took the place of a destroyed one")


def threads(context: Context) -> None:
    """Calls of one engine from two threads, and two engines that capture at the same time."""
    precision = "fp16" if context.device == "cuda" else "fp32"
    config = config_of(context, "bcnet")
    given = [features_of(config, batch, batch).to(context.device) for batch in (1, 2, 3, 4)]
    engine = load(context, "bcnet", precision)
    expected = [columns(engine(features)) for features in given]
    synchronize(context.device)

    def calls(order: list[int], run: Callable[[Tensor], Any]) -> int:
        wrong = 0
        with _on(_lane(context)):
            for number in order:
                found = columns(run(given[number]))
                if context.device == "cuda":
                    torch.cuda.current_stream().synchronize()
                wrong += not same(found, expected[number])
        return wrong

    orders = [[i % 4 for i in range(ROUNDS)], [(3 * i + 1) % 4 for i in range(ROUNDS)]]
    wrong = _together(*(lambda order=order: calls(order, engine) for order in orders))
    context.row(what="one engine, two threads", calls=2 * ROUNDS, wrong=sum(wrong))
    context.check(not sum(wrong), f"{sum(wrong)} of {2 * ROUNDS} results of one engine in two threads are wrong")

    fresh = [load(context, "bcnet", precision) for _ in range(2)]
    wrong = _together(
        *(lambda run=run, order=order: calls(order, run) for run, order in zip(fresh, orders, strict=True))
    )
    context.row(what="two new engines, a thread each", calls=2 * ROUNDS, wrong=sum(wrong))
    context.check(not sum(wrong), f"{sum(wrong)} of {2 * ROUNDS} results of two engines in two threads are wrong")
    for model in (engine, *fresh):
        require_graph(context, model, "after threads")


def _together(*functions: Callable[[], int]) -> list[int]:
    """The results of functions that run at the same time, a thread each; raises the exception of any of them."""
    results: list[Any] = [None] * len(functions)

    def run(number: int) -> None:
        try:
            results[number] = functions[number]()
        except Exception as error:
            results[number] = error

    running = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(functions))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def memory(context: Context) -> None:
    """Every batch size from 1 to 40: right, and the memory that graphs keep stops growing and is given back."""
    precision = "fp16" if context.device == "cuda" else "fp32"
    sizes = list(range(1, 6)) if context.small else [8, 1, 40, 3, 17, *range(1, 41)]
    features = features_of(config_of(context, "bcnet"), max(sizes)).to(context.device)
    exact = exact_scores(context, "bcnet", features[:2])
    _empty(context)
    base = _reserved(context)
    engine = load(context, "bcnet", precision)
    loaded = _reserved(context)
    after = []
    for passes in range(2):
        for size in sizes:
            found = engine(features[:size])
            count = min(2, size)
            error = relative_error(*(o.map(lambda scores, n=count: scores[:n]) for o in (found, exact)))
            good = error <= BOUNDS[precision] and len(columns(found)[0]) == size
            context.check(good, f"B = {size}: error {error:.2g}, {len(columns(found)[0])} windows")
            if not passes and context.left() > 5 and size in (1, 2, 4, 8, 16, 32, 40):
                context.row(what=f"after B = {size}", MiB=_reserved(context) - base)
        del found
        _empty(context)
        after.append(_reserved(context))
        context.row(what=f"after {passes + 1} x {len(sizes)} batch sizes", MiB=after[-1] - base)
    context.row(what="weights alone", MiB=loaded - base)
    require_graph(context, engine, "many batch sizes")
    del engine
    _empty(context)
    left = _reserved(context)
    context.row(what="once the engine is gone", MiB=left - base)
    if context.device == "cuda":
        context.check(after[1] <= after[0] + 64, f"memory grew by {after[1] - after[0]:.0f} MiB in the second pass")
        context.check(left <= base + 128, f"{left - base:.0f} MiB stay reserved after the engine is gone")


def _empty(context: Context) -> None:
    gc.collect()
    if context.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _reserved(context: Context) -> float:
    """MiB that PyTorch holds of the device, or this process of the host."""
    return torch.cuda.memory_reserved() / 2**20 if context.device == "cuda" else memory_mib("VmRSS") or 0.0


PROGRAM = """
import torch, bcnet_fast
first, second = (bcnet_fast.load({path!r}, device={device!r}, precision={precision!r}) for _ in range(2))
features = torch.zeros(1, {channels}, {window})
kept = [first(features), second(features)]
print(float(kept[0].start.sum()) == float(kept[1].start.sum()))
"""


def exit_of_process(context: Context) -> None:
    """A process with two engines, whose results and graphs are alive until the interpreter ends, ends well."""
    model = config_of(context, "bcnet").model
    precision = "fp16" if context.device == "cuda" else "fp32"
    names = {"path": str(checkpoint(context, "bcnet")), "device": context.device, "precision": precision}
    program = PROGRAM.format(**names, channels=model.feature_dim, window=model.window)
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    # The process group of this step has it, so it cannot outlive the step.
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=max(1.0, context.left() - 2),
        check=False,
    )
    context.fact("exit code", done.returncode)
    print(done.stdout, done.stderr)
    context.check(done.returncode == 0, f"the process ended with {done.returncode}")
    context.check(done.stdout.strip() == "True", f"two equal engines: {done.stdout.strip() or 'no result'}")


def devices(context: Context) -> None:
    """The same scores from an engine on the second device, used after one on the first."""
    count = torch.cuda.device_count() if context.device == "cuda" else 0
    if count < 2:
        raise Skip(f"{count} CUDA device{'s' if count != 1 else ''} here")
    features = features_of(config_of(context, "bcnet"), 2)
    exact = exact_scores(context, "bcnet", features)
    engines = [load(context, "bcnet", "fp32", device=f"cuda:{index}") for index in (0, 1)]
    for _ in range(2):
        for index, engine in enumerate(engines):
            found = engine(features)
            error = relative_error(found, exact)
            there = all(scores.device.index == index for scores in columns(found))
            context.row(device=f"cuda:{index}", name=torch.cuda.get_device_name(index), error=error, there=there)
            context.check(error <= BOUNDS["fp32"], f"cuda:{index}: error {error:.2g}")
            context.check(there, f"cuda:{index}: scores lie on another device")
            require_graph(context, engine, f"cuda:{index}")
