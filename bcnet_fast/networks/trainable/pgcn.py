"""P-GCN for training. Computes only values that reach the roots, and each proposal's first product once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...geometry.proposal_graph import SLOTS
from ..outputs import SecondStageOutput
from ..proposal_trees import edge_cosines, tree_edges, weighted_rows
from ..reference import pgcn as reference


class PGCN(reference.PGCN):
    """Proposals' features and their graph -> `SecondStageOutput` of every root.

    The pools of several videos may be given as one, with their trees' numbers moved accordingly.
    """

    def forward(self, activity: Tensor, completeness: Tensor, neighbours: Tensor) -> SecondStageOutput:
        trees = reference.whole_trees(neighbours) if neighbours.shape[1] == SLOTS else neighbours
        # A step samples few proposals of a pool.
        nodes, places = torch.unique(trees, return_inverse=True)
        activity, completeness = activity[nodes], completeness[nodes]
        edges = tree_edges(places)
        children = edges.shape[2] - 1
        share = activity.new_tensor([1.0, *[1 / children] * children])
        weights = [torch.relu(cosine) * share for cosine in edge_cosines(activity, completeness, edges)]
        of_activity = self.dropout(self._beside_tree(self.Act_GCN, activity, places, edges, weights[0]))
        of_completeness = self._beside_tree(self.Comp_GCN, completeness, places, edges, weights[1])
        regression = self.regressor_fc(of_completeness).unflatten(1, (self.config.classes, 2))
        return SecondStageOutput(self.activity_fc(of_activity), self.completeness_fc(of_completeness), regression)

    @staticmethod
    def _beside_tree(
        network: reference.GraphNetwork, x: Tensor, places: Tensor, edges: Tensor, weights: Tensor
    ) -> Tensor:
        """The tree's output for the root beside the root's own feature: [R, 2 D]."""
        hidden = torch.relu(weighted_rows(x @ network.gc1.weight, edges, weights) + network.gc1.bias)
        if network.training:
            # Drawn for all nodes, as in the reference, so that both drop the same values.
            ones = hidden.new_ones(*places.shape, hidden.shape[2])
            hidden = hidden * F.dropout(ones, network.dropout.p)[:, : hidden.shape[1]]
        mixed = (weights[:, :1] @ hidden).squeeze(1)
        return torch.cat([mixed @ network.gc2.weight + network.gc2.bias, x[places[:, 0]]], dim=1)
