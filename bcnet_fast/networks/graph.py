"""The graph of G-TAD: edges from each snippet to the snippets with the nearest features."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(x: Tensor, count: int) -> Tensor:
    """Find the `count` nearest nodes (Euclidean) of each node, itself included: x [..., C, T] -> int64 [..., T, count].

    Computed in float32 at least: distances are differences of larger numbers, which 16 bits do not resolve.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    squares = (x * x).sum(dim=-2)
    distance = squares.unsqueeze(-1) - 2 * x.mT @ x + squares.unsqueeze(-2)
    return distance.topk(count, dim=-1, largest=False).indices


def neighbours(x: Tensor, graph: Tensor, dim: int = -1) -> Tensor:
    """Gather the features of each node's neighbours: [..., C, T, K] or [..., T, K, C].

    x: [..., C, T] with dim = -1, or [..., T, C] with dim = -2
    graph: [..., T, K] int64
    """
    index = graph.flatten(-2).unsqueeze(-3 - dim)
    return torch.take_along_dim(x, index, dim=dim).unflatten(dim, graph.shape[-2:])
