"""Every operator at the shapes of BCNet, BMN and G-TAD, forward and backward, against float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import roofline
import torch
from support.soft_nms_cases import clustered, dense
from torch import Tensor

from bcnet_fast import ops
from bcnet_fast.geometry.anchors import make_anchors, matching_table
from bcnet_fast.geometry.proposal_map import bmn_intervals, gtad_regions
from bcnet_fast.ops import backends, native
from bcnet_fast.ops.precision import gpu_products
from bcnet_fast.ops.sampling_plan import SamplingPlan, aligned_plan, interpolated_plan

from .context import Context
from .measuring import (
    DTYPES,
    captured,
    error,
    milliseconds,
    on_side_stream,
    poisoned_memory,
    precisions,
    predicted_ms,
    same,
    synchronize,
)

# Bounds on ||found - exact|| / ||exact||, where exact is float64 on the same inputs, rounded to the dtype.
BOUNDS = {"fp32": 4e-6, "tf32": 4e-3, "fp16": 2e-3, "bf16": 1.6e-2}
WHY = (
    "Errors are norms relative to float64 on the same inputs. Bounds: fp32 4e-6, 32 units of its last place, since it "
    "holds sums of a thousand terms; tf32 4e-3, 4 units of its 10 bits, since both factors of a product are cut to it; "
    "fp16 2e-3 and bf16 1.6e-2, 2 units, since results and what is kept between products are rounded to it once each."
)
FAST = "triton"


@dataclass(frozen=True)
class Case:
    """An operator at one shape.

    tensors: differentiable inputs in float64, on the device. call: of these in some dtype, to outputs.
    dots: whether the kernels multiply matrices, which Triton's interpreter cannot do in bfloat16.
    """

    shape: str
    tensors: list[Tensor]
    call: Callable[..., Any]
    work: roofline.Work | None = None
    dots: bool = False


Results = tuple[list[Tensor], list[Tensor]]


def difference_attention(context: Context) -> None:
    sizes = [(2, 8, 1218, 1218, 64, 64), (8, 8, 256, 256, 64, 64), (1, 3, 77, 99, 40, 24)]
    if context.small:
        sizes = [(1, 2, 40, 40, 32, 32), (1, 3, 17, 33, 20, 12)]
    _run(context, _attention_cases(context, sizes), ("fp32", "tf32", "fp16", "bf16"))


def _attention_cases(context: Context, sizes: list[tuple[int, ...]]) -> Iterator[Case]:
    for batch, heads, tq, tk, d, dv in sizes:
        # The networks' layout: heads side by side in a row.
        shapes = (tq, d), (tk, d), (tk, dv), (tk, dv)
        tensors = [_random(context, batch, t, heads, size).transpose(1, 2) for t, size in shapes]
        work = roofline.difference_attention(batch * heads, tq, tk, d, dv)
        name = f"{batch} x {heads} heads, {tq} x {tk}, D {d}, Dv {dv}"
        yield Case(name, tensors, ops.difference_attention, work, dots=True)


def anchor_sampling(context: Context) -> None:
    def cases() -> Iterator[Case]:
        bcnet, _, gtad = plans(context)
        for system, plan, channels, batch in (("BCNet", bcnet, 64, 2), ("G-TAD", gtad, 256, 1)):
            channels = 8 if context.small else channels
            sources = [len(plan.bins)] if len(plan.bins) > 1 else []
            features = _random(context, batch, *sources, channels, plan.length)
            name = f"{system}: {batch} x {plan.anchors} anchors x {sum(plan.bins)} bins x {channels}"
            work = roofline.anchor_sampling(plan, channels)
            yield Case(name, [features], _with_plan(ops.anchor_sampling, plan), _times(work, batch))

    _run(context, cases(), ("fp32", "fp16", "bf16"))


def anchor_projection(context: Context) -> None:
    def cases() -> Iterator[Case]:
        bcnet, bmn, gtad = plans(context)
        systems = ("BMN", bmn, 256, 512, 2), ("G-TAD", gtad, 256, 512, 1), ("BCNet", bcnet, 64, 512, 2)
        for system, plan, channels, outputs, batch in systems:
            if context.small:
                channels, outputs, batch = 16, 24, 1
            sources = [len(plan.bins)] if len(plan.bins) > 1 else []
            features = _random(context, batch, *sources, channels, plan.length)
            weight = _random(context, sum(plan.bins), channels, outputs) / (channels * sum(plan.bins)) ** 0.5
            # Far from 0 on both sides: a result whose sign hangs on its rounding would change the gradient as a whole.
            bias = 4 * _random(context, outputs).sign()
            for strategy in ("project", "gather"):
                call = _with_plan(ops.anchor_projection, plan, relu=True, strategy=strategy)
                name = f"{system}, {strategy}: {batch} x {plan.anchors} anchors, {channels} -> {outputs}"
                work = _times(roofline.anchor_projection(plan, channels, outputs), batch)
                yield Case(name, [features, weight, bias], call, work, dots=strategy == "gather")

    _run(context, cases(), ("fp32", "tf32", "fp16", "bf16"))


def add_layer_norm(context: Context) -> None:
    def cases() -> Iterator[Case]:
        for shape in ((3, 40), (2, 5, 33)) if context.small else ((2, 1218, 2048), (8, 256, 400), (7, 33)):
            rows = int(np.prod(shape[:-1]))
            tensors = [_random(context, *shape) for _ in range(2)]
            yield Case(
                " x ".join(map(str, shape)), tensors, ops.add_layer_norm, roofline.add_layer_norm(rows, shape[-1])
            )

    _run(context, cases(), ("fp32", "fp16", "bf16"))


def plans(context: Context) -> tuple[SamplingPlan, SamplingPlan, SamplingPlan]:
    """Those of BCNet, BMN and G-TAD, in float64 weights on the device."""
    if context.small:
        made = (
            interpolated_plan(make_anchors(14, 9), 14, 3, 2, torch.float64),
            interpolated_plan(bmn_intervals(5), 5, 3, 2, torch.float64),
            aligned_plan(gtad_regions(7, 4), 7, (2, 1), dtype=torch.float64),
        )
    else:
        made = (
            interpolated_plan(make_anchors(256, 64), 256, dtype=torch.float64),
            interpolated_plan(bmn_intervals(100), 100, dtype=torch.float64),
            aligned_plan(gtad_regions(256, 64), 256, dtype=torch.float64),
        )
    bcnet, bmn, gtad = (plan.to(context.device) for plan in made)
    return bcnet, bmn, gtad


def _with_plan(operator: Callable[..., Tensor], plan: SamplingPlan, **options: Any) -> Callable[..., Tensor]:
    """The operator as a function of its tensors, with the plan's weights in the dtype that they ask for."""
    by_dtype = {dtype: plan.to(dtype=dtype) for dtype in (torch.float32, torch.float64)}

    def call(features: Tensor, *others: Tensor) -> Tensor:
        chosen = by_dtype[torch.promote_types(features.dtype, torch.float32)]
        return operator(features, chosen, *others, **options)

    return call


def _random(context: Context, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(context.device)


def _times(work: roofline.Work, batch: int) -> roofline.Work:
    return work._replace(flops=batch * work.flops, elements=batch * work.elements)


def _run(context: Context, cases: Iterator[Case], names: tuple[str, ...]) -> None:
    """A row for every case and precision by the kernels, and one in float32 by the fallback of "auto"."""
    torch.manual_seed(0)
    context.note(WHY)
    used = precisions(context, *names)
    if context.interpreted:
        context.note(
            "Kernels run in Triton's interpreter, which multiplies no matrices in bfloat16: those are left out."
        )
    for case in cases:
        for precision in used:
            if context.interpreted and case.dots and precision == "bf16":
                continue
            context.attempt(f"{case.shape}, {precision}, {FAST}", _check, context, case, precision, FAST)
        fallback = "native" if context.small and native.module is not None else "reference"
        context.attempt(f"{case.shape}, fp32, {fallback}", _check, context, case, "fp32", fallback)


def _check(context: Context, case: Case, precision: str, backend: str) -> None:
    """One row: errors forward and backward, and whether the bits are the same wherever the operator runs."""
    device = context.device
    given = [t.to(DTYPES[precision]) for t in case.tensors]
    with ops.use_backend("reference"):
        exact = _forward_backward(case.call, [t.double() for t in given], None)
    grads = [torch.randn_like(out).to(DTYPES[precision]) for out in exact[0]]
    with ops.use_backend("reference"):
        exact = _forward_backward(case.call, [t.double() for t in given], [g.double() for g in grads])

    def run() -> list[Tensor]:
        outputs, gradients = _forward_backward(case.call, given, grads)
        return [*outputs, *gradients]

    def forward() -> Any:
        with torch.no_grad():
            return case.call(*given)

    with gpu_products(tf32=precision == "tf32"), ops.use_backend(backend):
        started = time.perf_counter()
        found = run()
        synchronize(device)
        first_s = time.perf_counter() - started
        count = len(exact[0])
        errors = error(found[:count], exact[0]), error(found[count:], exact[1])
        equal = _same_everywhere(context, run, found)
        taken = _timed(context, forward, found[:count], equal, backend)
    bound = BOUNDS[precision]
    predicted = None if case.work is None else predicted_ms(device, case.work, precision)
    context.row(
        **{"shape": case.shape, "precision": precision, "by": backend},
        **{"forward error": errors[0], "backward error": errors[1], "bound": bound},
        **equal,
        **{"first call s": first_s, "forward ms": taken, "floor ms, predicted": predicted},
    )
    name = f"{case.shape}, {precision}, {backend}"
    for direction, value in zip(("forward", "backward"), errors, strict=True):
        context.check(value <= bound, f"{name}: {direction} error {value:.2g}, allowed {bound:.2g}")
    for where, good in equal.items():
        context.check(good, f"{name}: other bits ({where})")


def _same_everywhere(context: Context, run: Callable[[], list[Tensor]], found: list[Tensor]) -> dict[str, bool]:
    """Whether a call that gave `found` gives the same bits again, on another stream, and from memory full of NaN."""
    equal = {"repeated": same(found, run())}
    if context.device == "cuda":
        equal["side stream"] = same(found, on_side_stream(run, context.device))
    with poisoned_memory(context.device):
        equal["NaN memory"] = same(found, run())
    return equal


def _timed(
    context: Context, call: Callable[[], Any], found: list[Tensor], equal: dict[str, bool], backend: str
) -> float | None:
    """Milliseconds of a call; on a GPU of its CUDA graph, which must give the same bits."""
    if context.device != "cuda":
        return _milliseconds(context, call, backend)
    graph, written = captured(call)
    graph.replay()
    synchronize(context.device)
    equal["graph"] = same(found, _as_list(written))
    return _milliseconds(context, graph.replay, backend)


def _milliseconds(context: Context, call: Callable[[], Any], backend: str) -> float | None:
    if context.interpreted and backend == FAST:
        return None  # the time of an interpreter says nothing
    return milliseconds(call, context.device, seconds=0.05)


def _as_list(outputs: Any) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def _forward_backward(call: Callable[..., Any], given: list[Tensor], grads: list[Tensor] | None) -> Results:
    """Outputs, and with `grads` of them the gradients of all inputs."""
    leaves = [t.detach().requires_grad_() for t in given]
    outputs = _as_list(call(*leaves))
    if grads is None:
        return [out.detach() for out in outputs], []
    gradients = torch.autograd.grad(outputs, leaves, grads)
    return [out.detach() for out in outputs], list(gradients)


def match_proposals(context: Context) -> None:
    """All arithmetic is in float64 in a fixed order: the bits are those of the CPU."""
    windows, snippets, durations = (2, 16, 9) if context.small else (8, 256, 64)
    torch.manual_seed(0)
    anchors = torch.from_numpy(make_anchors(snippets, durations).astype(np.int64))
    table = torch.from_numpy(matching_table(snippets, durations).copy())
    lengths = torch.randint(snippets // 2, snippets + 1, (windows,))
    start, end = torch.rand(2, windows, snippets) ** 3
    scores = torch.rand(3, windows, len(anchors))
    for precision in ("fp32", "fp64", *precisions(context, "fp16", "bf16")):
        given = [t.to(DTYPES[precision]) for t in (start, end, *scores)]
        for backend in (FAST, "reference"):
            options = {"max_snippets": 60.0, "clamp_boundaries": precision == "fp64"}
            inputs = [*given, anchors, table], lengths, options
            context.attempt(f"{precision}, {backend}", _check_matching, context, precision, backend, *inputs)


def _check_matching(
    context: Context, precision: str, backend: str, given: list[Tensor], lengths: Tensor, options: dict[str, Any]
) -> None:
    expected = ops.match_proposals(*given, lengths=lengths, **options)
    there, there_lengths = [t.to(context.device) for t in given], lengths.to(context.device)

    def run() -> list[Tensor]:
        return list(ops.match_proposals(*there, lengths=there_lengths, **options))

    with ops.use_backend(backend):
        found = run()
        equal = {"bits of the CPU": same([t.cpu() for t in found], expected)}
        equal |= _same_everywhere(context, run, found)
        taken = _timed(context, run, found, equal, backend)
    name = f"{len(lengths)} windows of {given[0].shape[1]} snippets"
    pairs = int(expected.counts.sum())
    context.row(**{"shape": name, "precision": precision, "by": backend, "pairs": pairs}, **equal, ms=taken)
    for where, good in equal.items():
        context.check(good, f"{precision}, {backend}: other bits ({where})")


def soft_nms(context: Context) -> None:
    """The same bits as on the CPU, for sets of many sizes and every method."""
    rng = np.random.default_rng(0)
    for dtype in ("fp32", "fp64"):
        for name, inputs, offsets in _sets(rng, context.small):
            for method in ("gaussian", "linear", "hard"):
                arguments = dtype, name, *(torch.from_numpy(a).to(DTYPES[dtype]) for a in inputs), offsets, method
                context.attempt(f"{name}, {dtype}, {method}", _check_suppression, context, *arguments)


def _sets(rng: np.random.Generator, small: bool) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray], list[int]]]:
    most = 300 if small else 3500
    for name, made in (("long video", clustered(rng)), ("dense window", dense(rng))):
        segments, scores = (a[:most] for a in made)
        yield f"{name}, {len(scores)}", (segments, scores), [0, len(scores)]
    # Sets of all sizes side by side, empty ones and equal scores among them.
    sizes = [0, 1, 2, 31, 32, 33, 0, 100] if small else [0, 1, 2, 31, 32, 33, 500, 0, 1024, 1025, 2000, 3, 0]
    offsets = np.cumsum([0, *sizes]).tolist()
    start, length = rng.integers(0, 256, offsets[-1]), rng.integers(1, 65, offsets[-1])
    scores = np.round(rng.random(offsets[-1]), 2)
    yield (
        f"{len(sizes)} sets of 0 to {max(sizes)}",
        (np.stack([start, start + length], 1).astype(float), scores),
        offsets,
    )


def _check_suppression(
    context: Context, dtype: str, name: str, segments: Tensor, scores: Tensor, offsets: list[int], method: str
) -> None:
    options = {
        "sigma": 0.5,
        "min_score": 0.001,
        "method": method,
        "iou_threshold": 0.0 if method == "gaussian" else 0.4,
    }
    sets = torch.tensor(offsets)
    expected = ops.soft_nms(segments, scores, offsets=sets, **options)
    there = [t.to(context.device) for t in (segments, scores, sets)]
    for backend in ("auto", "native") if context.device == "cuda" else ("auto", "reference"):
        if (why := _unusable(backend, context.device)) is not None:
            context.fact(f"backend {backend}", why)
            continue

        def run() -> list[Tensor]:
            return list(ops.soft_nms(there[0], there[1], offsets=there[2], **options))

        with ops.use_backend(backend):
            found = run()
            equal = {"bits of the CPU": same([t.cpu() for t in found], expected)}
            equal |= _same_everywhere(context, run, found)
            taken = _milliseconds(context, run, backend)
        picks = len(expected[1])
        by = backends.choose("soft_nms", torch.device(context.device)) if backend == "auto" else backend
        row = {"sets": name, "precision": dtype, "method": method, "by": by, "picks": picks}
        context.row(**row, **equal, ms=taken)
        for where, good in equal.items():
            context.check(good, f"{name}, {dtype}, {method}, {backend}: other bits ({where})")


def _unusable(backend: str, device: str) -> str | None:
    return None if backend == "auto" else backends.unusable("soft_nms", backend, torch.device(device))
