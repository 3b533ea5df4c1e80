"""Tensors that follow from sizes alone: computed once and kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def cached_tensors(maxsize: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """`functools.lru_cache` for functions that return tensors.

    The first call may be in inference mode, whose tensors no later training could use. The function runs outside of it.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @functools.lru_cache(maxsize=maxsize)
        @functools.wraps(function)
        def compute(*arguments: Any) -> T:
            with torch.inference_mode(False):
                return function(*arguments)

        return compute

    return decorate
