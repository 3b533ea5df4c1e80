"""Registration of the operators with PyTorch, by public functions alone.

`torch.library.Library.impl` takes 2 to 6 us less per call than `torch.library.custom_op`, which wraps every
implementation, and gives the same operators: for autograd, torch.compile, torch.export, modes and profilers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

NAMESPACE = "bcnet_fast"
# Registrations end with the life of this object.
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def register(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define the operator `bcnet_fast::name` and return it.

    Args:
        name: unqualified name.
        schema: arguments and results, "(Tensor x, float eps) -> Tensor". Results never alias arguments.
        run: implementation on every device.
        fake: shapes, dtypes and strides of the results, for tracing; raises what `run` raises for a misfit of these.
    """
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def register_gradient(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Make an operator differentiable once, in backward mode; arguments as in `torch.library.register_autograd`."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def refuse_tangents(op: str, *tensors: torch.Tensor | None) -> None:
    """Raise NotImplementedError for forward-mode derivatives, which PyTorch would leave out without a word."""
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{op}: has no forward-mode derivative, only gradients")


def needs_gradient(*tensors: torch.Tensor) -> bool:
    """Whether autograd would record a call with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
