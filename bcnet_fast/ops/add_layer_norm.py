"""Residual connection and LayerNorm without scale and shift, in one pass."""

from __future__ import annotations

import math
from typing import Any

import torch

from . import native, reference
from .backends import UNSUPPORTED, choose, requested, triton_kernels, use_backend
from .refusals import check_number, refuse, refuse_device, refuse_dtype, refuse_shape, refuse_type
from .registration import needs_gradient, refuse_tangents, register, register_gradient

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# On a CPU, PyTorch's own sum and LayerNorm are faster for fewer elements than this. With gradients the limit is higher,
# because the gradient of an operator that is registered from Python costs some 20 us more per call.
FUSED_FROM, FUSED_WITH_GRADIENTS_FROM = 2**14, 2**18


def add_layer_norm(x: torch.Tensor, residual: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Compute `LayerNorm(x + residual)` over the last dimension, without learned scale and shift.

    With z = x + residual, each row becomes (z - mean(z)) / sqrt(variance(z) + eps). The variance divides by D.
    Source: Ba et al., "Layer Normalization", 2016; BCNet's public release uses it without parameters.

    Args:
        x: [..., D] with D >= 1, any strides; float16, bfloat16, float32 or float64.
        residual: same shape, dtype and device as x; nothing is broadcast. Under torch.autocast the dtypes may differ,
            and both are cast to the wider one.
        eps: finite and >= 0.

    Returns:
        [..., D], contiguous, in the dtype of x.

    Precision: z is rounded once, to float32 (float64 for float64), and sums are made in that dtype. Neither a common
    offset nor an outlier of a row costs digits. A row of equal elements gives zeros if eps > 0.

    On the CPU, PyTorch's own sum and LayerNorm run instead, with their precision, in three cases: for float16 and
    bfloat16, for fewer than 16,384 elements (262,144 if gradients are recorded), and without the native extension. They
    do not run if a backend is set or under torch.compile.

    Differentiable once in x and residual, whose gradients are equal. Repeated calls give the same bits. The backward
    pass keeps the output and one number per row, not the inputs.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not supported or differs from that of x.
        ValueError: a shape, device or eps does not fit.
        NotImplementedError: an argument has a forward-mode tangent.
    """
    for name, tensor in (("x", x), ("residual", residual)):
        if not isinstance(tensor, torch.Tensor):
            refuse_type("add_layer_norm", name, tensor, "a tensor")
    check_number("add_layer_norm", "eps", eps)
    if x.dtype != residual.dtype and torch.is_autocast_enabled(x.device.type):
        dtype = torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(dtype), residual.to(dtype)
    if not torch.compiler.is_compiling() and requested() == "auto" and _pytorch_is_faster(x, residual):
        _check(x, residual, eps)
        return torch.nn.functional.layer_norm(x + residual, x.shape[-1:], eps=eps)
    refuse_tangents("add_layer_norm", x, residual)
    return _forward(x, residual, eps)[0]


def _pytorch_is_faster(x: torch.Tensor, residual: torch.Tensor) -> bool:
    if x.device.type != "cpu":
        return False
    if native.module is None or x.dtype in UNSUPPORTED["add_layer_norm", "native"]:
        return True
    return x.numel() < (FUSED_WITH_GRADIENTS_FROM if needs_gradient(x, residual) else FUSED_FROM)


def _check(x: torch.Tensor, residual: torch.Tensor, eps: float) -> None:
    """Raise for arguments that no backend supports. Called inside the operator, for direct callers of it."""
    if x.dim() == 0 or x.shape[-1] == 0:
        refuse_shape("add_layer_norm", "x", x, "[..., D] with D >= 1")
    if x.dtype not in DTYPES:
        refuse_dtype("add_layer_norm", "x", x.dtype, DTYPES)
    if residual.shape != x.shape:
        refuse_shape("add_layer_norm", "residual", residual, f"{list(x.shape)} as x has")
    if residual.dtype != x.dtype:
        refuse_dtype("add_layer_norm", "residual", residual.dtype, [x.dtype], " as x is")
    if residual.device != x.device:
        refuse_device("add_layer_norm", "residual", residual, x, "x")
    if not 0 <= eps < math.inf:
        refuse("add_layer_norm", "eps", eps, "a finite number >= 0")


def _arrays(*tensors: torch.Tensor) -> list[Any]:
    return [tensor.contiguous().numpy(force=True) for tensor in tensors]


def _run(x: torch.Tensor, residual: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output [..., D] and rstd = 1 / sqrt(variance + eps) [...] of each row; rstd has no gradient."""
    out, rstd = _fake(x, residual, eps)
    backend = choose("add_layer_norm", x.device, x.dtype)
    if backend == "native":
        threads = torch.get_num_threads()
        native.module.add_layer_norm(*_arrays(x, residual), eps, out.numpy(), rstd.numpy(), threads)
    elif backend == "triton":
        kernels = triton_kernels("add_layer_norm")
        kernels.launch(x, residual, out, rstd, eps)
    else:
        for result, value in zip((out, rstd), reference.add_layer_norm_forward(x, residual, eps), strict=True):
            result.copy_(value)
    return out, rstd


def _fake(x: torch.Tensor, residual: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    _check(x, residual, eps)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, x.new_empty(x.shape[:-1], dtype=reference.accumulation_dtype(x.dtype))


def _run_backward(grad: torch.Tensor, out: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    """Return the gradient of x, which is that of residual too."""
    grad_input = _fake_backward(grad, out, rstd)
    backend = choose("add_layer_norm", grad.device, grad.dtype)
    if backend == "native":
        arrays = _arrays(grad, out, rstd)
        native.module.add_layer_norm_backward(*arrays, grad_input.numpy(), torch.get_num_threads())
    elif backend == "triton":
        kernels = triton_kernels("add_layer_norm")
        kernels.launch_backward(grad, out, rstd, grad_input)
    else:
        grad_input.copy_(reference.add_layer_norm_backward(grad, out, rstd))
    return grad_input


def _fake_backward(grad: torch.Tensor, out: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(out, memory_format=torch.contiguous_format)


_forward = register(
    "add_layer_norm", "(Tensor x, Tensor residual, float eps) -> (Tensor out, Tensor rstd)", _run, _fake
)
_backward = register(
    "add_layer_norm_backward", "(Tensor grad, Tensor out, Tensor rstd) -> Tensor", _run_backward, _fake_backward
)


def _setup_context(ctx, inputs, output) -> None:
    out, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.save_for_backward(out, rstd)
    ctx.backend = requested()


def _gradient(ctx, grad, _):
    refuse_tangents("add_layer_norm", grad)
    with use_backend(ctx.backend):
        grad_input = _backward(grad, *ctx.saved_tensors)
    return grad_input, grad_input, None


register_gradient("add_layer_norm", _gradient, _setup_context)
