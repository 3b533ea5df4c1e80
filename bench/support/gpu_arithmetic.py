"""Emulation, on a CPU, of the roundings that products make on a GPU: float32, TF32, float16 and bfloat16.

    with GPUArithmetic(), torch.inference_mode():
        network(features)

Every matrix product and convolution inside the block is computed in float32 from inputs that are rounded as matrix
units round them. The dtype of the inputs and PyTorch's own switches at the moment of the call decide how:

| inputs | products by cuBLAS and cuDNN | products in the package's Triton kernels |
|---|---|---|
| float32 | as they are | as they are |
| float32, TF32 switched on | rounded to nearest, ties away from zero | the lower 13 bits are dropped |
| float16, bfloat16 | as they are; the result is rounded once | the same |

Sums are in float32 throughout. Their order is that of the CPU: on a GPU it is another one and unknown.

Sources: "Accelerating AI Training with NVIDIA TF32 Tensor Cores" (NVIDIA's technical blog) has the format, 10 explicit
bits of mantissa, and the float32 sums. The PTX ISA has both roundings: `cvt.rna.tf32.f32` rounds to nearest, ties away
from zero, and `wgmma` drops the lower 13 bits of float32 operands. Triton's issue 4574 reports that `tl.dot` drops them
too, and that it gives cuBLAS's results after `cvt.rna`.

One case rounds more than a GPU does. For float32, PyTorch's memory-efficient attention adds three TF32 products of
split inputs whatever the switches say, which is nearly float32 (`DefaultGemmType` in PyTorch's `mem_eff_attention`).
Here its inputs are rounded like those of any other product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bcnet_fast.ops import reference  # and with it the operators that are named below
from bcnet_fast.ops.sampling_plan import SamplingPlan

DROPPED = 13  # bits of a float32's mantissa that TF32 does not have
# Parts of the names of operations that multiply. Those that are not emulated are refused.
MULTIPLYING = ("mm", "mv", "matmul", "linear", "conv", "dot", "attention", "einsum", "lstm", "gru", "mkldnn")

Rounding = Callable[[Tensor], Tensor]


def nearest_tf32(x: Tensor) -> Tensor:
    """Round float32 to TF32, to nearest, ties away from zero."""
    # Sign and magnitude: adding half a unit to the bits moves away from zero, and carries into the exponent.
    return _without_dropped_bits(x, 1 << (DROPPED - 1))


def truncated_tf32(x: Tensor) -> Tensor:
    """Round float32 to TF32, towards zero."""
    return _without_dropped_bits(x, 0)


def _without_dropped_bits(x: Tensor, added: int) -> Tensor:
    bits = x.contiguous().view(torch.int32) + added
    return torch.where(x.isfinite(), (bits & -(1 << DROPPED)).view(torch.float32), x)


def products_use_tf32() -> bool:
    """Whether PyTorch's switches now allow TF32 in matrix products of float32."""
    return _allows_tf32(torch.backends.cuda.matmul)


def convolutions_use_tf32() -> bool:
    """The same for convolutions."""
    cudnn = torch.backends.cudnn
    return _allows_tf32(getattr(cudnn, "conv", cudnn))


def _allows_tf32(switch: Any) -> bool:
    precision = getattr(switch, "fp32_precision", None)
    # PyTorch before 2.9 has the other name alone; later versions can raise where it is read.
    return switch.allow_tf32 if precision is None else precision == "tf32"


class GPUArithmetic(TorchDispatchMode):
    """Emulate a GPU's products inside a `with` block, in inference mode and on tensors of a CPU.

    Operations that multiply and are not emulated raise NotImplementedError. Operations without matrix products run
    unchanged: they round their results to the dtype once, on a CPU as on a GPU.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        emulated = EMULATED.get(function)
        if emulated is not None:
            return emulated(*args, **kwargs)
        if function._can_decompose():
            with self:  # so that the parts come here again
                return function.decompose(*args, **kwargs)
        namespace, name = str(function).split(".")[:2]
        if namespace not in ("aten", "prim") or any(part in name for part in MULTIPLYING):
            raise NotImplementedError(f"{function}: has no emulation of a GPU's arithmetic")
        return function(*args, **kwargs)


def product(a: Tensor, b: Tensor, rounding: Rounding = nearest_tf32) -> Tensor:
    """a @ b in float32, from inputs as matrix units see them; float64 stays float64."""
    if a.dtype == torch.float32 and products_use_tf32():
        a, b = rounding(a), rounding(b)
    accumulated = reference.accumulation_dtype(a.dtype)
    return torch.matmul(a.to(accumulated), b.to(accumulated))


def mm(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b).to(a.dtype)


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """cuBLAS adds the bias before it rounds."""
    return (beta * bias + alpha * product(a, b)).to(a.dtype)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """PyTorch adds the bias to cuDNN's rounded result."""
    dtype, accumulated = x.dtype, reference.accumulation_dtype(x.dtype)
    if dtype == torch.float32 and convolutions_use_tf32():
        x, weight = nearest_tf32(x), nearest_tf32(weight)
    options = stride, padding, dilation, transposed, output_padding, groups
    out = torch.convolution(x.to(accumulated), weight.to(accumulated), None, *options).to(dtype)
    return out if bias is None else out + bias.view(-1, *[1] * (out.dim() - 2))


def weighted(query: Tensor, key: Tensor, values: tuple[Tensor, ...], scale: float, rounding: Rounding) -> list[Tensor]:
    """softmax(query key^T * scale) times each of the values, in a pass over the keys that divides at its end."""
    logits = product(query, key.mT, rounding) * scale
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    total = weights.sum(-1, keepdim=True)
    weights = weights.to(query.dtype)
    return [(product(weights, value, rounding) / total).to(query.dtype) for value in values]


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any) -> Tensor:
    if others or options:
        raise NotImplementedError("scaled_dot_product_attention: options have no emulation of a GPU's arithmetic")
    return weighted(query, key, (value,), query.shape[-1] ** -0.5, nearest_tf32)[0]


def difference_attention(
    query: Tensor, key: Tensor, value_action: Tensor, value_background: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiplies like kernels/difference_attention.py. The third result, for the backward, is left empty."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    outputs = weighted(query, key, (value_action, value_background), scale, truncated_tf32)
    return *outputs, query.new_empty(0)


def anchor_projection(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan_tensors: list[Tensor],
    plan_sizes: list[int],
    relu: bool,
    project_first: bool,
) -> Tensor:
    """Multiplies like ops/anchor_sampling.py and kernels/anchor_sampling.py, by either strategy."""
    plan, dtype = SamplingPlan.unpack(plan_tensors, plan_sizes), features.dtype
    rows = by_snippet(features, plan)
    if project_first:
        parts = zip(rows.unbind(1), weight.split(plan.bins), strict=True)
        projected = torch.cat([product(x[:, None], w).to(dtype) for x, w in parts], dim=1)  # [B, N, T, O]
        # From here on, every bin reads a sequence of its own.
        out = reference.anchor_sampling(projected, replace(plan, bins=(1,) * len(weight))).sum(2)
    else:
        sampled = reference.anchor_sampling(rows, plan).to(dtype)
        out = product(sampled.flatten(2), weight.flatten(0, 1), truncated_tf32)
    out = out if bias is None else out + bias
    return (out.relu() if relu else out).to(dtype)


def anchor_sampling(features: Tensor, plan_tensors: list[Tensor], plan_sizes: list[int]) -> Tensor:
    """Sums of float32 products by ordinary units."""
    plan = SamplingPlan.unpack(plan_tensors, plan_sizes)
    return reference.anchor_sampling(by_snippet(features, plan), plan).to(features.dtype)


def by_snippet(features: Tensor, plan: SamplingPlan) -> Tensor:
    """[B, C, T] or [B, G, C, T] -> [B, G, T, C]"""
    return (features[:, None] if len(plan.bins) == 1 else features).mT


def add_layer_norm(x: Tensor, residual: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Without products."""
    out, rstd = reference.add_layer_norm_forward(x, residual, eps)
    return out.to(x.dtype), rstd


EMULATED = {
    torch.ops.aten.mm.default: mm,
    torch.ops.aten.bmm.default: mm,
    torch.ops.aten.addmm.default: addmm,
    torch.ops.aten.convolution.default: convolution,
    torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
    torch.ops.bcnet_fast.difference_attention.default: difference_attention,
    torch.ops.bcnet_fast.anchor_projection.default: anchor_projection,
    torch.ops.bcnet_fast.anchor_sampling.default: anchor_sampling,
    torch.ops.bcnet_fast.add_layer_norm.default: add_layer_norm,
}
