"""G-TAD's inference, written once for all devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import GTADConfig
from ...profiling import stage
from ..graph import nearest, neighbours
from ..outputs import MapOutput
from .map_heads import MapLayers, MapScores
from .rewrites import Rewrites

LAYERS = MapLayers("localization.0", ("localization.2", "localization.4", "localization.6"), "localization.8")


@dataclass(frozen=True)
class BlockWeights:
    """Of a graph block. `others` and `own` are the halves of its first layer on edges, or `others` is all of it."""

    time: list[Any]  # linear layer, convolution, linear layer
    others: Any
    own: tuple[Any, Any] | None
    edges: list[tuple[Any, Any]]


class GTADEngine:
    """Features to scores."""

    def __init__(
        self, config: GTADConfig, state: Mapping[str, Tensor], kernels: Any, careful: Any, rewrites: Rewrites
    ) -> None:
        """`state` maps the parameter names of `reference.gtad.GTAD` to tensors, and is not needed afterwards.

        The graph is built from distances with the arithmetic of the `careful` kernels.
        """
        self.config, self.kernels, self.careful, self.rewrites = config, kernels, careful, rewrites
        name, groups = "backbone1.0", config.feature_dim // state["backbone1.0.weight"].shape[1]
        self.stem = kernels.convolution_weight(state[f"{name}.weight"], state[f"{name}.bias"], groups)
        self.first, self.second = self._block(state, "backbone1.2"), self._block(state, "backbone2.0")
        self.boundaries = [
            (self._block(state, f"{name}.0"), self._linear(state, f"{name}.1")) for name in ("regu_s", "regu_e")
        ]
        self.map = MapScores(config, state, LAYERS, kernels, rewrites)

    def _linear(self, state: Mapping[str, Tensor], name: str, groups: int = 1) -> tuple[Any, Any]:
        """A layer without neighbours; the small groups are blocks on the diagonal of one matrix."""
        weight = state[f"{name}.weight"].flatten(1)
        if groups > 1:
            weight = torch.block_diag(*weight.chunk(groups))
        return self.kernels.weight(weight), self.kernels.constant(state[f"{name}.bias"])

    def _block(self, state: Mapping[str, Tensor], prefix: str) -> BlockWeights:
        groups, kernels = self.config.block_groups, self.kernels
        time, edges = f"{prefix}.tconvs", f"{prefix}.sconvs"
        middle = kernels.convolution_weight(state[f"{time}.2.weight"], state[f"{time}.2.bias"], groups)
        weight, bias = self._linear(state, f"{edges}.0")
        others, own = (weight, bias), None
        if self.rewrites.split_edges:
            halves = state[f"{edges}.0.weight"].flatten(1).chunk(2, dim=1)
            others, own = kernels.weight(halves[0]), (kernels.weight(halves[1]), bias)
        return BlockWeights(
            [self._linear(state, f"{time}.0"), middle, self._linear(state, f"{time}.4")],
            others,
            own,
            [self._linear(state, f"{edges}.2", groups), self._linear(state, f"{edges}.4")],
        )

    def _apply(self, x: Any, block: BlockWeights, graph: Tensor) -> Any:
        """x [..., T, C], graph [..., T, K] -> [..., T, C]"""
        kernels = self.kernels
        weight, bias = block.time[0]
        along = kernels.linear(x, weight, bias=bias, relu=True, slot="time0")
        along = kernels.convolution(along, block.time[1], slot="time1")
        weight, bias = block.time[2]
        along = kernels.linear(along, weight, bias=bias, added=x, slot="time2")
        if block.own is None:
            tensor = kernels.tensor(x)
            pairs = torch.cat(
                [neighbours(tensor, graph, dim=-2), tensor.unsqueeze(-2).expand(*graph.shape, -1)], dim=-1
            )
            weight, bias = block.others
            edges = kernels.linear(kernels.sequence(pairs.flatten(-3, -2)), weight, bias=bias, relu=True, slot="edges0")
        else:
            weight, bias = block.own
            own = kernels.tensor(kernels.linear(x, weight, bias=bias, slot="own"))
            others = kernels.tensor(kernels.linear(x, block.others, slot="others"))
            edges = kernels.sequence((neighbours(others, graph, dim=-2) + own.unsqueeze(-2)).relu_().flatten(-3, -2))
        for i, (weight, bias) in enumerate(block.edges):
            edges = kernels.linear(edges, weight, bias=bias, relu=i == 0, slot=f"edges{i + 1}")
        largest = kernels.tensor(edges).unflatten(-2, graph.shape[-2:]).amax(dim=-2)
        return kernels.sequence((largest + kernels.tensor(along)).relu_())

    def _nearest(self, x: Any) -> Tensor:
        """The graph [..., T, K] of a sequence [..., T, C].

        Distances are differences of larger numbers. In TF32 they would be as rough as in 16 bits.
        """
        with self.careful.arithmetic():
            return nearest(self.kernels.tensor(x).mT, self.config.neighbours)

    def __call__(self, features: Tensor) -> MapOutput:
        """features as the kernels take them, one window or a batch -> scores; all cells are computed."""
        kernels = self.kernels
        with stage("sequence"):
            stem = kernels.convolution(kernels.features(features), self.stem, slot="stem")
            base = self._apply(stem, self.first, self._nearest(stem))
            graph = self._nearest(base)
            start, end = (
                kernels.linear(self._apply(base, block, graph), weight, bias=bias, slot=f"boundary{i}")
                for i, (block, (weight, bias)) in enumerate(self.boundaries)
            )
            sequence = self._apply(base, self.second, graph)
            near = neighbours(kernels.tensor(sequence), self._nearest(sequence), dim=-2)
            context = kernels.sequence(near.mean(dim=-2))
        return self.map(start, end, [sequence, context])
