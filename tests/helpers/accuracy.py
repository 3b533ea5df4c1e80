"""How far a result may be from the exact one."""

from __future__ import annotations

import pytest
import torch

# Largest allowed `error` of an operator, for outputs and gradients alike: 4 to 8 roundings of the dtype.
BOUNDS = {torch.float64: 2e-15, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """||result - exact|| relative to ||exact||, or absolute where that is zero."""
    exact = exact.detach().cpu()
    return float((result.detach().cpu().double() - exact).norm() / (exact.norm() or 1.0))


def dtype(value: torch.dtype):
    """A parameter of a test, named like the dtype."""
    return pytest.param(value, id=str(value).removeprefix("torch."))
