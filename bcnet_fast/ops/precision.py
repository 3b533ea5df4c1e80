"""PyTorch's process-wide switches for the arithmetic of products on a GPU, set for a block of code and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def gpu_products(tf32: bool = False) -> Iterator[None]:
    """Multiply float32 as float32, or in TF32 if `tf32`; sum products of float16 and bfloat16 in float32.

    By default PyTorch rounds the inputs of float32 convolutions to TF32's 10 bits of mantissa on compute capability 8.0
    and later, and lets cuBLAS add partial sums of 16-bit products in 16 bits. The package's Triton kernels follow the
    switch for float32 as well (`kernels/_common.py`).

    The switches belong to the process: products that other threads start meanwhile follow them too. A CUDA graph keeps
    the arithmetic that was in force at its capture.
    """
    changed = []
    try:
        for owner, name, value in [*_float32_switches(tf32), *_sum_switches()]:
            before = getattr(owner, name)
            if before != value:
                changed.append((owner, name, _own_setting(owner, name, before)))
                setattr(owner, name, value)
        yield
    finally:
        for owner, name, before in reversed(changed):
            setattr(owner, name, before)


def _float32_switches(tf32: bool) -> list[tuple[Any, str, Any]]:
    """List general switches first: switches that follow them then need no change, and keep following."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # PyTorch 2.9 replaced the first pair by the others, and raises if both are used.
    if not hasattr(matmul, "fp32_precision"):
        return [(matmul, "allow_tf32", tf32), (cudnn, "allow_tf32", tf32)]
    value = "tf32" if tf32 else "ieee"
    # Despite its name, `cudnn` is the switch of all of CUDA.
    return [(owner, "fp32_precision", value) for owner in (cudnn, matmul, cudnn.conv)]


def _own_setting(owner: Any, name: str, value: Any) -> Any:
    """Return the value to restore: "none" if the switch of all of CUDA follows the general one."""
    general = getattr(torch.backends, "fp32_precision", None)
    follows = owner is torch.backends.cudnn and name == "fp32_precision" and value == general
    return "none" if follows else value


def _sum_switches() -> list[tuple[Any, str, Any]]:
    matmul = torch.backends.cuda.matmul
    names = (
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",  # since PyTorch 2.7
    )
    return [(matmul, name, False) for name in names if hasattr(matmul, name)]
