"""Difference attention (BCNet paper, Eq. 6): one softmax map reweights two value streams, in one fused pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from . import native, reference
from .backends import autocast, choose, requested, triton_kernels, use_backend, without_autocast
from .refusals import check_number, refuse, refuse_device, refuse_dtype, refuse_shape, refuse_type
from .registration import refuse_tangents, register, register_gradient

# The Triton kernels keep a whole head of both value streams in registers.
MAX_HEAD = 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def difference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value_action: torch.Tensor,
    value_background: torch.Tensor,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reweight two value streams with the same map, `A = softmax(query key^T * scale)`, computed once.

    Source: BCNet paper, Eq. 6.

    Args:
        query: [B, H, Tq, D]. All tensors may have any strides.
        key: [B, H, Tk, D].
        value_action: [B, H, Tk, Dv].
        value_background: [B, H, Tk, Dv].
        scale: factor of the logits, finite; None for 1 / sqrt(D).

    Requires: D and Dv from 1 to 128 (CUDA pads heads to 64 or 128), Tq and Tk at least 1, and one device and dtype for
    all tensors: float16, bfloat16, float32 or float64. torch.autocast casts them.

    Returns:
        (`A value_action`, `A value_background`), each [B, H, Tq, Dv] in the dtype of the inputs. The memory layout is
        [B, Tq, H, Dv], so that joining the heads (`out.transpose(1, 2).flatten(2)`) copies nothing.

    Precision: sums are in float32, or in float64 for float64 inputs, which Triton does not support. On CUDA, float32
    products have full precision unless `torch.backends.cuda.matmul.allow_tf32` allows TF32.

    Memory: only the reference stores the map [B, H, Tq, Tk]. Triton stores [B, H, Tq] beside the outputs. In C++ each
    thread holds the keys and values of one head, a block of the map, and in the backward pass their gradients. Inputs
    in half precision are copied to float32 there.

    Differentiable once in the four tensors. Repeated calls give the same bits.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not supported or differs from that of `query`.
        ValueError: a rank, size, device or scale does not fit.
        NotImplementedError: an argument has a forward-mode tangent.
    """
    tensors = {"query": query, "key": key, "value_action": value_action, "value_background": value_background}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            refuse_type("difference_attention", name, tensor, "a tensor")
    if scale is not None:
        check_number("difference_attention", "scale", scale)
    inputs = autocast(query, key, value_action, value_background)
    refuse_tangents("difference_attention", *inputs)
    out_action, out_background, _ = _forward(*inputs, scale)
    return out_action, out_background


class _Inputs(NamedTuple):
    query: torch.Tensor
    key: torch.Tensor
    value_action: torch.Tensor
    value_background: torch.Tensor


class _Outputs(NamedTuple):
    out_action: torch.Tensor
    out_background: torch.Tensor
    lse: torch.Tensor


class _Gradients(NamedTuple):
    of_query: torch.Tensor
    of_key: torch.Tensor
    of_action: torch.Tensor
    of_background: torch.Tensor


def _check(query, key, value_action, value_background, scale) -> None:
    """Raise for arguments that no backend supports. Called inside the operator, for direct callers of it."""
    op = "difference_attention"
    named = {
        "query": (query, "[B, H, Tq, D]"),
        "key": (key, "[B, H, Tk, D]"),
        "value_action": (value_action, "[B, H, Tk, Dv]"),
        "value_background": (value_background, "[B, H, Tk, Dv]"),
    }
    for name, (tensor, layout) in named.items():
        shape = tensor.shape
        if tensor.dim() != 4:
            refuse_shape(op, name, tensor, layout)
        if 0 in shape:
            refuse_shape(op, name, tensor, f"{layout} and not empty")
        if shape[3] > MAX_HEAD:
            refuse_shape(op, name, tensor, f"{layout} with a last size <= {MAX_HEAD}")
        if tensor.dtype not in DTYPES:
            refuse_dtype(op, name, tensor.dtype, DTYPES)
        if tensor.dtype != query.dtype:
            refuse_dtype(op, name, tensor.dtype, [query.dtype], " as query is")
        if tensor.device != query.device:
            refuse_device(op, name, tensor, query, "query")
    batch, heads, _, d = query.shape
    length_k, dv = key.shape[2], value_action.shape[3]
    expected = [(batch, heads, length_k, d), (batch, heads, length_k, dv), (batch, heads, length_k, dv)]
    for (name, (tensor, _)), shape in zip(list(named.items())[1:], expected, strict=True):
        if tuple(tensor.shape) != shape:
            refuse_shape(op, name, tensor, f"{list(shape)} to fit the others")
    if scale is not None and not math.isfinite(scale):
        refuse(op, "scale", scale, "a finite number")


def _heads_joined(like: torch.Tensor, length: int, size: int) -> torch.Tensor:
    """Allocate [B, H, length, size] with the memory layout [B, length, H, size]."""
    batch, heads = like.shape[:2]
    return like.new_empty(batch, length, heads, size).transpose(1, 2)


def _arrays(*tensors: torch.Tensor) -> list[np.ndarray]:
    """Convert to what the C++ kernels read: the accumulation dtype, and unit stride within a head."""
    tensors = tuple(t.detach().to(reference.accumulation_dtype(t.dtype)) for t in tensors)
    return [(t if t.stride(-1) == 1 else t.contiguous()).numpy() for t in tensors]


def _run_native(name: str, inputs: Sequence[torch.Tensor], scale: float, outputs: _Outputs | _Gradients) -> None:
    """Fill the outputs; those in half precision are computed in float32 and copied."""
    results = outputs._make(out.to(reference.accumulation_dtype(out.dtype)) for out in outputs)
    arrays = {argument: result.numpy() for argument, result in results._asdict().items()}
    getattr(native.module, name)(*_arrays(*inputs), scale, **arrays, threads=torch.get_num_threads())
    for out, result in zip(outputs, results, strict=True):
        if result is not out:
            out.copy_(result)


@without_autocast
def _run(
    query: torch.Tensor,
    key: torch.Tensor,
    value_action: torch.Tensor,
    value_background: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return both outputs and the log-sum-exp [B, H, Tq] of each row of logits, which has no gradient."""
    inputs = _Inputs(query, key, value_action, value_background)
    outputs = _Outputs(*_fake(*inputs, scale))
    scale = float(query.shape[-1] ** -0.5 if scale is None else scale)
    backend = choose("difference_attention", query.device, query.dtype)
    if backend == "triton":
        kernels = triton_kernels("difference_attention")
        kernels.launch(inputs, outputs, scale)
    elif backend == "native":
        _run_native("difference_attention", inputs, scale, outputs)
    else:
        for out, value in zip(outputs, reference.difference_attention_forward(*inputs, scale), strict=True):
            out.copy_(value)
    return outputs


def _fake(query, key, value_action, value_background, scale):
    _check(query, key, value_action, value_background, scale)
    batch, heads, length_q, _ = query.shape
    out_action, out_background = (_heads_joined(query, length_q, value_action.shape[-1]) for _ in range(2))
    lse = query.new_empty(batch, heads, length_q, dtype=reference.accumulation_dtype(query.dtype))
    return out_action, out_background, lse


@without_autocast
def _run_backward(
    grad_action: torch.Tensor,
    grad_background: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    scale: float | None,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of query, key, value_action and value_background.

    Args:
        grad_action, grad_background: gradients of the outputs, any strides.
        inputs: those of the forward operator, in its order.
        outputs: out_action, out_background and the log-sum-exp.
        scale: as in the forward operator.
    """
    grad_outputs, query = (grad_action, grad_background), _Inputs(*inputs).query
    grads = _Gradients(*_fake_backward(*grad_outputs, inputs, outputs, scale))
    scale = float(query.shape[-1] ** -0.5 if scale is None else scale)
    backend = choose("difference_attention", query.device, query.dtype)
    if backend == "triton":
        kernels = triton_kernels("difference_attention")
        kernels.launch_backward(inputs, outputs, grad_outputs, grads, scale)
    elif backend == "native":
        # Computes each block of the map completely again, so it reads neither the outputs nor the log-sum-exp.
        _run_native("difference_attention_backward", (*grad_outputs, *inputs), scale, grads)
    else:
        values = reference.difference_attention_backward(inputs, outputs, *grad_outputs, scale)
        for grad, value in zip(grads, values, strict=True):
            grad.copy_(value)
    return grads


def _fake_backward(grad_action, grad_background, inputs, outputs, scale):
    return tuple(_heads_joined(t, t.shape[2], t.shape[3]) for t in inputs)


_forward = register(
    "difference_attention",
    "(Tensor query, Tensor key, Tensor value_action, Tensor value_background, float? scale) "
    "-> (Tensor out_action, Tensor out_background, Tensor lse)",
    _run,
    _fake,
)
_backward = register(
    "difference_attention_backward",
    "(Tensor grad_action, Tensor grad_background, Tensor[] inputs, Tensor[] outputs, float? scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.backend = requested()
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, *output)


def _gradient(ctx, grad_action, grad_background, _):
    refuse_tangents("difference_attention", grad_action, grad_background)
    inputs, outputs = list(ctx.saved_tensors[:4]), list(ctx.saved_tensors[4:])
    with use_backend(ctx.backend):
        grads = _backward(grad_action, grad_background, inputs, outputs, ctx.scale)
    return *grads, None


register_gradient("difference_attention", _gradient, _setup_context)
