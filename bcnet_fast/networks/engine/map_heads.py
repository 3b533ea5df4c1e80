"""The end of BMN and G-TAD for all devices: from a sequence to the scores of the cells of their map.

Sampling and the layer after it are one operator, and are made for valid cells alone, and for one that stands for all
others: those sample the same. Convolutions over the map read across its diagonal, so some cells there are computed as
well, as far as they depend on valid ones. Farther away, a cell's score depends on its distance from the map's edges
alone. So every score is that of the reference, at half of the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geometry.proposal_map import MapConfig, proposal_map, sampling_plan
from ...ops.anchor_sampling import cheaper_strategy
from ...profiling import stage
from ...storage.checkpoint import rows_of
from ..outputs import MapOutput
from .map_cells import MapCells
from .rewrites import Rewrites

Sequence = Any  # [..., T, d], an array or tensor of the kernels
ROWS = 64  # that are read of the largest weight at a time: whole panels of the C++ kernels


@dataclass(frozen=True)
class MapLayers:
    """The names of a network's layers over the map, in the order in which they come."""

    sampled: str  # on sampled features
    cells: tuple[str, str, str]  # on cells; the second and third are the convolutions
    scores: str


class MapScores:
    """The layers over the map of one network."""

    def __init__(
        self, config: MapConfig, state: Mapping[str, Tensor], names: MapLayers, kernels: Any, rewrites: Rewrites
    ) -> None:
        self.kernels = kernels
        valid = proposal_map(config).valid
        cells = MapCells.of(valid if rewrites.valid_cells else np.ones_like(valid))
        self.shape = valid.shape
        self.projects, self.plan = self._plan(config, cells.sampled, rewrites)
        first, *convolutions = names.cells
        self.first = self._layer(state, first)
        self.over_cells = state[f"{convolutions[0]}.weight"].shape[-1] > 1
        make = kernels.map_weight if self.over_cells else self._weight
        self.convolutions = [
            (make(state[f"{name}.weight"]), kernels.constant(state[f"{name}.bias"])) for name in convolutions
        ]
        self.map = kernels.map(cells, self.over_cells)
        # The scores of all kinds in one product.
        kinds = [names.scores] + (["background.0"] if config.background_constraint else [])
        weights = [torch.cat([state[f"{name}.{what}"] for name in kinds]) for what in ("weight", "bias")]
        self.scores = self._weight(weights[0]), kernels.constant(weights[1])
        # Last, because it is most of the memory: what making the plan took has been given back by now.
        parts = (
            part.flatten(1).unflatten(1, (config.base_channels, -1)).mT  # [outputs, N, C]
            for part in rows_of(state, f"{names.sampled}.weight", ROWS)
        )
        if self.projects:
            packed = kernels.anchor_weight(parts, config.sampled_channels)
        else:
            packed = kernels.weight(torch.cat(list(parts)).flatten(1))
        self.sampled = packed, kernels.constant(state[f"{names.sampled}.bias"])

    def _plan(self, config: MapConfig, sampled: np.ndarray, rewrites: Rewrites) -> tuple[bool, Any]:
        """Whether features are projected before they are sampled, and what the kernels need of the plan for that."""
        kernels = self.kernels
        plan = sampling_plan(config, sampled, kernels.accumulated)
        sizes = config.base_channels, config.sampled_channels
        projects = rewrites.project_sampling and cheaper_strategy(plan, *sizes, kernels.device.type) == "project"
        return projects, kernels.plan(plan, samples=not projects, projects=projects)

    def _weight(self, weight: Tensor) -> Any:
        return self.kernels.weight(weight.flatten(1))

    def _layer(self, state: Mapping[str, Tensor], name: str) -> tuple[Any, Any]:
        return self._weight(state[f"{name}.weight"]), self.kernels.constant(state[f"{name}.bias"])

    def __call__(self, start: Sequence, end: Sequence, streams: list[Sequence]) -> MapOutput:
        """Logits start, end [..., T, 1] and the sequences that are sampled, [..., T, C] each -> scores."""
        kernels = self.kernels
        with stage("map: sampling"):
            if self.projects:
                x = kernels.project_cells(streams, self.plan, self.sampled, self.map, self.first)
            else:
                x = kernels.sample_cells(streams, self.plan, slot="samples")
                weight, bias = self.sampled
                x = kernels.linear(x, weight, bias=bias, relu=True, slot="sampled")
                x = kernels.first_cells(x, self.map, self.first)
        with stage("map: convolutions"):
            if self.over_cells:
                x = kernels.convolve_cells(x, self.map, self.convolutions)
            else:
                for (weight, bias), slot in zip(self.convolutions, ("sampled", "cells"), strict=True):
                    x = kernels.linear(x, weight, bias=bias, relu=True, slot=slot)
            weight, bias = self.scores
            x = kernels.result(kernels.linear(x, weight, bias=bias, slot="scores"))
        computed = x.view(-1, *x.shape[-2:]).sigmoid()
        scores = computed.mT.index_select(2, self.map.spread).unflatten(-1, self.shape)
        start, end = (kernels.result(logits).view(len(scores), -1).sigmoid() for logits in (start, end))
        background = scores[:, 2] if scores.shape[1] == 3 else None
        return MapOutput(start, end, scores[:, :2], background)
