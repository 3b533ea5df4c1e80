"""Residual connection and LayerNorm without scale and shift, in one pass."""

from __future__ import annotations

import math

import torch

from . import native as _native
from . import reference
from .backends import LACKING, call, check_number, choose, plain, requested, use_backend

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# With fewer elements than this, two of PyTorch's own operators take less time on a CPU: in plain execution, and where
# PyTorch has to call ours (_dispatch.plain), for which it needs some 50 us since that is defined in Python.
WORTH_A_PLAIN_CALL, WORTH_A_CALL = 2**14, 2**18


def add_layer_norm(x: torch.Tensor, residual: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """`LayerNorm(x + residual)` over the last dimension, without learned scale and shift.

    With z = x + residual, each row becomes (z - mean(z)) / sqrt(variance(z) + eps); the variance divides by D.

    Args:
        x: [..., D], D >= 1, any strides; float16, bfloat16, float32 or float64.
        residual: like x in shape, dtype and device; nothing is broadcast. Under torch.autocast, of two dtypes the wider
            one is taken.
        eps: finite and >= 0.

    Returns:
        [..., D], contiguous, in the dtype of x. z is rounded once, to float32 or for float64 to float64, in which all
        sums are made. Neither an offset common to a row nor an outlier in it costs further digits, and a row of equal
        elements gives zeros (for eps > 0). Except that CPU tensors in 16 bits, or of less than 16,384 elements (262,144
        where PyTorch calls the operator: with gradients, in a mode, in a profiler), and all where there is no native
        extension, are left to PyTorch's own sum and LayerNorm, and their precision, unless a backend is asked for or a
        compiler traces.

    Differentiable once in x and residual, whose gradients are equal, with the same bits on every repeat. The backward
    keeps the output and one number per row, not the inputs.

    Raises:
        TypeError: an argument is no tensor, or has another dtype than supported or than x.
        ValueError: a shape, device or eps does not fit.
    """
    for name, tensor in (("x", x), ("residual", residual)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"add_layer_norm: {name} must be a tensor, got {type(tensor).__name__}")
    check_number("add_layer_norm", "eps", eps)
    if x.dtype != residual.dtype and torch.is_autocast_enabled(x.device.type):
        dtype = torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(dtype), residual.to(dtype)
    if not torch.compiler.is_compiling() and requested() == "auto" and _pytorch_is_faster(x, residual):
        _check(x, residual, eps)
        return torch.nn.functional.layer_norm(x + residual, x.shape[-1:], eps=eps)
    return call(_forward, _run, x, residual, eps)[0]


def _pytorch_is_faster(x: torch.Tensor, residual: torch.Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    if _native.module is None or x.dtype in LACKING["add_layer_norm", "native"]:
        return True
    return x.numel() < WORTH_A_PLAIN_CALL or (x.numel() < WORTH_A_CALL and not plain(x, residual))


def _check(x: torch.Tensor, residual: torch.Tensor, eps: float) -> None:
    """Raise for what no backend takes. Runs inside the operator, so that direct callers of it are held to it too."""
    shape = tuple(x.shape)
    if not shape or shape[-1] == 0:
        raise ValueError(f"add_layer_norm: x must be [..., D] with D >= 1, got shape {shape}")
    if x.dtype not in DTYPES:
        supported = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f"add_layer_norm: x must be one of {supported}, got {x.dtype}")
    if residual.shape != x.shape:
        raise ValueError(f"add_layer_norm: residual must be {shape} as x is, got shape {tuple(residual.shape)}")
    if residual.dtype != x.dtype:
        raise TypeError(f"add_layer_norm: residual must be {x.dtype} as x is, got {residual.dtype}")
    if residual.device != x.device:
        raise ValueError(f"add_layer_norm: residual must be on {x.device} as x is, got {residual.device}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"add_layer_norm: eps must be finite and >= 0, got {eps}")


def _arrays(*tensors: torch.Tensor) -> list:
    return [tensor.contiguous().numpy(force=True) for tensor in tensors]


def _run(x: torch.Tensor, residual: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and 1 / sqrt(variance + eps) [...] of each row for the backward (no gradient flows through it)."""
    out, rstd = _forward_fake(x, residual, eps)
    backend = choose("add_layer_norm", x.device, x.dtype)
    if backend == "native":
        _native.module.add_layer_norm(*_arrays(x, residual), eps, out.numpy(), rstd.numpy(), torch.get_num_threads())
    elif backend == "triton":
        from ..kernels import add_layer_norm as kernels

        kernels.launch(x, residual, out, rstd, eps)
    else:
        for result, value in zip((out, rstd), reference.add_layer_norm_forward(x, residual, eps), strict=True):
            result.copy_(value)
    return out, rstd


# Schemas are written out because PyTorch before 2.6 cannot read them from annotations that are strings.
_forward = torch.library.custom_op(
    "bcnet_fast::add_layer_norm",
    _run,
    mutates_args=(),
    schema="(Tensor x, Tensor residual, float eps) -> (Tensor, Tensor)",
)


@_forward.register_fake
def _forward_fake(x, residual, eps):
    _check(x, residual, eps)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, x.new_empty(x.shape[:-1], dtype=reference.accumulation_dtype(x.dtype))


def _run_backward(grad: torch.Tensor, out: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """The gradient of x, which is that of residual too."""
    grad_input = _backward_fake(grad, out, rstd)
    backend = choose("add_layer_norm", grad.device, grad.dtype)
    if backend == "native":
        arrays = _arrays(grad, out, rstd)
        _native.module.add_layer_norm_backward(*arrays, grad_input.numpy(), torch.get_num_threads())
    elif backend == "triton":
        from ..kernels import add_layer_norm as kernels

        kernels.launch_backward(grad, out, rstd, grad_input)
    else:
        grad_input.copy_(reference.add_layer_norm_backward(grad, out, rstd))
    return grad_input


_backward = torch.library.custom_op(
    "bcnet_fast::add_layer_norm_backward",
    _run_backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor out, Tensor rstd) -> Tensor",
)


@_backward.register_fake
def _backward_fake(grad, out, rstd):
    return torch.empty_like(out, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output) -> None:
    out, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.save_for_backward(out, rstd)
    ctx.backend = requested()


def _autograd(ctx, grad, _):
    with use_backend(ctx.backend):
        grad_input = call(_backward, _run_backward, grad, *ctx.saved_tensors)
    return grad_input, grad_input, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
