"""Sums and cosines along the edges of P-GCN's trees, on any device and with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference.pgcn import children_of

EDGES_AT_A_TIME = 128  # both ends of as many edges fit a CPU's cache


def tree_edges(trees: Tensor) -> Tensor:
    """Edges of the root and its children: trees [R, 1 + b + b^2] -> [R, 1 + b, 1 + b], the first to the node itself."""
    children = children_of(trees.shape[1])
    below = trees[:, 1:].unflatten(1, (children + 1, children))
    return torch.cat([trees[:, : children + 1, None], below], dim=2)


def weighted_rows(x: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of x [N, d]: rows, weights [..., k] -> [..., d]."""
    sums = F.embedding_bag(rows.flatten(0, -2), x, mode="sum", per_sample_weights=weights.flatten(0, -2))
    return sums.unflatten(0, rows.shape[:-1])


def edge_cosines(activity: Tensor, completeness: Tensor, edges: Tensor) -> list[Tensor]:
    """Cosines of both kinds of features along edges [R, rows, 1 + b], each pair of proposals once."""
    nodes, width = activity.shape
    pairs, place = torch.unique(edges[..., :1] * nodes + edges, return_inverse=True)
    left, right = pairs // nodes, pairs % nodes
    parts = completeness.unflatten(1, (3, width))
    of_parts = _dots(parts, left, right), _dots(parts)
    # A proposal's activity feature usually is the middle of its completeness feature.
    if torch.equal(activity, parts[:, 1]):
        of_activity = [x[:, 1] for x in of_parts]
    else:
        of_activity = [_dots(activity[:, None], left, right)[:, 0], _dots(activity[:, None])[:, 0]]
    cosines = []
    for dots, squares in (of_activity, [x.sum(dim=1) for x in of_parts]):
        # A zero feature is at a right angle to all others. Its length of 1 keeps gradients finite too.
        length = torch.where(squares > 0, squares, 1).sqrt()
        cosines.append((dots / (length[left] * length[right]))[place])
    return cosines


def _dots(x: Tensor, left: Tensor | None = None, right: Tensor | None = None) -> Tensor:
    """Products of rows of x [N, parts, d], of each with itself without indices: [E, parts]."""
    if left is None or right is None:
        return x.square().sum(dim=-1)
    ends = zip(left.split(EDGES_AT_A_TIME), right.split(EDGES_AT_A_TIME), strict=True)
    return torch.cat([(x[i] * x[j]).sum(dim=-1) for i, j in ends])
