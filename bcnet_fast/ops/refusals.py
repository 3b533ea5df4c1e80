"""Errors for arguments that no backend supports: "op: argument is ACTUAL, expected REQUIRED"."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
import torch

from ..text import alternatives


def refuse(op: str, argument: str, actual: object, required: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{op}: {argument} is {actual}, expected {required}")


def refuse_type(op: str, argument: str, value: object, required: str) -> NoReturn:
    refuse(op, argument, type(value).__name__, required, TypeError)


def refuse_shape(op: str, argument: str, array: np.ndarray | torch.Tensor, required: str) -> NoReturn:
    raise ValueError(f"{op}: {argument} has shape {list(array.shape)}, expected {required}")


def refuse_dtype(
    op: str, argument: str, dtype: torch.dtype, required: Iterable[torch.dtype], why: str = ""
) -> NoReturn:
    """required: the accepted dtypes. why: the reason for them, which starts with a space."""
    refuse(op, argument, name_of(dtype), alternatives(map(name_of, required)) + why, TypeError)


def refuse_device(op: str, argument: str, tensor: torch.Tensor, like: torch.Tensor, name: str) -> NoReturn:
    """Require the device of the tensor `like`, which the message calls `name`."""
    refuse(op, argument, f"on {tensor.device}", f"{like.device} as {name} is")


def check_number(op: str, argument: str, value: Any, *, integer: bool = False) -> None:
    """Raise TypeError if an argument is not a number. PyTorch's own message would be a page long."""
    kinds = (numbers.Integral, torch.SymInt) if integer else (numbers.Real, torch.SymInt, torch.SymFloat)
    if not isinstance(value, kinds):
        refuse(op, argument, repr(value), "an integer" if integer else "a number", TypeError)


def check_rows(op: str, argument: str, array: np.ndarray, good: np.ndarray, required: str) -> None:
    """Raise for the first row of an array that is not good. good: [rows] bool."""
    if not good.all():
        row = int(good.argmin())
        refuse(op, argument, f"{array[row].tolist()} in row {row} of {len(array)}", required)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
