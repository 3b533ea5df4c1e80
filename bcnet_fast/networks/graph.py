"""The graph of G-TAD: each snippet and the snippets whose features are nearest to its own."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(x: Tensor, count: int) -> Tensor:
    """The graph: for each node of x [..., C, T] its `count` nearest (Euclidean), itself included, [..., T, count].

    Never in 16 bits: distances are differences of larger numbers.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    squares = (x * x).sum(dim=-2)
    distance = squares.unsqueeze(-1) - 2 * x.mT @ x + squares.unsqueeze(-2)
    return distance.topk(count, dim=-1, largest=False).indices


def neighbours(x: Tensor, graph: Tensor, dim: int = -1) -> Tensor:
    """The features of each node's neighbours.

    x: [..., C, T] with dim = -1, or [..., T, C] with dim = -2. graph: [..., T, K], int64.
    Returns [..., C, T, K] or [..., T, K, C].
    """
    index = graph.flatten(-2).unsqueeze(-3 - dim)
    return torch.take_along_dim(x, index, dim=dim).unflatten(dim, graph.shape[-2:])
