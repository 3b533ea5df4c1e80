"""The interface of a loaded network, so that inference does not import the code that loads it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..config import Config
from ..networks.outputs import Output


class LoadedNetwork(Protocol):
    """A network with its configuration, device and precision; `Model` is one."""

    config: Config
    device: torch.device
    precision: str
    backend: str  # backend of the operators that turn scores into proposals

    @property
    def skips_anchors(self) -> bool: ...

    def __call__(self, features: Tensor) -> Output: ...

    def boundaries(self, features: Tensor) -> Output: ...

    def anchors(self, features: Tensor, boundaries: Output, needed: Tensor) -> Output: ...
