"""P-GCN's inference in PyTorch, for any device. `reference.pgcn` defines its results."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import PGCNConfig
from ...geometry.proposal_graph import SLOTS
from ...profiling import stage
from ..outputs import SecondStageOutput
from ..proposal_trees import edge_cosines, tree_edges, weighted_rows
from ..reference.pgcn import whole_trees
from .rewrites import Rewrites

ROOTS_AT_A_TIME = 256  # bounds the temporary memory of a graph


class PGCNEngine:
    """Proposals' features and their graph to scores."""

    def __init__(
        self,
        config: PGCNConfig,
        state: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        rewrites: Rewrites,
    ) -> None:
        """Prepare all weights.

        state: the parameters of `reference.pgcn.PGCN` by name, not needed afterwards
        dtype: of arithmetic and scores, float32 or float64
        """
        self.config, self.device, self.dtype, self.rewrites = config, device, dtype, rewrites

        def head(*names: str) -> tuple[Tensor, Tensor]:
            weight, bias = (torch.cat([state[f"{name}.{part}"] for name in names]) for part in ("weight", "bias"))
            return weight, bias

        self.activity = _Branch(state, "Act_GCN", *head("activity_fc"), self)
        self.completeness = _Branch(state, "Comp_GCN", *head("completeness_fc", "regressor_fc"), self)

    def __call__(self, activity: Tensor, completeness: Tensor, neighbours: Tensor) -> SecondStageOutput:
        """Score proposals; see `reference.pgcn.PGCN.forward`."""
        activity, completeness = (x.to(self.device, self.dtype) for x in (activity, completeness))
        neighbours, classes = neighbours.to(self.device), self.config.classes
        if not len(neighbours):
            empty = activity.new_zeros(0, 3 * classes + 1).split([classes + 1, classes, classes], dim=1)
            return SecondStageOutput(empty[0], empty[1], torch.stack([empty[2]] * 2, dim=2))
        # With all slots, a proposal has the same first layer wherever it occurs, as long as that is computed once.
        once = neighbours.shape[1] == SLOTS and self.rewrites.shared_nodes
        if neighbours.shape[1] == SLOTS and not once:
            neighbours = whole_trees(neighbours)
        if once:
            roots = torch.arange(len(neighbours), device=self.device)[:, None]
            nodes = torch.cat([roots, neighbours], dim=1)
            edges = nodes[:, None]
        else:
            nodes, edges = neighbours, tree_edges(neighbours)
        with stage("edges"):
            weights = self._weights(activity, completeness, nodes, edges)
        scores = []
        for branch, x, of_edges in zip(
            (self.activity, self.completeness), (activity, completeness), weights, strict=True
        ):
            with stage("graph"):
                scores.append(branch.shared(x, edges, of_edges) if once else branch(x, nodes, edges, of_edges))
        of_completeness, regression = scores[1].split([classes, 2 * classes], dim=1)
        return SecondStageOutput(scores[0], of_completeness, regression.unflatten(1, (classes, 2)))

    def _weights(self, activity: Tensor, completeness: Tensor, nodes: Tensor, edges: Tensor) -> list[Tensor]:
        """Weights of edges [R, rows, 1 + b] between the nodes [R, n] of graphs, for both kinds of features."""
        children = edges.shape[2] - 1
        if self.rewrites.edge_cosines:
            cosines = edge_cosines(activity, completeness, edges)
        else:
            cosines = [_dense_cosines(x, nodes, edges.shape[1]) for x in (activity, completeness)]
        share = torch.full((children + 1,), 1 / children, dtype=self.dtype, device=self.device)
        share[0] = 1
        return [torch.relu(cosine) * share for cosine in cosines]


class _Branch:
    """One of both graph networks, with the heads that read it."""

    def __init__(
        self, state: Mapping[str, Tensor], name: str, weight: Tensor, bias: Tensor, engine: PGCNEngine
    ) -> None:
        self.rewrites = engine.rewrites

        def prepared(tensor: Tensor) -> Tensor:
            return tensor.to(engine.device, engine.dtype).contiguous()

        first, second = state[f"{name}.gc1.weight"], state[f"{name}.gc2.weight"]
        second_bias = state[f"{name}.gc2.bias"]
        self.first, self.first_bias = prepared(first), prepared(state[f"{name}.gc1.bias"])
        of_graph, of_feature = weight.double().chunk(2, dim=1)
        self.of_feature = prepared(of_feature)
        if engine.rewrites.folded_heads:
            self.of_hidden = prepared(of_graph @ second.double().T)
            self.bias = prepared(bias.double() + of_graph @ second_bias.double())
        else:
            self.second, self.second_bias = prepared(second), prepared(second_bias)
            self.of_graph, self.bias = prepared(of_graph), prepared(bias)

    def shared(self, x: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
        """Scores [N, outputs] where every proposal is a root and the first layer is one for all roots.

        edges, weights: [N, 1, 1 + b]
        """
        hidden = torch.relu(weighted_rows(x @ self.first, edges, weights).squeeze(1) + self.first_bias)
        return self._scores(weighted_rows(hidden, edges, weights), x)

    def __call__(self, x: Tensor, trees: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
        """Scores [R, outputs].

        x: [N, D]
        trees: [R, n]
        edges, weights: [R, 1 + b, 1 + b]
        """
        shared = x @ self.first if self.rewrites.shared_nodes else None
        parts = zip(*(tensor.split(ROOTS_AT_A_TIME) for tensor in (trees, edges, weights)), strict=True)
        return torch.cat([self._part(x, shared, *part) for part in parts])

    def _part(self, x: Tensor, shared: Tensor | None, trees: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
        if shared is None:
            # Every tree has rows of its own, and its edges index these rows.
            nodes = trees.shape[1]
            projected = (x[trees] @ self.first).flatten(0, 1)
            places = torch.arange(len(projected), device=x.device).view(len(trees), nodes)
            edges, rows = tree_edges(places), places
        else:
            projected, rows = shared, trees
        if self.rewrites.root_rows:
            hidden = torch.relu(weighted_rows(projected, edges, weights) + self.first_bias)
            return self._scores((weights[:, :1] @ hidden), x[trees[:, 0]])
        adjacency = _dense_adjacency(weights, trees.shape[1])
        hidden = torch.relu(adjacency @ projected[rows] + self.first_bias)
        return self._scores(adjacency @ hidden, x[trees[:, 0]])

    def _scores(self, mixed: Tensor, feature: Tensor) -> Tensor:
        """The second layer's product and the heads: mixed [R, rows, hidden], of which row 0 is the root's."""
        if self.rewrites.folded_heads:
            scores = mixed[:, 0] @ self.of_hidden.T
        else:
            scores = (mixed @ self.second + self.second_bias)[:, 0] @ self.of_graph.T
        return torch.addmm(scores + self.bias, feature, self.of_feature.T)


def _dense_cosines(x: Tensor, nodes: Tensor, rows: int) -> Tensor:
    """Cosines between all nodes [R, n] of each graph, of which those along edges are kept: [R, rows, 1 + b]."""
    unit = F.normalize(x, dim=1, eps=torch.finfo(x.dtype).tiny)
    numbers = torch.arange(nodes.shape[1], device=x.device)[None]
    places = numbers if rows == 1 else tree_edges(numbers)[0]
    chosen = places[:, :1] * nodes.shape[1] + places
    parts = [(unit[part] @ unit[part].mT).flatten(1)[:, chosen] for part in nodes.split(ROOTS_AT_A_TIME)]
    return torch.cat(parts)


def _dense_adjacency(weights: Tensor, nodes: int) -> Tensor:
    """Weights [R, 1 + b, 1 + b] of edges as matrices [R, n, n]."""
    places = tree_edges(torch.arange(nodes, device=weights.device)[None])[0]
    adjacency = weights.new_zeros(len(weights), nodes, nodes)
    adjacency[:, places[:, :1], places] = weights
    return adjacency
