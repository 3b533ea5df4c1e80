"""Marks of tests that need a backend which may be missing."""

from __future__ import annotations

import pytest
import torch

from bcnet_fast.ops import backends, native

needs_native = pytest.mark.skipif(native.module is None, reason=f"the native extension is not here: {native.reason}")
NATIVE = pytest.param("native", marks=needs_native)


def needs_triton(op: str) -> pytest.MarkDecorator:
    """Skips a test of an operator's Triton kernel where Triton is missing or older than the kernels ask for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    why = backends.unusable(op, "triton", device)
    return pytest.mark.skipif(why is not None, reason=str(why))
