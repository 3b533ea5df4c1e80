"""The engine against float64 in every precision, and its CUDA graphs against eager execution."""

from __future__ import annotations

import torch
from torch import Tensor

from bcnet_fast.networks.outputs import Output
from bcnet_fast.ops import backends

from .context import Context
from .measuring import on_side_stream, precisions, same, synchronize
from .networks import NAMES, columns, config_of, features_of, largest_difference, load, relative_error

BATCHES = (1, 8)
# Bounds on `relative_error`: root mean square relative to the deviation of the scores.
BOUNDS = {"fp64": 1e-9, "fp32": 2e-5, "tf32": 0.02, "fp16": 0.02, "bf16": 0.15}
# The graph of G-TAD has an edge or not, by the order of distances: one that rounding moves changes a node as a whole.
GTAD_BOUNDS = {"fp64": 1e-9, "fp32": 0.02, "tf32": 0.3, "fp16": 0.3, "bf16": 0.4}
WHY = (
    "Errors are root mean squares over all windows and anchors, relative to the standard deviation of the scores; the "
    "worst of the scores is shown. Bounds are five to ten times what the same code gives on a CPU with these weights: "
    "fp32 2e-5, tf32 and fp16 0.02 (both have 10 bits of mantissa), bf16 0.15 (7 bits). In G-TAD, rounding can "
    "exchange neighbours of a node, which changes it as a whole: its bounds are wider."
)


def accuracy(context: Context) -> None:
    context.note(WHY)
    chosen = backends.choose("difference_attention", torch.device(context.device))
    context.fact("operators by", chosen)
    if context.device == "cuda" and chosen != "triton":
        context.failure(
            f"Triton is not used: {backends.unusable('difference_attention', 'triton', torch.device('cuda'))}"
        )
    for system in NAMES:
        context.attempt(NAMES[system], _accuracy_of, context, system)


def _accuracy_of(context: Context, system: str) -> None:
    features = features_of(config_of(context, system), max(BATCHES))
    exact = exact_scores(context, system, features)
    if context.device == "cuda":
        one = load(context, system, "fp64", device="cpu", backend="reference")(features[:1])
        off = largest_difference(exact.map(lambda scores: scores[:1]), one)
        context.fact(f"{NAMES[system]}, float64 of the device and of the CPU differ by", off)
        context.check(off < 1e-9, f"{NAMES[system]}: float64 on the device differs from that on the CPU by {off:.2g}")
    for precision in precisions(context, "fp64", "fp32", "tf32", "fp16", "bf16"):
        context.attempt(f"{NAMES[system]}, {precision}", _precision, context, system, precision, features, exact)


def exact_scores(context: Context, system: str, features: Tensor, preset: str | None = None) -> Output:
    """The plain reference network in float64 on the step's device, window by window, since it stores large tensors."""
    network = load(context, system, "fp64", preset=preset, backend="reference")
    return Output.cat([network(window) for window in features.split(1)]) if len(features) > 1 else network(features)


def _precision(context: Context, system: str, precision: str, features: Tensor, exact: Output) -> None:
    model = load(context, system, precision)
    bound = (GTAD_BOUNDS if system == "gtad" else BOUNDS)[precision]
    for batch in BATCHES:
        part = exact.map(lambda scores, batch=batch: scores[:batch])
        found = model(features[:batch])
        error, largest = relative_error(found, part), largest_difference(found, part)
        repeated = same(columns(found), columns(model(features[:batch])))
        context.row(
            **{"network": NAMES[system], "precision": precision, "B": batch, "error": error, "bound": bound},
            **{"largest difference": largest, "repeated": repeated},
        )
        name = f"{NAMES[system]}, {precision}, B = {batch}"
        context.check(error <= bound, f"{name}: error {error:.2g}, allowed {bound:.2g}")
        context.check(repeated, f"{name}: other bits in a second call")


def graphs(context: Context) -> None:
    if context.device == "cpu":
        context.note("A CPU has no graphs: what is compared is the same code twice.")
    for system, names in (("bcnet", ("fp32", "tf32", "fp16", "bf16")), ("bmn", ("fp16",)), ("gtad", ("fp16",))):
        for precision in precisions(context, *names):
            context.attempt(f"{NAMES[system]}, {precision}", _graph, context, system, precision)


def _graph(context: Context, system: str, precision: str) -> None:
    """Replays give the results of eager execution, for inputs of any kind, on any stream, and earlier results stay."""
    device, config = context.device, config_of(context, system)
    graphed, eager = (load(context, system, precision, graph=graph) for graph in (True, False))
    for batch in BATCHES:
        first, second = (features_of(config, batch, seed).to(device) for seed in (1, 2))
        expected, expected_second = (columns(eager(given)) for given in (first, second))
        found = columns(graphed(first))
        kept = [scores.clone() for scores in found]
        found_second = columns(graphed(second))
        equal = {"as eager": same(found, expected), "second input": same(found_second, expected_second)}
        equal["results stay"] = same(found, kept)
        equal["from the host"] = same(columns(graphed(first.cpu())), kept)
        aside = on_side_stream(lambda given=first: columns(graphed(given)), device)
        equal["side stream"] = same(aside, kept)
        synchronize(device)
        context.row(**{"network": NAMES[system], "precision": precision, "B": batch}, **equal)
        off = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        for what, good in equal.items():
            detail = f" (largest difference from eager execution {off:.2g})" if what == "as eager" else ""
            context.check(good, f"{NAMES[system]}, {precision}, B = {batch}: other bits, {what}{detail}")
    require_graph(context, graphed, f"{NAMES[system]}, {precision}")


def require_graph(context: Context, model: object, name: str) -> None:
    """A failure where a capture failed, after which the engine goes on without graphs."""
    graph = getattr(model.run, "_graph", None)
    if context.device == "cuda":
        context.check(graph is not None, f"{name}: the engine has no CUDA graphs")
        problem = getattr(graph, "problem", None)
        context.check(problem is None, f"{name}: no CUDA graph: {problem}")
