"""Difference attention (paper Eq. 6): one softmax map reweights two value streams, in one fused pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from . import native as _native
from . import reference
from .backends import autocast, call, check_number, choose, requested, use_backend, without_autocast

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

    Args:
        query: [B, H, Tq, D], any strides, like all tensors here.
        key: [B, H, Tk, D].
        value_action, value_background: [B, H, Tk, Dv].
        scale: factor of the logits; None means 1 / sqrt(D).

    D and Dv are 1 to 128 (others than 64 and 128 are padded on CUDA); Tq and Tk at least 1. All tensors share one
    device and one of the dtypes float16, bfloat16, float32, float64; torch.autocast casts them. Sums are in float32;
    float64 inputs are summed in float64, not by Triton. On CUDA, float32 products are made in full precision unless
    PyTorch's own switch for its matmuls, `torch.backends.cuda.matmul.allow_tf32`, allows TF32.

    Returns:
        (`A value_action`, `A value_background`), each [B, H, Tq, Dv] in the dtype of the inputs. In memory they are
        [B, Tq, H, Dv], so that joining the heads (`out.transpose(1, 2).flatten(2)`) costs no copy.

    Differentiable once in the four tensors, with the same bits on every repeat. Only the reference stores the
    [B, H, Tq, Tk] map. Triton takes [B, H, Tq] beyond the outputs. In C++ each thread keeps a head's keys and values
    and a block of the map, in the backward its gradients too; what is in half precision is copied to float32.

    Raises:
        TypeError: an argument is no tensor, or has another dtype than supported or than `query`.
        ValueError: a rank, size or device does not fit.
    """
    tensors = {"query": query, "key": key, "value_action": value_action, "value_background": value_background}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"difference_attention: {name} must be a tensor, got {type(tensor).__name__}")
    if scale is not None:
        check_number("difference_attention", "scale", scale)
    given = autocast(query, key, value_action, value_background)
    out_action, out_background, _ = call(_forward, _run, *given, scale)
    return out_action, out_background


def _check(query, key, value_action, value_background, scale) -> None:
    """Raise for what no backend takes. Runs inside the operator, so that direct callers of it are held to it too."""
    named = {
        "query [B, H, Tq, D]": query,
        "key [B, H, Tk, D]": key,
        "value_action [B, H, Tk, Dv]": value_action,
        "value_background [B, H, Tk, Dv]": value_background,
    }
    for name, tensor in named.items():
        shape = tuple(tensor.shape)
        if tensor.dim() != 4:
            raise ValueError(f"difference_attention: {name} must have 4 dimensions, got shape {shape}")
        if 0 in shape:
            raise ValueError(f"difference_attention: {name} must have no empty dimension, got shape {shape}")
        if shape[3] > MAX_HEAD:
            raise ValueError(f"difference_attention: {name} must have a last size <= {MAX_HEAD}, got shape {shape}")
        if tensor.dtype not in DTYPES:
            supported = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
            raise TypeError(f"difference_attention: {name} must be one of {supported}, got {tensor.dtype}")
        if tensor.dtype != query.dtype:
            raise TypeError(f"difference_attention: {name} must be {query.dtype} as query is, got {tensor.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"difference_attention: {name} must be on {query.device} as query is, got {tensor.device}")
    batch, heads, _, d = query.shape
    length_k, dv = key.shape[2], value_action.shape[3]
    expected = [(batch, heads, length_k, d), (batch, heads, length_k, dv), (batch, heads, length_k, dv)]
    for (name, tensor), shape in zip(list(named.items())[1:], expected, strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"difference_attention: {name} must be {shape} to fit the others, got shape {tuple(tensor.shape)}"
            )
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"difference_attention: scale must be finite, got {scale}")


def _heads_joined(like: torch.Tensor, length: int, size: int) -> torch.Tensor:
    """An empty [B, H, length, size] that lies in memory as [B, length, H, size]."""
    batch, heads = like.shape[:2]
    return like.new_empty(batch, length, heads, size).transpose(1, 2)


def _arrays(*tensors: torch.Tensor) -> list[np.ndarray]:
    """As the C++ kernels take them: in the accumulation dtype, and with each head's elements side by side."""
    tensors = [t.detach().to(reference.accumulation_dtype(t.dtype)) for t in tensors]
    return [(t if t.stride(-1) == 1 else t.contiguous()).numpy() for t in tensors]


def _run_native(name: str, given: Sequence[torch.Tensor], scale: float, outputs: Sequence[torch.Tensor]) -> None:
    """Fill the outputs, by way of others where they are in half precision."""
    made = [out.to(reference.accumulation_dtype(out.dtype)) for out in outputs]
    kernel = getattr(_native.module, name)
    kernel(*_arrays(*given), scale, *(out.numpy() for out in made), threads=torch.get_num_threads())
    for out, value in zip(outputs, made, strict=True):
        if value is not out:
            out.copy_(value)


@without_autocast
def _run(
    query: torch.Tensor,
    key: torch.Tensor,
    value_action: torch.Tensor,
    value_background: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both outputs, and the log-sum-exp [B, H, Tq] of each row for the backward (no gradient flows through it)."""
    given = query, key, value_action, value_background
    outputs = _forward_fake(*given, scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    backend = choose("difference_attention", query.device, query.dtype)
    if backend == "triton":
        from ..kernels import difference_attention as kernels

        kernels.launch(*given, *outputs, scale)
    elif backend == "native":
        _run_native("difference_attention", given, scale, outputs)
    else:
        for out, value in zip(outputs, reference.difference_attention_forward(*given, scale), strict=True):
            out.copy_(value)
    return outputs


# Schemas are written out because PyTorch before 2.6 cannot read them from annotations that are strings.
_forward = torch.library.custom_op(
    "bcnet_fast::difference_attention",
    _run,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value_action, Tensor value_background, float? scale) "
    "-> (Tensor, Tensor, Tensor)",
)


@_forward.register_fake
def _forward_fake(query, key, value_action, value_background, scale):
    _check(query, key, value_action, value_background, scale)
    batch, heads, length_q, _ = query.shape
    out_action, out_background = (_heads_joined(query, length_q, value_action.shape[-1]) for _ in range(2))
    lse = query.new_empty(batch, heads, length_q, dtype=reference.accumulation_dtype(query.dtype))
    return out_action, out_background, lse


@without_autocast
def _run_backward(
    grad_action: torch.Tensor,
    grad_background: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value_action: torch.Tensor,
    value_background: torch.Tensor,
    out_action: torch.Tensor,
    out_background: torch.Tensor,
    lse: torch.Tensor,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key, value_action and value_background."""
    given = (grad_action, grad_background, query, key, value_action, value_background, out_action, out_background, lse)
    grads = _backward_fake(*given, scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    backend = choose("difference_attention", query.device, query.dtype)
    if backend == "triton":
        from ..kernels import difference_attention as kernels

        kernels.launch_backward(*given, *grads, scale)
    elif backend == "native":
        # Outputs and log-sum-exp are not read: each block of the map is made again, complete.
        _run_native("difference_attention_backward", given[:6], scale, grads)
    else:
        for grad, value in zip(grads, reference.difference_attention_backward(*given, scale), strict=True):
            grad.copy_(value)
    return grads


_backward = torch.library.custom_op(
    "bcnet_fast::difference_attention_backward",
    _run_backward,
    mutates_args=(),
    schema="(Tensor grad_action, Tensor grad_background, Tensor query, Tensor key, Tensor value_action, "
    "Tensor value_background, Tensor out_action, Tensor out_background, Tensor lse, float? scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


@_backward.register_fake
def _backward_fake(
    grad_action, grad_background, query, key, value_action, value_background, out_action, out_background, lse, scale
):
    return tuple(_heads_joined(t, t.shape[2], t.shape[3]) for t in (query, key, value_action, value_background))


def _setup_context(ctx, inputs, output) -> None:
    query, key, value_action, value_background, ctx.scale = inputs
    ctx.backend = requested()
    out_action, out_background, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(query, key, value_action, value_background, out_action, out_background, lse)


def _autograd(ctx, grad_action, grad_background, _):
    with use_backend(ctx.backend):
        grads = call(_backward, _run_backward, grad_action, grad_background, *ctx.saved_tensors, ctx.scale)
    return *grads, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
