"""float32 matrix products on a CPU by oneDNN, which PyTorch includes but does not use for `linear`.

PyTorch leaves these products to its BLAS. If that is MKL and the processor is not Intel's, as with PyTorch's own
packages on AMD, oneDNN takes half the time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Compute x weight^T + bias, with ReLU if `relu`: [..., K], [N, K], [N] -> [..., N]; differentiable once.

    Equals `torch.nn.functional.linear`, up to rounding, on any device, in any dtype and under torch.autocast. Products
    in float32 on a CPU are made by oneDNN.
    """
    if _by_onednn(x, weight):
        return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, relu).view(*x.shape[:-1], -1)
    out = F.linear(x, weight, bias)
    return out.relu_() if relu else out


def two_layers(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compute linear(linear(x, first, relu=True), second) as one step, to keep fewer tensors of the inner width."""
    if _by_onednn(x, first):
        return _TwoLayers.apply(x.reshape(-1, x.shape[-1]), first, second).view(*x.shape[:-1], -1)
    return linear(linear(x, first, relu=True), second)


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.enabled
        and onednn_operator() is not None
    )


@functools.cache
def onednn_operator() -> Callable[..., Any] | None:
    """Return PyTorch's operator for a linear layer by oneDNN; None in a build without oneDNN, or if it has gone.

    The operator is private: Inductor generates calls of it. No public function makes this product by oneDNN as fast:
    `to_mkldnn` copies both operands and the result, and a 1x1 convolution rearranges the weight.
    """
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """[M, K], [N, K], [N] -> [M, N]; transposed views are not copied. Requires: `onednn_operator()` is not None."""
    operator = onednn_operator()
    assert operator is not None
    return operator(x, weight, bias, "relu" if relu else "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        out = _product(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, out if relu else None)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        grad = grad.contiguous() if out is None else torch.ops.aten.threshold_backward(grad.contiguous(), out, 0)
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            _product(grad, weight.mT) if of_x else None,
            _product(grad.mT, x.mT) if of_weight else None,
            grad.sum(0) if of_bias else None,
            None,
        )


class _TwoLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        inner = _product(x, first, relu=True)
        ctx.save_for_backward(x, first, second, inner)
        return _product(inner, second)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, first, second, inner = ctx.saved_tensors
        grad = grad.contiguous()
        of_x, of_first, of_second = ctx.needs_input_grad
        of_inner = _product(grad, second.mT)
        torch.ops.aten.threshold_backward.grad_input(of_inner, inner, 0, grad_input=of_inner)
        return (
            _product(of_inner, first.mT) if of_x else None,
            _product(of_inner.mT, x.mT) if of_first else None,
            _product(grad.mT, inner.mT) if of_second else None,
        )
