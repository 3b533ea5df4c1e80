"""A network on CUDA as one graph per size of the batch: launched as a whole, without Python between its kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..outputs import Output

WARM_UP = 3  # runs before a capture: kernels are compiled and tuned, and libraries allocate their workspaces


class Graphed:
    """A function of features [B, C, T], captured when a size of the batch is first seen and replayed from then on.

    The outputs of a call are copies, and so stay as they are in the next one.
    """

    def __init__(self, function: Callable[[Tensor], Output], device: torch.device) -> None:
        self.function, self.device = function, device
        self.captured: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Output]] = {}

    def __call__(self, features: Tensor) -> Output:
        if not len(features):
            return self.function(features)
        with torch.cuda.device(self.device):
            if features.shape not in self.captured:
                self.captured[features.shape] = self._capture(features)
            graph, given, scores = self.captured[features.shape]
            given.copy_(features)
            graph.replay()
            return scores.map(Tensor.clone)

    def _capture(self, features: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Output]:
        given = features.to(self.device, torch.promote_types(features.dtype, torch.float32), copy=True)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.function(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            scores = self.function(given)
        return graph, given, scores
