"""Anchor sampling: N interpolated vectors for each of P anchors, and their projection without storing them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native as _native
from . import reference
from .backends import autocast, call, choose, requested, use_backend, without_autocast
from .constants import cached_tensors
from .sampling_plan import SamplingPlan

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STRATEGIES = ("auto", "project", "gather")
# What a multiply-add of the gathering costs, in multiply-adds of a matrix product on the same device. On the CPU both
# run on the same units, and gathering waits for the cache. On a GPU, an SM gathers some 50 fp16 elements a clock from
# its L1 (128 bytes), and multiplies 256 (2080 Ti) to 2048 (H100) of them in its tensor cores: 8 to 40 times as many.
GATHER_COST = {"cpu": 2.0, "cuda": 16.0}
# Output columns whose sampled features one GPU block builds (kernels/anchor_sampling.py): they are built again for the
# next ones. The CPU builds them once.
COLUMNS_BUILT_FOR = {"cpu": float("inf"), "cuda": 128}
# Anchors whose sampled features are in memory at a time on the CPU: few enough for the cache, enough for the product.
ANCHORS_AT_A_TIME = 256


def anchor_sampling(features: Tensor, plan: SamplingPlan) -> Tensor:
    """Sample every anchor's features: weighted sums of snippets, by a sparse plan.

    Args:
        features: [B, C, T]; [B, G, C, T] for a plan that takes bins from G > 1 sequences, like G-TAD's.
        plan: on the same device, with weights of the accumulation dtype: float32, or float64 for float64 features.

    features may have any strides and one of the dtypes float16, bfloat16, float32, float64; sums are in float32, or
    float64 for float64.

    Returns:
        [B, P, N, C] in the dtype of the features, contiguous: `out.flatten(2)` is BCNet's clip feature, bin by bin.

    Differentiable in the features, with the same bits on every repeat.

    Raises:
        TypeError: `features` is no tensor, or a dtype does not fit.
        ValueError: a rank, size or device does not fit.
    """
    _check_types(features, plan, {})
    return call(_sampling, _sample, features, *_arguments(plan))


def anchor_projection(
    features: Tensor,
    plan: SamplingPlan,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    strategy: str = "auto",
) -> Tensor:
    """Project every anchor's sampled features, `sum_n sampled[:, :, n] @ weight[n] + bias`, without storing them.

    This is what BMN computes with a dense sampling matrix and a 3-D convolution, and G-TAD with Align1D and a 1x1
    convolution. Sampling and projection are both linear, so they may change places:

        "project": every snippet is projected for every bin, [N, T, O], and the results are gathered:
                   N T C O + taps O multiply-adds, `taps` being the number of weights in the plan;
        "gather":  anchors are sampled, a block of them at a time, and each block is multiplied at once:
                   taps C + P N C O multiply-adds.

    Args:
        features, plan: as in `anchor_sampling`.
        weight: [N, C, O], of the features' dtype and device.
        bias: [O], or None.
        relu: whether negative results become 0.
        strategy: one of the two, or "auto" for the cheaper one: multiply-adds of the gathering are counted as
            GATHER_COST of those of the product. They give the same up to rounding.

    Returns:
        [B, P, O] in the dtype of the features, contiguous.

    Differentiable in features, weight and bias, with the same bits on every repeat; the backward always projects first.
    torch.autocast casts all three. On CUDA, "project" rounds the projected snippets to the dtype, and so overflows in
    float16 where they exceed its range, though their sums may not.

    Raises:
        TypeError: an argument is no tensor, or a dtype does not fit.
        ValueError: a rank, size, device or strategy does not fit.
    """
    _check_types(features, plan, {"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    if strategy not in STRATEGIES:
        raise ValueError(f"anchor_projection: strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if strategy == "auto" and weight.dim() == 3:
        strategy = cheaper_strategy(plan, *weight.shape[1:], features.device.type)
    features, weight, bias = autocast(features, weight, bias)
    arguments = features, weight, bias, *_arguments(plan), relu, strategy == "project"
    return call(_projection, _sample_and_project, *arguments)


def cheaper_strategy(plan: SamplingPlan, channels: int, outputs: int, device: str) -> str:
    """The strategy of `anchor_projection` that takes less time by the cost model given there.

    It counts work alone: for BMN's map that of "project" is 30 times smaller, for a tenth of T anchors it is larger.
    """
    bins = plan.first.shape[1]
    gather_cost, built_for = (table.get(device, table["cpu"]) for table in (GATHER_COST, COLUMNS_BUILT_FOR))
    project = bins * plan.length * channels * outputs + gather_cost * plan.taps * outputs
    gather = plan.anchors * bins * channels * outputs + gather_cost * plan.taps * channels * max(1, outputs / built_for)
    return "project" if project <= gather else "gather"


def _check_types(features, plan, others) -> None:
    op = "anchor_projection" if others else "anchor_sampling"
    for name, tensor in {"features": features, **others}.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    if not isinstance(plan, SamplingPlan):
        raise TypeError(f"{op}: plan must be a SamplingPlan, got {type(plan).__name__}")


def _check(op, features, first, weights, length, bins, weight=None, bias=None) -> None:
    """Raise for what no backend takes. Runs inside the operators, so that direct callers of them are held to it too."""

    def refuse(error, argument, wanted, got):
        raise error(f"{op}: {argument} must be {wanted}, got {got}")

    layout = "[B, C, T]" if len(bins) == 1 else f"[B, {len(bins)}, C, T]"
    shape = list(features.shape)
    fits = features.dim() == 3 if len(bins) == 1 else features.dim() == 4 and shape[1] == len(bins)
    if not fits or shape[-1] != length:
        refuse(ValueError, "features", f"{layout} with T = {length} as in the plan", f"shape {shape}")
    if 0 in shape:
        refuse(ValueError, "features", f"{layout} with no empty dimension", f"shape {shape}")
    if features.dtype not in DTYPES:
        supported = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        refuse(TypeError, "features", f"one of {supported}", features.dtype)
    if weights.dtype != reference.accumulation_dtype(features.dtype):
        wanted = reference.accumulation_dtype(features.dtype)
        refuse(TypeError, "plan", f"of {wanted} for these features: plan.to(dtype={wanted})", weights.dtype)
    given = {"plan": first}
    if weight is not None:
        channels = shape[-2]
        if weight.dim() != 3 or weight.shape[:2] != (sum(bins), channels) or weight.shape[2] == 0:
            refuse(
                ValueError, "weight", f"[{sum(bins)}, {channels}, O] to fit the others", f"shape {list(weight.shape)}"
            )
        given["weight"] = weight
    if bias is not None:
        if bias.shape != weight.shape[2:]:
            refuse(ValueError, "bias", f"[{weight.shape[2]}] to fit weight", f"shape {list(bias.shape)}")
        given["bias"] = bias
    for name, tensor in given.items():
        if name != "plan" and tensor.dtype != features.dtype:
            refuse(TypeError, name, f"{features.dtype} as features is", tensor.dtype)
        if tensor.device != features.device:
            refuse(ValueError, name, f"on {features.device} as features is", f"a tensor on {tensor.device}")


# The plan as operators take it, after their other tensors. Schemas are written out because PyTorch before 2.6 cannot
# read them from annotations that are strings.
_PLAN = (
    "Tensor first, Tensor offsets, Tensor weights, Tensor by_snippet_offsets, Tensor by_snippet_anchor, "
    "Tensor by_snippet_weight, Tensor order, Tensor step, Tensor group_offsets, Tensor group_rows, "
    "Tensor group_weights, int length, int[] bins, int longest"
)
_PLAN_TENSORS, _PLAN_ARGUMENTS = 11, 14


def _arguments(plan: SamplingPlan) -> tuple:
    tensors = plan.first, plan.offsets, plan.weights
    by_snippet = plan.by_snippet_offsets, plan.by_snippet_anchor, plan.by_snippet_weight
    groups = plan.order, plan.step, plan.group_offsets, plan.group_rows, plan.group_weights
    return (*tensors, *by_snippet, *groups, plan.length, list(plan.bins), plan.longest)


def _by_snippet(features: Tensor, bins: list[int]) -> Tensor:
    """[B, C, T] or [B, G, C, T] -> [B, G, T, C], contiguous: what is gathered are snippets."""
    return (features[:, None] if len(bins) == 1 else features).transpose(-1, -2).contiguous()


def _like_features(gradient: Tensor, bins: list[int]) -> Tensor:
    """[B, G, T, C] -> the layout of the features, contiguous."""
    gradient = gradient.transpose(-1, -2)
    return (gradient[:, 0] if len(bins) == 1 else gradient).contiguous()


def _native_tensors(*tensors: Tensor) -> list[Tensor]:
    """The tensors as C++ takes them: contiguous, float32 or float64."""
    return [t.detach().to(reference.accumulation_dtype(t.dtype)).contiguous() for t in tensors]


@cached_tensors(32)
def _sources(bins: tuple[int, ...]) -> Tensor:
    """The feature sequence that each bin reads, [N] int32."""
    return torch.repeat_interleave(torch.arange(len(bins)), torch.tensor(bins)).int()


@without_autocast
def _sample(
    features, first, offsets, weights, by_snippet_offsets, by_snippet_anchor, by_snippet_weight, order, step,
    group_offsets, group_rows, group_weights, length, bins, longest,
):  # fmt: skip
    _check("anchor_sampling", features, first, weights, length, bins)
    rows = _by_snippet(features, bins)
    backend = choose("anchor_sampling", features.device, features.dtype)
    if backend == "reference":
        return reference.anchor_sampling(rows, first, offsets, weights, bins, longest).to(features.dtype)
    if backend == "triton":
        from ..kernels import anchor_sampling as kernels

        out = features.new_empty(len(rows), *first.shape, rows.shape[-1])
        kernels.launch_sampling(rows, first, offsets, weights, bins, out)
        return out
    return _sample_native(rows, first, offsets, weights, bins).to(features.dtype)


def _sample_native(rows: Tensor, first: Tensor, offsets: Tensor, weights: Tensor, bins: list[int]) -> Tensor:
    (rows,) = _native_tensors(rows)
    out = rows.new_empty(len(rows), *first.shape, rows.shape[-1])
    arrays = [t.numpy() for t in (rows, first, offsets, weights, _sources(tuple(bins)), out)]
    _native.module.sample(*arrays, torch.get_num_threads())
    return out


_sampling = torch.library.custom_op(
    "bcnet_fast::anchor_sampling", _sample, mutates_args=(), schema=f"(Tensor features, {_PLAN}) -> Tensor"
)


@_sampling.register_fake
def _sampling_fake(features, first, offsets, weights, *rest):
    length, bins = rest[-3:-1]
    _check("anchor_sampling", features, first, weights, length, bins)
    return features.new_empty(features.shape[0], *first.shape, features.shape[-2])


@without_autocast
def _sample_backward(
    grad, first, offsets, weights, by_snippet_offsets, by_snippet_anchor, by_snippet_weight, order, step,
    group_offsets, group_rows, group_weights, length, bins, longest,
):  # fmt: skip
    """The gradient of the features, of grad [B, P, N, C]."""
    backend = choose("anchor_sampling", grad.device, grad.dtype)
    if backend == "reference":
        rows = reference.anchor_sampling_backward(grad, first, offsets, weights, length, bins, longest)
    elif backend == "triton":
        from ..kernels import anchor_sampling as kernels

        rows = grad.new_empty(grad.shape[0], len(bins), length, grad.shape[-1])
        transposed = by_snippet_offsets, by_snippet_anchor, by_snippet_weight
        kernels.launch_sampling_backward(grad.contiguous(), *transposed, bins, rows)
    else:
        (given,) = _native_tensors(grad)
        rows = given.new_empty(grad.shape[0], len(bins), length, grad.shape[-1])
        arrays = [t.numpy() for t in (given, first, offsets, weights, _sources(tuple(bins)), rows)]
        _native.module.sample_backward(*arrays, torch.get_num_threads())
    return _like_features(rows.to(grad.dtype), bins)


_sampling_backward = torch.library.custom_op(
    "bcnet_fast::anchor_sampling_backward",
    _sample_backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_PLAN}) -> Tensor",
)


@_sampling_backward.register_fake
def _sampling_backward_fake(grad, *plan):
    length, bins = plan[-3:-1]
    shape = (grad.shape[0], len(bins), grad.shape[-1], length)
    return grad.new_empty(shape if len(bins) > 1 else (shape[0], *shape[2:]))


def _sampling_context(ctx, inputs, output) -> None:
    _, *plan = inputs
    ctx.save_for_backward(*plan[:_PLAN_TENSORS])
    ctx.sizes, ctx.backend = plan[_PLAN_TENSORS:], requested()


def _sampling_autograd(ctx, grad):
    with use_backend(ctx.backend):
        grad = call(_sampling_backward, _sample_backward, grad, *ctx.saved_tensors, *ctx.sizes)
    return grad, *[None] * _PLAN_ARGUMENTS


_sampling.register_autograd(_sampling_autograd, setup_context=_sampling_context)


def _project(rows: Tensor, weight: Tensor, bins: list[int]) -> Tensor:
    """Project every snippet for every bin by one product per sequence: rows [B, G, T, C] -> [N, B, T, O]."""
    batch, _, length, channels = rows.shape
    projected = rows.new_empty(len(weight), batch, length, weight.shape[2])
    for source, (into, part) in enumerate(zip(projected.split(bins), weight.split(bins), strict=True)):
        snippets = rows[:, source].reshape(1, -1, channels).expand(len(part), -1, -1)
        torch.bmm(snippets, part, out=into.flatten(1, 2))
    return projected


@without_autocast
def _sample_and_project(
    features, weight, bias, first, offsets, weights, by_snippet_offsets, by_snippet_anchor, by_snippet_weight, order,
    step, group_offsets, group_rows, group_weights, length, bins, longest, relu, project_first,
):  # fmt: skip
    _check("anchor_projection", features, first, weights, length, bins, weight, bias)
    rows, weight = _by_snippet(features, bins), weight.contiguous()
    backend = choose("anchor_sampling", features.device, features.dtype)
    shape = len(rows), len(first), weight.shape[2]
    if backend == "triton":
        from ..kernels import anchor_sampling as kernels

        out = features.new_empty(shape)
        plan, bias = (first, offsets, weights, order), None if bias is None else bias.contiguous()
        if project_first:
            kernels.launch_gather(_project(rows, weight, bins), *plan, bias, relu, out)
        else:
            kernels.launch_projection(rows, weight, *plan, bins, bias, relu, out)
        return out
    if backend == "reference":
        exact = [t if t is None else t.to(weights.dtype) for t in (rows, weight, bias)]
        return reference.anchor_projection(*exact, first, offsets, weights, bins, longest, relu).to(features.dtype)

    rows, weight, *bias = _native_tensors(rows, weight, *([] if bias is None else [bias]))
    bias = bias[0] if bias else weight.new_zeros(weight.shape[2])
    result = rows.new_empty(shape)
    if project_first:
        groups = order, step, group_offsets, group_rows, group_weights
        for b in range(len(rows)):  # so that the projected snippets of one window fit the cache
            projected = _project(rows[b : b + 1], weight, bins).transpose(0, 1)
            tensors = projected, *groups, bias, result[b : b + 1]
            _native.module.gather(*(t.numpy() for t in tensors), relu, torch.get_num_threads())
    else:
        for begin in range(0, len(first), ANCHORS_AT_A_TIME):
            block = first[begin : begin + ANCHORS_AT_A_TIME]
            block_offsets = offsets[begin * sum(bins) : (begin + len(block)) * sum(bins) + 1]
            sampled = _sample_native(rows, block, block_offsets, weights, bins)
            for b in range(len(rows)):
                into = result[b, begin : begin + len(block)]
                torch.addmm(bias, sampled[b].flatten(1), weight.flatten(0, 1), out=into)
        if relu:
            result.relu_()
    return result.to(features.dtype)


_projection = torch.library.custom_op(
    "bcnet_fast::anchor_projection",
    _sample_and_project,
    mutates_args=(),
    schema=f"(Tensor features, Tensor weight, Tensor? bias, {_PLAN}, bool relu, bool project_first) -> Tensor",
)


@_projection.register_fake
def _projection_fake(features, weight, bias, first, offsets, weights, *rest):
    length, bins = rest[-5:-3]
    _check("anchor_projection", features, first, weights, length, bins, weight, bias)
    return features.new_empty(features.shape[0], first.shape[0], weight.shape[2])


@torch.library.custom_op(
    "bcnet_fast::anchor_projection_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor features, Tensor weight, {_PLAN}) -> (Tensor, Tensor)",
)
@without_autocast
def _projection_backward(
    grad, features, weight, first, offsets, weights, by_snippet_offsets, by_snippet_anchor, by_snippet_weight, order,
    step, group_offsets, group_rows, group_weights, length, bins, longest,
):  # fmt: skip
    """The gradients of features and weight, of grad [B, P, O]."""
    backend = choose("anchor_sampling", features.device, features.dtype)
    rows, weight = _by_snippet(features, bins), weight.contiguous()
    shape = grad.shape[0], sum(bins), length, grad.shape[2]
    if backend == "reference":
        grad, rows, weight = (t.to(weights.dtype) for t in (grad, rows, weight))
        projected = reference.anchor_gather_backward(grad, first, offsets, weights, length, longest)
    elif backend == "triton":
        from ..kernels import anchor_sampling as kernels

        projected = grad.new_empty(shape)
        transposed = by_snippet_offsets, by_snippet_anchor, by_snippet_weight
        kernels.launch_gather_backward(grad.contiguous(), *transposed, projected)
    else:
        grad, rows, weight = _native_tensors(grad, rows, weight)
        projected = grad.new_empty(shape)
        groups = order, step, group_offsets, group_rows, group_weights
        arrays = [t.numpy() for t in (grad, *groups, projected)]
        _native.module.gather_backward(*arrays, torch.get_num_threads())

    # One product each over bins or over the batch, so that half precision is summed in float32 and rounded once.
    grad_rows, grad_weight = torch.empty_like(rows), torch.empty_like(weight)
    for source, (part, part_weight, part_grad) in enumerate(
        zip(projected.split(bins, 1), weight.split(bins), grad_weight.split(bins), strict=True)
    ):
        grad_rows[:, source] = part.transpose(1, 2).flatten(2) @ part_weight.mT.flatten(0, 1)
        by_snippet = part.transpose(0, 1).flatten(1, 2)  # [bins, B * T, O]
        torch.matmul(rows[:, source].flatten(0, 1).mT, by_snippet, out=part_grad)
    return _like_features(grad_rows.to(features.dtype), bins), grad_weight.to(features.dtype)


@_projection_backward.register_fake
def _projection_backward_fake(grad, features, weight, *plan):
    return torch.empty_like(features, memory_format=torch.contiguous_format), weight.new_empty(weight.shape)


def _projection_context(ctx, inputs, output) -> None:
    features, weight, bias, *plan, relu, _ = inputs
    ctx.save_for_backward(features, weight, output if relu else None, *plan[:_PLAN_TENSORS])
    ctx.sizes, ctx.has_bias, ctx.backend = plan[_PLAN_TENSORS:], bias is not None, requested()


def _projection_autograd(ctx, grad):
    features, weight, out, *plan = ctx.saved_tensors
    if out is not None:
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
    with use_backend(ctx.backend):
        grad_features, grad_weight = _projection_backward(grad, features, weight, *plan, *ctx.sizes)
    grad_bias = grad.sum((0, 1)) if ctx.has_bias else None
    return grad_features, grad_weight, grad_bias, *[None] * (_PLAN_ARGUMENTS + 2)


_projection.register_autograd(_projection_autograd, setup_context=_projection_context)
