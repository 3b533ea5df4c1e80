"""P-GCN's inference on a CPU in C++ (csrc/include/second_stage.h, layers.h). `reference.pgcn` defines its results."""

from __future__ import annotations

import enum
import threading
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ...config import PGCNConfig
from ...geometry.proposal_graph import SLOTS
from ...profiling import stage
from ..outputs import SecondStageOutput
from ..proposal_trees import tree_edges
from .buffers import Buffer, Workspace
from .native import NativeKernels
from .native_weights import extension


class PGCNBuffer(Buffer):
    """The buffers of a branch; both branches use the same."""

    PROJECTED = enum.auto()  # the first layer's product and, beside it, the heads on the proposals' own features
    HIDDEN = enum.auto()  # first layer of all proposals, where all slots count
    MIXED = enum.auto()  # sums of the first layer over the root's edges
    SCORES = enum.auto()


class NativePGCN:
    """Proposals' features and their graph to scores, with all rewrites. Calls from several threads wait for each other.

    Features are read where they lie; all results but the scores are in buffers that calls reuse.
    """

    def __init__(self, config: PGCNConfig, state: Mapping[str, Tensor], precision: str, strassen: bool) -> None:
        """Prepare all weights.

        state: the parameters of `reference.pgcn.PGCN` by name, not needed afterwards
        precision: "fp32" or "fp64"
        strassen: whether the first layer's products use the algorithm, in fp32
        """
        self.config, kernels = config, NativeKernels(precision, strassen)
        self.dtype, self._workspace, self._lock = kernels.accumulation_dtype, kernels.workspace, threading.Lock()

        def branch(graph: str, *heads: str) -> _Branch:
            weight, bias = (torch.cat([state[f"{name}.{part}"] for name in heads]) for part in ("weight", "bias"))
            return _Branch(kernels, state, graph, weight.double(), bias.double())

        self.activity = branch("Act_GCN", "activity_fc")
        self.completeness = branch("Comp_GCN", "completeness_fc", "regressor_fc")

    def __call__(self, activity: Tensor, completeness: Tensor, neighbours: Tensor) -> SecondStageOutput:
        """Score proposals; see `reference.pgcn.PGCN.forward`."""
        features = [_rows(x, self.dtype) for x in (activity, completeness)]
        neighbours, classes = neighbours.cpu().contiguous(), self.config.classes
        with self._lock:
            if neighbours.shape[1] == SLOTS:
                nodes = torch.cat([torch.arange(len(neighbours))[:, None], neighbours], dim=1)
                edges = nodes[:, None].contiguous().numpy()
            else:
                edges = tree_edges(neighbours).contiguous().numpy()
            with stage("edges"):
                weights = _edge_weights(features[0], features[1], edges)
            scores = []
            for network, x, of_edges in zip((self.activity, self.completeness), features, weights, strict=True):
                with stage("graph"):
                    scores.append(torch.from_numpy(network(x.numpy(), edges, of_edges, self._workspace).copy()))
        of_completeness, regression = scores[1].split([classes, 2 * classes], dim=1)
        return SecondStageOutput(scores[0], of_completeness, regression.unflatten(1, (classes, 2)))


class _Branch:
    """One of both graph networks, with the heads that read it."""

    def __init__(
        self, kernels: NativeKernels, state: Mapping[str, Tensor], name: str, weight: Tensor, bias: Tensor
    ) -> None:
        """weight [outputs, 2 D] and bias of the heads, float64."""
        first, second = state[f"{name}.gc1.weight"].double(), state[f"{name}.gc2.weight"].double()
        of_graph, of_feature = weight.chunk(2, dim=1)
        self.hidden = first.shape[1]
        # The heads on the proposal's own feature are further columns of the first layer's product.
        self.first = kernels.weight(torch.cat([first.T, of_feature]))
        self.first_bias = kernels.constant(state[f"{name}.gc1.bias"])
        self.of_hidden = kernels.weight(of_graph @ second.T)
        self.bias = kernels.constant(bias + of_graph @ state[f"{name}.gc2.bias"].double())

    def __call__(self, x: np.ndarray, edges: np.ndarray, weights: np.ndarray, workspace: Workspace) -> np.ndarray:
        """Scores [R, outputs], in a buffer.

        x: [N, D]
        edges: int64 [R, rows, 1 + b], one row where all slots count and the roots are all proposals
        weights: like edges
        """
        library, threads, roots = extension(), torch.get_num_threads(), len(edges)
        projected = workspace.take(PGCNBuffer.PROJECTED, len(x), self.first.outputs)
        library.linear(x, self.first, projected, threads=threads)
        graph, own = projected[:, : self.hidden], projected[:, self.hidden :]
        mixed = workspace.take(PGCNBuffer.MIXED, roots, self.hidden)
        layer = {"bias": self.first_bias, "relu": True, "threads": threads}
        if edges.shape[1] == 1:
            # A proposal has the same first layer wherever it occurs.
            hidden = workspace.take(PGCNBuffer.HIDDEN, roots, self.hidden)
            library.weighted_rows(graph, edges, weights, hidden, **layer)
            library.weighted_rows(hidden, edges, weights, mixed, threads=threads)
        else:
            library.weighted_rows(graph, edges, weights, mixed, outer=weights[:, 0], **layer)
            own = own[edges[:, 0, 0]]
        scores = workspace.take(PGCNBuffer.SCORES, roots, self.of_hidden.outputs)
        library.linear(mixed, self.of_hidden, scores, bias=self.bias, added=own, threads=threads)
        return scores


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert features to rows of unit stride, which alias x where nothing has to change."""
    x = x.detach().to("cpu", dtype)
    return x if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _edge_weights(activity: Tensor, completeness: Tensor, edges: np.ndarray) -> list[np.ndarray]:
    """Weights of edges [R, rows, 1 + b], for both kinds of features."""
    lists, threads, dtype = edges.reshape(-1, edges.shape[2]), torch.get_num_threads(), completeness.numpy().dtype
    of_activity, of_completeness = (np.empty(lists.shape, dtype) for _ in range(2))
    # A proposal's activity feature usually is the middle of its completeness feature.
    middle = completeness[:, activity.shape[1] : 2 * activity.shape[1]]
    same = activity.data_ptr() == middle.data_ptr() and activity.stride() == middle.stride()
    if same or torch.equal(activity, middle):
        extension().edge_weights(completeness.numpy(), 3, 1, lists, of_completeness, of_activity, threads=threads)
    else:
        extension().edge_weights(completeness.numpy(), 3, 1, lists, of_completeness, threads=threads)
        extension().edge_weights(activity.numpy(), 1, 0, lists, of_activity, threads=threads)
    return [weights.reshape(edges.shape) for weights in (of_activity, of_completeness)]
