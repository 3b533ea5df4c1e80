"""P-GCN's training step as the public code has it: all trees of a batch in one matrix of edges.

Nearly all of that matrix is zero, because no edge leads from one tree to another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bcnet_fast.networks.outputs import SecondStageOutput
from bcnet_fast.networks.reference import pgcn as reference


class DensePGCN(reference.PGCN):
    """`reference.PGCN` with products of [21 R, 21 R] matrices for R trees."""

    def forward(self, activity: Tensor, completeness: Tensor, neighbours: Tensor) -> SecondStageOutput:
        of_activity = self.dropout(self._beside_trees(self.Act_GCN, activity[neighbours]))
        of_completeness = self._beside_trees(self.Comp_GCN, completeness[neighbours])
        regression = self.regressor_fc(of_completeness).unflatten(1, (self.config.classes, 2))
        return SecondStageOutput(self.activity_fc(of_activity), self.completeness_fc(of_completeness), regression)

    @staticmethod
    def _beside_trees(network: reference.GraphNetwork, x: Tensor) -> Tensor:
        """What the graph says about the roots, beside their own features: [R, 21, D] -> [R, 2 D]."""
        trees, nodes, _ = x.shape
        children = reference.children_of(nodes)
        share = x.new_zeros(nodes, nodes)
        for node in range(children + 1):
            share[node, node] = 1
            share[node, 1 + children * node : 1 + children * (node + 1)] = 1 / children
        flat = x.flatten(0, 1)
        unit = F.normalize(flat, dim=-1, eps=torch.finfo(x.dtype).tiny)
        adjacency = torch.relu((unit @ unit.T) * torch.block_diag(*[share] * trees))
        return torch.cat([network(flat, adjacency)[::nodes], x[:, 0]], dim=1)
