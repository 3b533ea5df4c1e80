"""Cache for tensors that follow from sizes alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def cached_tensors(maxsize: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate a function that returns tensors, like `functools.lru_cache`.

    The function always runs outside of inference mode, because a later training could not use inference tensors.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @functools.lru_cache(maxsize=maxsize)
        @functools.wraps(function)
        def compute(*arguments: Any) -> T:
            with torch.inference_mode(False):
                return function(*arguments)

        return compute

    return decorate
