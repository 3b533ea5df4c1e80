"""P-GCN (Zeng et al., "Graph Convolutional Networks for Temporal Action Localization", ICCV 2019) in plain PyTorch.

The definition that every faster version is tested against. Runs on any device in float32 and float64; trainable.
Parameter names are those of the public release.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import PGCNConfig
from ...geometry.proposal_graph import SLOTS
from ..outputs import SecondStageOutput
from .layers import linear_head


class GraphConvolution(nn.Module):
    """A graph layer: nodes x [R, n, inputs] and A [R, n, n] -> A (x W) + b."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(outputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ (x @ self.weight) + self.bias


class GraphNetwork(nn.Module):
    """Two graph layers: nodes [R, n, D] and A [R, n, n] -> [R, n, D]."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.gc1, self.gc2 = GraphConvolution(width, hidden), GraphConvolution(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.gc1(x, adjacency)))
        return self.gc2(hidden, adjacency)


def children_of(nodes: int) -> int:
    """Children b of a node in a tree of 1 + b + b^2 nodes."""
    return (math.isqrt(4 * nodes - 3) - 1) // 2


def tree_adjacency(x: Tensor) -> Tensor:
    """Weights between the nodes of trees: x [R, 1 + b + b^2, D] -> [R, n, n].

    The root and its children have edges to themselves and to their own b children. An edge weighs the cosine between
    both nodes' features, 1/b of it to a child, and 0 where it is negative or a feature is zero.
    """
    nodes = x.shape[1]
    children = children_of(nodes)
    shares = x.new_zeros(nodes, nodes)
    for node in range(children + 1):
        shares[node, node] = 1
        shares[node, 1 + children * node : 1 + children * (node + 1)] = 1 / children
    unit = F.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)
    return torch.relu(unit @ unit.mT * shares)


def whole_trees(slots: Tensor) -> Tensor:
    """Trees in which every node has all its slots as children: int64 [N, 10] -> [N, 111]."""
    roots = torch.arange(len(slots), device=slots.device)[:, None]
    return torch.cat([roots, slots, slots[slots].flatten(1)], dim=1)


class PGCN(nn.Module):
    """Proposals' features and their graph -> `SecondStageOutput` of every root."""

    def __init__(self, config: PGCNConfig) -> None:
        super().__init__()
        self.config, width, classes = config, config.feature_dim, config.classes
        self.activity_fc = linear_head(2 * width, classes + 1)
        self.completeness_fc = linear_head(6 * width, classes)
        self.regressor_fc = linear_head(6 * width, 2 * classes)
        self.Act_GCN = GraphNetwork(width, config.hidden, config.graph_dropout)
        self.Comp_GCN = GraphNetwork(3 * width, config.hidden, config.graph_dropout)
        self.dropout = nn.Dropout(config.activity_dropout)

    def forward(self, activity: Tensor, completeness: Tensor, neighbours: Tensor) -> SecondStageOutput:
        """Score R proposals out of N.

        activity: [N, C] features of the proposals
        completeness: [N, 3 C] features of start, proposal and end
        neighbours: int64 [R, 21], trees of `geometry.proposal_graph.draw_trees`; or [N, 10], the slots themselves, all
            of which then count alike
        """
        trees = whole_trees(neighbours) if neighbours.shape[1] == SLOTS else neighbours
        of_activity = self.dropout(self._beside_graph(self.Act_GCN, activity[trees]))
        of_completeness = self._beside_graph(self.Comp_GCN, completeness[trees])
        regression = self.regressor_fc(of_completeness).unflatten(1, (self.config.classes, 2))
        return SecondStageOutput(self.activity_fc(of_activity), self.completeness_fc(of_completeness), regression)

    @staticmethod
    def _beside_graph(network: GraphNetwork, x: Tensor) -> Tensor:
        """The graph's output for the root beside the root's own feature: [R, n, D] -> [R, 2 D]."""
        return torch.cat([network(x, tree_adjacency(x))[:, 0], x[:, 0]], dim=1)
