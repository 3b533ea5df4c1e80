"""G-TAD's inference, written once against `Kernels`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from ...config import GTADConfig
from ...profiling import stage
from ..graph import nearest, neighbours
from ..outputs import MapOutput
from .buffers import GTADBuffer as Buffer
from .kernels import ConvolutionLayer, Kernels, LinearLayer, S, Stack, W
from .map_heads import MapLayers, MapScores
from .rewrites import Rewrites

LAYERS = MapLayers("localization.0", ("localization.2", "localization.4", "localization.6"), "localization.8")


@dataclass(frozen=True)
class BlockWeights(Generic[S, W]):
    """A graph block: a branch along time and one along edges.

    The first layer on an edge is linear in both of its nodes, so it is applied to nodes and the results are added.

    time_1, time_2, time_3: the branch along time
    neighbour: half of the first layer on edges, for the neighbour
    node: the other half with the bias, for the node itself
    edges_2, edges_3: the other layers on edges
    """

    time_1: LinearLayer[S, W]
    time_2: ConvolutionLayer[S, W]
    time_3: LinearLayer[S, W]
    neighbour: W
    node: LinearLayer[S, W]
    edges_2: LinearLayer[S, W]
    edges_3: LinearLayer[S, W]


class GTADEngine(Generic[S, W, Stack]):
    """Features to scores."""

    def __init__(
        self,
        config: GTADConfig,
        state: Mapping[str, Tensor],
        kernels: Kernels[S, W, Stack],
        precise: Kernels[S, W, Stack],
        rewrites: Rewrites,
    ) -> None:
        """Prepare all weights.

        state: the parameters of `reference.gtad.GTAD` by name, not needed afterwards
        precise: kernels whose arithmetic the distances of the graph are computed with
        """
        self.config, self.kernels, self.precise = config, kernels, precise
        name, groups = "backbone1.0", config.feature_dim // state["backbone1.0.weight"].shape[1]
        self.stem = kernels.convolution_layer(state[f"{name}.weight"], state[f"{name}.bias"], groups)
        self.first, self.second = self._block(state, "backbone1.2"), self._block(state, "backbone2.0")
        self.start, self.end = (
            (self._block(state, f"{name}.0"), self._layer(state, f"{name}.1")) for name in ("regu_s", "regu_e")
        )
        self.map = MapScores(config, state, LAYERS, kernels, rewrites)

    def _layer(self, state: Mapping[str, Tensor], name: str, groups: int = 1) -> LinearLayer[S, W]:
        """Prepare a convolution of size 1. Small groups become blocks on the diagonal of one matrix."""
        weight = state[f"{name}.weight"].flatten(1)
        if groups > 1:
            weight = torch.block_diag(*weight.chunk(groups))
        return LinearLayer(self.kernels.weight(weight), self.kernels.constant(state[f"{name}.bias"]))

    def _block(self, state: Mapping[str, Tensor], prefix: str) -> BlockWeights[S, W]:
        groups, kernels = self.config.block_groups, self.kernels
        time, edges = f"{prefix}.tconvs", f"{prefix}.sconvs"
        neighbour, node = state[f"{edges}.0.weight"].flatten(1).chunk(2, dim=1)
        return BlockWeights(
            time_1=self._layer(state, f"{time}.0"),
            time_2=kernels.convolution_layer(state[f"{time}.2.weight"], state[f"{time}.2.bias"], groups),
            time_3=self._layer(state, f"{time}.4"),
            neighbour=kernels.weight(neighbour),
            node=LinearLayer(kernels.weight(node), kernels.constant(state[f"{edges}.0.bias"])),
            edges_2=self._layer(state, f"{edges}.2", groups),
            edges_3=self._layer(state, f"{edges}.4"),
        )

    def _linear(
        self, x: S, layer: LinearLayer[S, W], buffer: Buffer, *, relu: bool = False, residual: S | None = None
    ) -> S:
        return self.kernels.linear(x, layer.weight, bias=layer.bias, relu=relu, residual=residual, out=buffer)

    def _apply(self, x: S, block: BlockWeights[S, W], graph: Tensor) -> S:
        """Apply a block: x [..., T, C], graph [..., T, K] -> [..., T, C]."""
        kernels = self.kernels
        along_time = self._linear(x, block.time_1, Buffer.TIME_1, relu=True)
        along_time = kernels.convolution(along_time, block.time_2, out=Buffer.TIME_2)
        along_time = self._linear(along_time, block.time_3, Buffer.TIME_3, residual=x)
        node = kernels.tensor(self._linear(x, block.node, Buffer.NODE))
        neighbour = kernels.tensor(kernels.linear(x, block.neighbour, out=Buffer.NEIGHBOUR))
        pairs = (neighbours(neighbour, graph, dim=-2) + node.unsqueeze(-2)).relu_()
        edges = kernels.sequence(pairs.flatten(-3, -2))
        edges = self._linear(edges, block.edges_2, Buffer.EDGES_2, relu=True)
        edges = self._linear(edges, block.edges_3, Buffer.EDGES_3)
        largest = kernels.tensor(edges).unflatten(-2, graph.shape[-2:]).amax(dim=-2)
        return kernels.sequence((largest + kernels.tensor(along_time)).relu_())

    def _nearest(self, x: S) -> Tensor:
        """The graph [..., T, K] of a sequence [..., T, C].

        Distances are differences of larger numbers. In TF32 they would be as rough as in 16 bits.
        """
        with self.precise.arithmetic():
            return nearest(self.kernels.tensor(x).mT, self.config.neighbours)

    def __call__(self, features: Tensor) -> MapOutput:
        """Compute the scores of all cells from features as the kernels take them: [C, T] in C++, else [B, C, T]."""
        kernels = self.kernels
        with stage("sequence"):
            stem = kernels.convolution(kernels.features(features), self.stem, out=Buffer.STEM)
            base = self._apply(stem, self.first, self._nearest(stem))
            graph = self._nearest(base)
            block, head = self.start
            start = self._linear(self._apply(base, block, graph), head, Buffer.START_LOGITS)
            block, head = self.end
            end = self._linear(self._apply(base, block, graph), head, Buffer.END_LOGITS)
            sequence = self._apply(base, self.second, graph)
            near = neighbours(kernels.tensor(sequence), self._nearest(sequence), dim=-2)
            context = kernels.sequence(near.mean(dim=-2))
        return self.map(start, end, [sequence, context])
