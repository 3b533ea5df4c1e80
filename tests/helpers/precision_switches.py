"""PyTorch's switches of the arithmetic that products use on a GPU, read and set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # PyTorch 2.9 and later
SUMS = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction", "allow_fp16_accumulation")


def tf32_of_products() -> bool:
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if NEW else matmul.allow_tf32


def tf32_of_convolutions() -> bool:
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision == "tf32" if NEW else cudnn.allow_tf32


def sums() -> list[bool]:
    matmul = torch.backends.cuda.matmul
    return [getattr(matmul, name) for name in SUMS if hasattr(matmul, name)]


def all_switches() -> list[Any]:
    """All that a program can read of the switches, by both families of names."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    readers: list[Callable[[], Any]] = [
        *(tf32_of_products, tf32_of_convolutions, sums),
        *(torch.get_float32_matmul_precision, lambda: cuda.matmul.allow_tf32, lambda: cudnn.allow_tf32),
    ]
    if NEW:
        owners = torch.backends, cudnn, cuda.matmul, cudnn.conv, cudnn.rnn
        readers += [lambda owner=owner: owner.fp32_precision for owner in owners]
    values = []
    for read in readers:
        try:
            values.append(read())
        except RuntimeError as error:  # PyTorch says so of settings by both families
            values.append(str(error).partition("\n")[0])
    return values


def set_precision(owner: Any, value: str = "tf32") -> None:
    owner.fp32_precision = value
