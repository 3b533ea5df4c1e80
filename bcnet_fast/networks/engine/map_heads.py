"""The last layers of BMN and G-TAD: from sequences to the scores of the cells of a map.

Sampling and the layer after it run on valid cells and on one that stands for all others, which sample the same.
Convolutions read across the edge of the valid cells. Cells beyond it are computed as far as valid ones depend on them.
Farther away a score depends only on the distance from the map's edges, and is copied. Thus every score is that of the
reference, for half of the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

import numpy as np
import torch
from torch import Tensor

from ...geometry.proposal_map import MapConfig, proposal_map, sampling_plan
from ...ops.anchor_sampling import cheaper_strategy
from ...profiling import stage
from ...storage.checkpoint import rows_of
from ..outputs import MapOutput
from .buffers import MapBuffer as Buffer
from .kernels import Kernels, LinearLayer, S, Stack, W
from .map_cells import MapCells
from .rewrites import Rewrites

ROWS = 64  # rows of the largest weight that are read at a time: whole panels of the C++ kernels


@dataclass(frozen=True)
class MapLayers:
    """The names of a network's layers over the map, in order.

    sampled: on sampled features
    cells: on cells; the second and third are the convolutions
    scores: the last layer
    """

    sampled: str
    cells: tuple[str, str, str]
    scores: str


class MapScores(Generic[S, W, Stack]):
    """The layers over the map of one network."""

    def __init__(
        self,
        config: MapConfig,
        state: Mapping[str, Tensor],
        names: MapLayers,
        kernels: Kernels[S, W, Stack],
        rewrites: Rewrites,
    ) -> None:
        self.kernels = kernels
        valid = proposal_map(config).valid
        self.shape = valid.shape
        first, *convolutions = names.cells
        self.convolved = state[f"{convolutions[0]}.weight"].shape[-1] > 1
        cells = MapCells.of(valid if rewrites.valid_cells else np.ones_like(valid))
        self._prepare_map(config, cells, rewrites)
        self.first = self._layer(state, first)
        self.convolutions = [self._convolution(state, name) for name in convolutions]
        # One product for the scores of all kinds.
        kinds = [names.scores] + (["background.0"] if config.background_constraint else [])
        weight, bias = (torch.cat([state[f"{name}.{part}"] for name in kinds]) for part in ("weight", "bias"))
        self.scores = LinearLayer(kernels.weight(weight.flatten(1)), kernels.constant(bias))
        # Packed last, because it is most of the memory: the making of the plan has returned its share by now.
        parts = (
            part.flatten(1).unflatten(1, (config.base_channels, -1)).mT  # [outputs, N, C]
            for part in rows_of(state, f"{names.sampled}.weight", ROWS)
        )
        if self.projects:
            packed = kernels.anchor_weight(parts, config.sampled_channels)
        else:
            packed = kernels.weight(torch.cat(list(parts)).flatten(1))
        self.sampled = LinearLayer(packed, kernels.constant(state[f"{names.sampled}.bias"]))

    def _prepare_map(self, config: MapConfig, cells: MapCells, rewrites: Rewrites) -> None:
        """Choose whether features are projected before they are sampled, and prepare the map for that."""
        kernels = self.kernels
        plan = sampling_plan(config, cells.sampled, kernels.accumulation_dtype)
        sizes = config.base_channels, config.sampled_channels
        cheaper = cheaper_strategy(plan, *sizes, kernels.device.type)
        self.projects = rewrites.project_sampling and cheaper == "project"
        self.map = kernels.map(plan, cells, convolved=self.convolved, projects=self.projects)

    def _layer(self, state: Mapping[str, Tensor], name: str) -> LinearLayer[S, W]:
        """Prepare a convolution of 1 by 1."""
        weight, bias = state[f"{name}.weight"].flatten(1), state[f"{name}.bias"]
        return LinearLayer(self.kernels.weight(weight), self.kernels.constant(bias))

    def _convolution(self, state: Mapping[str, Tensor], name: str) -> LinearLayer[S, W]:
        if not self.convolved:
            return self._layer(state, name)
        return LinearLayer(
            self.kernels.map_weight(state[f"{name}.weight"]), self.kernels.constant(state[f"{name}.bias"])
        )

    def __call__(self, start: S, end: S, streams: list[S]) -> MapOutput:
        """Logits start, end [..., T, 1] and the sequences that are sampled, [..., T, C] each -> scores."""
        kernels = self.kernels
        with stage("map: sampling"):
            if self.projects:
                x = self.map.project(streams, self.sampled, self.first, scratch=Buffer.PING, out=Buffer.PONG)
            else:
                x = self.map.sample(streams, out=Buffer.SAMPLES)
                x = self._linear(x, self.sampled, Buffer.PING, relu=True)
                x = self.map.first_layer(x, self.first, out=Buffer.PONG)
        with stage("map: convolutions"):
            if self.convolved:
                x = self.map.convolve(x, self.convolutions, scratch=Buffer.PING, out=Buffer.PONG)
            else:
                for layer, buffer in zip(self.convolutions, (Buffer.PING, Buffer.PONG), strict=True):
                    x = self._linear(x, layer, buffer, relu=True)
            x = kernels.result(self._linear(x, self.scores, Buffer.SCORES))
        computed = x.view(-1, *x.shape[-2:]).sigmoid()
        scores = computed.mT.index_select(2, self.map.spread).unflatten(-1, self.shape)
        start_scores, end_scores = (kernels.result(logits).view(len(scores), -1).sigmoid() for logits in (start, end))
        background = scores[:, 2] if scores.shape[1] == 3 else None
        return MapOutput(start_scores, end_scores, scores[:, :2], background)

    def _linear(self, x: S, layer: LinearLayer[S, W], buffer: Buffer, *, relu: bool = False) -> S:
        return self.kernels.linear(x, layer.weight, bias=layer.bias, relu=relu, out=buffer)
