"""Anchor sampling: N interpolated vectors for each of P anchors, and their projection without storing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..text import alternatives
from . import native, reference
from .anchor_groups import packed_plan
from .backends import autocast, choose, requested, triton_kernels, use_backend, without_autocast
from .constants import cached_tensors
from .refusals import refuse, refuse_device, refuse_dtype, refuse_shape, refuse_type
from .registration import refuse_tangents, register, register_gradient
from .sampling_plan import SamplingPlan

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STRATEGIES = ("auto", "project", "gather")
# Cost of one multiply-add of gathering, in multiply-adds of a matrix product on the same device. A CPU makes both in
# the same units, but gathering waits for the cache. On a GPU, an SM gathers some 50 fp16 elements a clock from its L1
# (128 bytes), and its tensor cores multiply 256 (2080 Ti) to 2048 (H100): 8 to 40 times as many.
GATHER_COST = {"cpu": 2.0, "cuda": 16.0}
# Output columns that share sampled features. A GPU block builds them for this many columns, and the next block builds
# them again (kernels/anchor_sampling.py). The CPU builds them once.
COLUMNS_BUILT_FOR = {"cpu": float("inf"), "cuda": 128}
# Anchors whose sampled features are in memory at a time on the CPU: few enough for the cache, enough for the product.
ANCHORS_AT_A_TIME = 256


def anchor_sampling(features: Tensor, plan: SamplingPlan) -> Tensor:
    """Sample the features of every anchor: weighted sums of snippets, by a sparse plan.

    Source: the boundary-matching layer of BMN (Lin et al., ICCV 2019) and Align1D of G-TAD (Xu et al., CVPR 2020), each
    without the zeros of its sampling matrix.

    Args:
        features: [B, C, T], or [B, G, C, T] for a plan with bins from G > 1 sequences, like G-TAD's. Any strides;
            float16, bfloat16, float32 or float64.
        plan: on the device of features, with float32 weights (float64 for float64 features).

    Returns:
        [B, P, N, C] in the dtype of features, contiguous. `out.flatten(2)` is BCNet's clip feature, bin by bin.

    Sums are in float32 (float64 for float64). Differentiable in features. Repeated calls give the same bits.

    Raises:
        TypeError: `features` is not a tensor, `plan` is not a SamplingPlan, or a dtype does not fit.
        ValueError: a rank, size or device does not fit.
        NotImplementedError: `features` has a forward-mode tangent.
    """
    _check_types("anchor_sampling", plan, features=features)
    refuse_tangents("anchor_sampling", features)
    return _sampling(features, *plan.pack())


def anchor_projection(
    features: Tensor,
    plan: SamplingPlan,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    strategy: str = "auto",
) -> Tensor:
    """Project the sampled features of every anchor, `sum_n sampled[:, :, n] @ weight[n] + bias`, without storing them.

    Source: BMN computes this with a dense sampling matrix and a 3-D convolution, G-TAD with Align1D and a 1x1
    convolution. Sampling and projection are linear, so either can come first:

        "project": every snippet is projected for every bin, [N, T, O], and the results are gathered:
                   N T C O + taps O multiply-adds, `taps` being the number of weights in the plan;
        "gather":  anchors are sampled, a block of them at a time, and each block is multiplied at once:
                   taps C + P N C O multiply-adds.

    Args:
        features: as in `anchor_sampling`.
        plan: as in `anchor_sampling`.
        weight: [N, C, O], in the dtype and on the device of features.
        bias: [O], in the dtype and on the device of features, or None.
        relu: whether negative results become 0.
        strategy: "project", "gather", or "auto" for the cheaper one by `cheaper_strategy`. The results are equal up to
            rounding.

    Returns:
        [B, P, O] in the dtype of features, contiguous.

    Differentiable in features, weight and bias; the backward pass always projects first. Repeated calls give the same
    bits. torch.autocast casts the three. On CUDA, "project" rounds the projected snippets to the dtype, so it overflows
    in float16 if they exceed its range, even if their sums do not.

    Raises:
        TypeError: an argument has the wrong type, or a dtype does not fit.
        ValueError: a rank, size, device or strategy does not fit.
        NotImplementedError: an argument has a forward-mode tangent.
    """
    _check_types("anchor_projection", plan, features=features, weight=weight, bias=bias)
    if strategy not in STRATEGIES:
        refuse("anchor_projection", "strategy", repr(strategy), alternatives(STRATEGIES))
    if strategy == "auto" and weight.dim() == 3:
        channels, outputs = weight.shape[1:]
        strategy = cheaper_strategy(plan, channels, outputs, features.device.type)
    features, weight, bias = autocast(features, weight, bias)
    refuse_tangents("anchor_projection", features, weight, bias)
    return _projection(features, weight, bias, *plan.pack(), relu, strategy == "project")


def cheaper_strategy(plan: SamplingPlan, channels: int, outputs: int, device: str) -> str:
    """Return the strategy of `anchor_projection` that takes less time by a cost model, "project" or "gather".

    The model counts multiply-adds; those of gathering are weighted by GATHER_COST. For BMN's map "project" has 30 times
    fewer of them. With only T / 10 anchors it has more.
    """
    bins = plan.first.shape[1]
    gather_cost, built_for = (table.get(device, table["cpu"]) for table in (GATHER_COST, COLUMNS_BUILT_FOR))
    project = bins * plan.length * channels * outputs + gather_cost * plan.taps * outputs
    gather = plan.anchors * bins * channels * outputs + gather_cost * plan.taps * channels * max(1, outputs / built_for)
    return "project" if project <= gather else "gather"


def _check_types(op: str, plan: Any, *, bias: Any = None, **tensors: Any) -> None:
    for name, tensor in {**tensors, **({} if bias is None else {"bias": bias})}.items():
        if not isinstance(tensor, Tensor):
            refuse_type(op, name, tensor, "a tensor")
    if not isinstance(plan, SamplingPlan):
        refuse_type(op, "plan", plan, "a SamplingPlan")


def _check(
    op: str, features: Tensor, plan: SamplingPlan, weight: Tensor | None = None, bias: Tensor | None = None
) -> None:
    """Raise for arguments that no backend supports. Called inside the operators, for direct callers of them."""
    sources, bins = len(plan.bins), sum(plan.bins)
    layout = "[B, C, T]" if sources == 1 else f"[B, {sources}, C, T]"
    shape = list(features.shape)
    fits = features.dim() == 3 if sources == 1 else features.dim() == 4 and shape[1] == sources
    if not fits or shape[-1] != plan.length:
        refuse_shape(op, "features", features, f"{layout} with T = {plan.length} as in the plan")
    if 0 in shape:
        refuse_shape(op, "features", features, f"{layout} and not empty")
    if features.dtype not in DTYPES:
        refuse_dtype(op, "features", features.dtype, DTYPES)
    dtype = reference.accumulation_dtype(features.dtype)
    if plan.weights.dtype != dtype:
        refuse_dtype(op, "plan", plan.weights.dtype, [dtype], f" for these features: plan.to(dtype={dtype})")
    if weight is not None:
        channels = shape[-2]
        if weight.dim() != 3 or weight.shape[:2] != (bins, channels) or weight.shape[2] == 0:
            refuse_shape(op, "weight", weight, f"[{bins}, {channels}, O] to fit plan and features")
        if bias is not None and bias.shape != weight.shape[2:]:
            refuse_shape(op, "bias", bias, f"[{weight.shape[2]}] to fit weight")
    for name, tensor in {"plan": plan.first, "weight": weight, "bias": bias}.items():
        if tensor is None:
            continue
        if name != "plan" and tensor.dtype != features.dtype:
            refuse_dtype(op, name, tensor.dtype, [features.dtype], " as features is")
        if tensor.device != features.device:
            refuse_device(op, name, tensor, features, "features")


def _by_snippet(features: Tensor, plan: SamplingPlan) -> Tensor:
    """[B, C, T] or [B, G, C, T] -> [B, G, T, C], contiguous: gathering reads whole snippets."""
    return (features[:, None] if len(plan.bins) == 1 else features).transpose(-1, -2).contiguous()


def _like_features(gradient: Tensor, plan: SamplingPlan) -> Tensor:
    """[B, G, T, C] -> the layout of the features, contiguous."""
    gradient = gradient.transpose(-1, -2)
    return (gradient[:, 0] if len(plan.bins) == 1 else gradient).contiguous()


def _native_tensors(*tensors: Tensor) -> list[Tensor]:
    """Convert to what the C++ code reads: contiguous, float32 or float64."""
    return [t.detach().to(reference.accumulation_dtype(t.dtype)).contiguous() for t in tensors]


@cached_tensors(32)
def _sources(bins: tuple[int, ...]) -> Tensor:
    """Return the feature sequence that each bin reads, [N] int32."""
    return torch.repeat_interleave(torch.arange(len(bins)), torch.tensor(bins)).int()


@without_autocast
def _run_sampling(features: Tensor, plan_tensors: Sequence[Tensor], plan_sizes: Sequence[int]) -> Tensor:
    plan = SamplingPlan.unpack(plan_tensors, plan_sizes)
    _check("anchor_sampling", features, plan)
    rows = _by_snippet(features, plan)
    backend = choose("anchor_sampling", features.device, features.dtype)
    if backend == "reference":
        return reference.anchor_sampling(rows, plan).to(features.dtype)
    if backend == "triton":
        kernels = triton_kernels("anchor_sampling")
        out = features.new_empty(len(rows), *plan.first.shape, rows.shape[-1])
        kernels.launch_sampling(rows, plan, out)
        return out
    return _sample_native(rows, plan, 0, plan.anchors).to(features.dtype)


def _sample_native(rows: Tensor, plan: SamplingPlan, begin: int, end: int) -> Tensor:
    """Sample the anchors from `begin` up to `end`."""
    (rows,) = _native_tensors(rows)
    first, bins = plan.first[begin:end], plan.first.shape[1]
    offsets = plan.offsets[begin * bins : (begin + len(first)) * bins + 1]
    out = rows.new_empty(len(rows), *first.shape, rows.shape[-1])
    arrays = [t.numpy() for t in (rows, first, offsets, plan.weights, _sources(plan.bins), out)]
    native.module.sample(*arrays, torch.get_num_threads())
    return out


def _fake_sampling(features: Tensor, plan_tensors: Sequence[Tensor], plan_sizes: Sequence[int]) -> Tensor:
    plan = SamplingPlan.unpack(plan_tensors, plan_sizes)
    _check("anchor_sampling", features, plan)
    return features.new_empty(features.shape[0], *plan.first.shape, features.shape[-2])


@without_autocast
def _run_sampling_backward(grad: Tensor, plan_tensors: Sequence[Tensor], plan_sizes: Sequence[int]) -> Tensor:
    """Return the gradient of the features; grad is [B, P, N, C]."""
    plan = SamplingPlan.unpack(plan_tensors, plan_sizes)
    shape = grad.shape[0], len(plan.bins), plan.length, grad.shape[-1]
    backend = choose("anchor_sampling", grad.device, grad.dtype)
    if backend == "reference":
        rows = reference.anchor_sampling_backward(grad, plan)
    elif backend == "triton":
        kernels = triton_kernels("anchor_sampling")
        rows = grad.new_empty(shape)
        kernels.launch_sampling_backward(grad.contiguous(), plan, rows)
    else:
        (exact,) = _native_tensors(grad)
        rows = exact.new_empty(shape)
        arrays = [t.numpy() for t in (exact, plan.first, plan.offsets, plan.weights, _sources(plan.bins), rows)]
        native.module.sample_backward(*arrays, torch.get_num_threads())
    return _like_features(rows.to(grad.dtype), plan)


def _fake_sampling_backward(grad: Tensor, plan_tensors: Sequence[Tensor], plan_sizes: Sequence[int]) -> Tensor:
    plan = SamplingPlan.unpack(plan_tensors, plan_sizes)
    shape = (grad.shape[0], len(plan.bins), grad.shape[-1], plan.length)
    return grad.new_empty(shape if len(plan.bins) > 1 else (shape[0], *shape[2:]))


# A plan is `Tensor[] plan, int[] sizes`, see `SamplingPlan.pack`.
_sampling = register(
    "anchor_sampling", "(Tensor features, Tensor[] plan, int[] sizes) -> Tensor", _run_sampling, _fake_sampling
)
_sampling_backward = register(
    "anchor_sampling_backward",
    "(Tensor grad, Tensor[] plan, int[] sizes) -> Tensor",
    _run_sampling_backward,
    _fake_sampling_backward,
)


def _sampling_context(ctx, inputs, output) -> None:
    _, plan_tensors, ctx.plan_sizes = inputs
    ctx.save_for_backward(*plan_tensors)
    ctx.backend = requested()


def _sampling_gradient(ctx, grad):
    refuse_tangents("anchor_sampling", grad)
    plan_tensors = list(ctx.saved_tensors)
    with use_backend(ctx.backend):
        grad = _sampling_backward(grad, plan_tensors, ctx.plan_sizes)
    return grad, [None] * len(plan_tensors), None


register_gradient("anchor_sampling", _sampling_gradient, _sampling_context)


def _project(rows: Tensor, weight: Tensor, bins: Sequence[int]) -> Tensor:
    """Project every snippet for every bin by one product per sequence: rows [B, G, T, C] -> [N, B, T, O]."""
    batch, _, length, channels = rows.shape
    projected = rows.new_empty(len(weight), batch, length, weight.shape[2])
    parts = zip(projected.split(list(bins)), weight.split(list(bins)), strict=True)
    for source, (out, part) in enumerate(parts):
        snippets = rows[:, source].reshape(1, -1, channels).expand(len(part), -1, -1)
        torch.bmm(snippets, part, out=out.flatten(1, 2))
    return projected


@without_autocast
def _run_projection(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan_tensors: Sequence[Tensor],
    plan_sizes: Sequence[int],
    relu: bool,
    project_first: bool,
) -> Tensor:
    plan = SamplingPlan.unpack(plan_tensors, plan_sizes)
    _check("anchor_projection", features, plan, weight, bias)
    rows, weight = _by_snippet(features, plan), weight.contiguous()
    backend = choose("anchor_sampling", features.device, features.dtype)
    if backend == "triton":
        kernels = triton_kernels("anchor_sampling")
        out = features.new_empty(len(rows), plan.anchors, weight.shape[2])
        bias = None if bias is None else bias.contiguous()
        if project_first:
            kernels.launch_gather(_project(rows, weight, plan.bins), plan, bias, relu, out)
        else:
            kernels.launch_projection(rows, weight, plan, bias, relu, out)
        return out
    if backend == "reference":
        rows, weight = (t.to(plan.weights.dtype) for t in (rows, weight))
        bias = None if bias is None else bias.to(plan.weights.dtype)
        return reference.anchor_projection(rows, weight, bias, plan, relu).to(features.dtype)

    rows, weight = _native_tensors(rows, weight)
    bias = weight.new_zeros(weight.shape[2]) if bias is None else _native_tensors(bias)[0]
    out = (
        _project_then_gather(rows, weight, bias, plan, relu)
        if project_first
        else _gather_then_project(rows, weight, bias, plan, relu)
    )
    return out.to(features.dtype)


def _project_then_gather(rows: Tensor, weight: Tensor, bias: Tensor, plan: SamplingPlan, relu: bool) -> Tensor:
    packed = packed_plan(plan)
    out = rows.new_empty(len(rows), plan.anchors, weight.shape[2])
    for b in range(len(rows)):  # so that the projected snippets of one window fit the cache
        projected = _project(rows[b : b + 1], weight, plan.bins).transpose(0, 1)
        arrays = bias.numpy(), out[b : b + 1].numpy()
        native.module.gather(projected.numpy(), packed, *arrays, relu, torch.get_num_threads())
    return out


def _gather_then_project(rows: Tensor, weight: Tensor, bias: Tensor, plan: SamplingPlan, relu: bool) -> Tensor:
    out = rows.new_empty(len(rows), plan.anchors, weight.shape[2])
    for begin in range(0, plan.anchors, ANCHORS_AT_A_TIME):
        end = min(begin + ANCHORS_AT_A_TIME, plan.anchors)
        sampled = _sample_native(rows, plan, begin, end)
        for b in range(len(rows)):
            torch.addmm(bias, sampled[b].flatten(1), weight.flatten(0, 1), out=out[b, begin:end])
    return out.relu_() if relu else out


def _fake_projection(features, weight, bias, plan_tensors, plan_sizes, relu, project_first):
    plan = SamplingPlan.unpack(plan_tensors, plan_sizes)
    _check("anchor_projection", features, plan, weight, bias)
    return features.new_empty(features.shape[0], plan.first.shape[0], weight.shape[2])


@without_autocast
def _run_projection_backward(
    grad: Tensor, features: Tensor, weight: Tensor, plan_tensors: Sequence[Tensor], plan_sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of features and weight; grad is [B, P, O], after ReLU's own gradient."""
    plan = SamplingPlan.unpack(plan_tensors, plan_sizes)
    backend = choose("anchor_sampling", features.device, features.dtype)
    rows, weight = _by_snippet(features, plan), weight.contiguous()
    shape = grad.shape[0], sum(plan.bins), plan.length, grad.shape[2]
    if backend == "reference":
        grad, rows, weight = (t.to(plan.weights.dtype) for t in (grad, rows, weight))
        projected = reference.anchor_gather_backward(grad, plan)
    elif backend == "triton":
        kernels = triton_kernels("anchor_sampling")
        projected = grad.new_empty(shape)
        kernels.launch_gather_backward(grad.contiguous(), plan, projected)
    else:
        grad, rows, weight = _native_tensors(grad, rows, weight)
        projected = grad.new_empty(shape)
        native.module.gather_backward(grad.numpy(), packed_plan(plan), projected.numpy(), torch.get_num_threads())

    # One product each over bins or over the batch, so that half precision is summed in float32 and rounded once.
    grad_rows, grad_weight, bins = torch.empty_like(rows), torch.empty_like(weight), list(plan.bins)
    parts = zip(projected.split(bins, 1), weight.split(bins), grad_weight.split(bins), strict=True)
    for source, (part, part_weight, part_grad) in enumerate(parts):
        grad_rows[:, source] = part.transpose(1, 2).flatten(2) @ part_weight.mT.flatten(0, 1)
        by_snippet = part.transpose(0, 1).flatten(1, 2)  # [bins, B * T, O]
        torch.matmul(rows[:, source].flatten(0, 1).mT, by_snippet, out=part_grad)
    return _like_features(grad_rows.to(features.dtype), plan), grad_weight.to(features.dtype)


def _fake_projection_backward(grad, features, weight, plan_tensors, plan_sizes):
    return torch.empty_like(features, memory_format=torch.contiguous_format), weight.new_empty(weight.shape)


_projection = register(
    "anchor_projection",
    "(Tensor features, Tensor weight, Tensor? bias, Tensor[] plan, int[] sizes, bool relu, bool project_first) "
    "-> Tensor",
    _run_projection,
    _fake_projection,
)
_projection_backward = register(
    "anchor_projection_backward",
    "(Tensor grad, Tensor features, Tensor weight, Tensor[] plan, int[] sizes) -> (Tensor, Tensor)",
    _run_projection_backward,
    _fake_projection_backward,
)


def _projection_context(ctx, inputs, output) -> None:
    features, weight, bias, plan_tensors, ctx.plan_sizes, relu, _ = inputs
    ctx.save_for_backward(features, weight, output if relu else None, *plan_tensors)
    ctx.has_bias, ctx.backend = bias is not None, requested()


def _projection_gradient(ctx, grad):
    refuse_tangents("anchor_projection", grad)
    features, weight, out, *plan_tensors = ctx.saved_tensors
    if out is not None:
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
    with use_backend(ctx.backend):
        grad_features, grad_weight = _projection_backward(grad, features, weight, plan_tensors, ctx.plan_sizes)
    grad_bias = grad.sum((0, 1)) if ctx.has_bias else None
    return grad_features, grad_weight, grad_bias, [None] * len(plan_tensors), None, None, None


register_gradient("anchor_projection", _projection_gradient, _projection_context)
