"""P-GCN and MUSES-Net on one video step by step as in their public code, in eager PyTorch and NumPy.

The networks are those of `bcnet_fast.networks.reference`. The steps around them follow the public formulation. Windows
are pooled one by one, each node's neighbours are sorted anew, and the features of all nodes of all graphs are gathered.
P-GCN then scores one proposal at a time. A training step joins all graphs to one, dense matrix. MUSES-Net looks every
tap of its deformable convolutions up between two columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bcnet_fast.geometry.proposal_graph import (
    CHILDREN,
    DISTANT,
    MIN_IOU,
    OVERLAPPING,
    TREE,
    pairwise_distance,
    pairwise_iou,
)
from bcnet_fast.networks.outputs import SecondStageOutput
from bcnet_fast.networks.reference.muses import MUSES, Branch, roi_pool
from bcnet_fast.networks.reference.pgcn import PGCN, GraphNetwork


def pooled_one_by_one(features: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """`range_maxima.proposal_features` by a scan for each window."""
    maxima = [[features[a : b + 1].max(dim=0).values for a, b in windows] for windows in rows.tolist()]
    windows = torch.stack([torch.stack(of_proposal) for of_proposal in maxima])
    return windows[:, 1].contiguous(), windows.flatten(1)


def drawn_trees(segments: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Trees [N, 21] as `draw_trees`, with candidates sorted for every node of every tree."""
    iou, distance = pairwise_iou(segments, segments), pairwise_distance(segments, segments)

    def children(node: int) -> np.ndarray:
        close = np.flatnonzero(iou[node] > MIN_IOU)
        close = close[close != node]
        close = close[np.argsort(-iou[node, close], kind="stable")]
        far = np.flatnonzero((iou[node] <= 0) & (distance[node] > 0))
        far = far[np.argsort(distance[node, far], kind="stable")]
        slots = np.concatenate(
            [
                np.resize(found if len(found) else [node], count)
                for found, count in ((close, OVERLAPPING), (far, DISTANT))
            ]
        )
        random.shuffle(slots)
        return slots[:CHILDREN]

    trees = np.empty((len(segments), TREE), dtype=np.int64)
    for root, tree in enumerate(trees):
        tree[0], tree[1 : 1 + CHILDREN] = root, children(root)
        for child in range(1, 1 + CHILDREN):
            tree[1 + CHILDREN * child : 1 + CHILDREN * (child + 1)] = children(tree[child])
    return trees


def pgcn_one_by_one(network: PGCN, activity: Tensor, completeness: Tensor, trees: np.ndarray) -> SecondStageOutput:
    """Scores of all proposals, of which each is a call."""
    numbers = torch.from_numpy(trees)
    nodes = zip(activity[numbers], completeness[numbers], strict=True)
    tree = torch.arange(TREE)[None]
    parts = [vars(network(*of_proposal, tree)) for of_proposal in nodes]
    return SecondStageOutput(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def pgcn_dense_graph(network: PGCN, activity: Tensor, completeness: Tensor, trees: Tensor) -> SecondStageOutput:
    """Scores of a training step: all trees [R, 21] as one graph, with similarities between all its nodes."""
    share = torch.zeros(TREE, TREE)
    for node in range(1 + CHILDREN):
        share[node, node] = 1
        share[node, 1 + CHILDREN * node : 1 + CHILDREN * (node + 1)] = 1 / CHILDREN
    shares = torch.block_diag(*[share] * len(trees))

    def beside_graph(graph: GraphNetwork, x: Tensor) -> Tensor:
        length = x.norm(dim=1, keepdim=True)
        adjacency = torch.relu(x @ x.T / (length * length.T) * shares)
        return torch.cat([graph(x, adjacency)[::TREE], x[::TREE]], dim=1)

    numbers = trees.flatten()
    of_activity = network.dropout(beside_graph(network.Act_GCN, activity[numbers]))
    of_completeness = beside_graph(network.Comp_GCN, completeness[numbers])
    regression = network.regressor_fc(of_completeness).unflatten(1, (network.config.classes, 2))
    return SecondStageOutput(network.activity_fc(of_activity), network.completeness_fc(of_completeness), regression)


def _deformable(branch: Branch, x: Tensor) -> Tensor:
    """A branch as a deformable convolution with constant offsets: columns of all taps, then one product."""
    columns = x.shape[1]
    padded = torch.nn.functional.pad(x, (0, 1))
    taps = []
    for offset in branch.offsets:
        position = torch.arange(columns, dtype=x.dtype) + offset
        low = position.floor()
        share = position - low
        inside = [((place >= 0) & (place < columns)).to(x.dtype) for place in (low, low + 1)]
        left, right = (place.clamp(0, columns).long() for place in (low, low + 1))
        taps.append((1 - share) * inside[0] * padded[:, left] + share * inside[1] * padded[:, right])
    unfolded = torch.stack(taps, dim=1).flatten(0, 1)
    return branch.weight.flatten(1) @ unfolded + branch.bias[:, None]


def muses_deformable(network: MUSES, features: Tensor, rois: Tensor) -> SecondStageOutput:
    """`MUSES.forward` with deformable convolutions."""
    x = features
    for layer in (network.backbone.layers[0], network.backbone.layers[2]):
        x = torch.relu(torch.stack([_deformable(branch, x) for branch in layer.branches]).sum(dim=0))
    return network.roi_head(roi_pool(x, rois))
