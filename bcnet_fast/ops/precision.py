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
            if before != value and not (value == "ieee" and before == "none"):
                setattr(owner, name, value)
                changed.append((owner, name, before))
        yield
    finally:
        for owner, name, before in changed:
            setattr(owner, name, before)


def _float32_switches(tf32: bool) -> list[tuple[Any, str, Any]]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # PyTorch 2.9 replaced the first pair by the second, and raises where both are in use.
    if not hasattr(matmul, "fp32_precision"):
        return [(matmul, "allow_tf32", tf32), (cudnn, "allow_tf32", tf32)]
    value = "tf32" if tf32 else "ieee"
    return [(matmul, "fp32_precision", value), (cudnn.conv, "fp32_precision", value)]


def _sum_switches() -> list[tuple[Any, str, Any]]:
    matmul = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    return [(matmul, name, False) for name in names]
