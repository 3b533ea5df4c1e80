"""Times of the engine's networks beside the floors that published rates predict, and without one of the rewrites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import roofline
import torch

from bcnet_fast.inference import Model
from bcnet_fast.networks.engine import REWRITES, Rewrites
from bcnet_fast.ops.precision import gpu_products

from .context import Context
from .engine import require_graph
from .measuring import DTYPES, milliseconds, precisions, predicted_ms
from .networks import NAMES, config_of, features_of, load

WITHOUT_EFFECT = ("matched_anchors", "folded_norm", "strassen")  # by the engine's own choice on a GPU


def batches(context: Context) -> tuple[int, ...]:
    return (1, 2) if context.small else (1, 8, 32)


def bcnet(context: Context) -> None:
    _rates(context)
    for precision in precisions(context, "fp16", "bf16", "tf32", "fp32"):
        context.attempt(f"BCNet, {precision}", _times_of, context, "bcnet", None, precision, seconds=4)
    _explain(context)


def maps(context: Context) -> None:
    for preset in (None,) if context.small else (None, "thumos14"):
        for precision in precisions(context, "fp16", "fp32", "tf32", "bf16"):
            for system in ("bmn", "gtad"):
                name = f"{NAMES[system]}, {preset or ''} {precision}"
                context.attempt(name, _times_of, context, system, preset, precision, seconds=4)
    _explain(context)


def _explain(context: Context) -> None:
    context.note(
        "Measured: call (what a user calls, with features on the device) and replay (the graph alone). Predicted: the "
        "floor, which is the longer of products at the published rate and one reading of the weights at the published "
        "bandwidth; a device whose rates are not known has none. Share: floor / replay."
    )


def _rates(context: Context) -> None:
    """Rates of the device itself, beside its vendor's figures."""
    if context.device == "cpu":
        return
    rates = roofline.known_gpu(torch.cuda.get_device_name())
    context.fact("published rates", f"{rates}" if rates else f"none known for {torch.cuda.get_device_name()}")
    for precision in precisions(context, "fp16", "bf16", "tf32", "fp32"):
        size = 128 if context.small else 4096
        a, b = (torch.randn(size, size, device="cuda", dtype=DTYPES[precision]) for _ in range(2))
        with gpu_products(tf32=precision == "tf32"):
            taken = milliseconds(lambda a=a, b=b: a @ b, "cuda")
        context.fact(f"product of {size} x {size}, {precision}, TFLOP/s", 2e-9 * size**3 / taken)
    block = torch.empty(2**16 if context.small else 2**28, dtype=torch.uint8, device="cuda")
    context.fact("rate of a copy, GB/s", 2e-6 * block.numel() / milliseconds(block.clone, "cuda"))


def replay_of(model: Model, batch: int) -> Callable[[], Any] | None:
    """The graph of a batch size alone; None where there is none."""
    captured = getattr(getattr(model.run, "_graph", None), "captured", {}).get(batch)
    return captured.graph.replay if captured is not None else None


def _times_of(context: Context, system: str, preset: str | None, precision: str) -> None:
    config = config_of(context, system, preset)
    model = load(context, system, precision, preset=preset)
    features = features_of(config, max(batches(context))).to(context.device)
    for batch in batches(context):
        given = features[:batch]
        call = milliseconds(lambda given=given: model(given), context.device)
        replay = replay_of(model, batch)
        alone = milliseconds(replay, context.device) if replay else None
        work = roofline.network(config.model, batch)
        floor = predicted_ms(context.device, work, precision)
        best = alone or call
        context.row(
            **{"network": f"{NAMES[system]}, {config.preset}", "precision": precision, "B": batch},
            **{
                "call ms": call,
                "replay ms": alone,
                "windows/s": 1e3 * batch / best,
                "TFLOP/s": 1e-9 * work.flops / best,
            },
            **{"floor ms, predicted": floor, "share of floor, %": None if floor is None else 100 * floor / best},
        )
    require_graph(context, model, f"{NAMES[system]}, {precision}")


def rewrites(context: Context) -> None:
    effective = [name for name in REWRITES["bcnet"] if context.device == "cpu" or name not in WITHOUT_EFFECT]
    if context.device == "cuda":
        context.note(f"Not switched off, since the engine does not make them on a GPU: {', '.join(WITHOUT_EFFECT)}.")
    for precision in ("fp32",) if context.small else precisions(context, "fp16", "fp32"):
        for system, names in (("bcnet", effective), ("bmn", REWRITES["bmn"]), ("gtad", REWRITES["gtad"])):
            everything: dict[int, float] = {}
            for name in (None, *names):
                title = f"{NAMES[system]}, {precision}, without {name}"
                context.attempt(title, _without, context, system, precision, name, everything, seconds=4)


def _without(context: Context, system: str, precision: str, name: str | None, everything: dict[int, float]) -> None:
    switched = Rewrites(**({} if name is None else {name: False}))
    model = load(context, system, precision, rewrites=switched)
    features = features_of(config_of(context, system), max(batches(context))).to(context.device)
    times = {}
    for batch in batches(context):
        given = features[:batch]
        model(given)
        times[batch] = milliseconds(replay_of(model, batch) or (lambda given=given: model(given)), context.device)
    if name is None:
        everything.update(times)
    row = {"network": NAMES[system], "precision": precision, "without": name or "(all are made)"}
    row |= {f"B = {batch}, ms": ms for batch, ms in times.items()}
    if name is not None and everything:
        row |= {f"x, B = {batch}": ms / everything[batch] for batch, ms in times.items()}
    context.row(**row)
