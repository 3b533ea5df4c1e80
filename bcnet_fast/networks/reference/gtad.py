"""G-TAD (Xu et al., "G-TAD: Sub-Graph Localization for Temporal Action Detection", CVPR 2020) in plain PyTorch.

The definition that every faster version is tested against. Runs on any device in float32 and float64; trainable.
Parameter names are those of the public release. Its alignment of sub-graphs exists in CUDA only. Here it is a product
with a dense matrix, so that the sparse operators are tested against independent code.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...config import GTADConfig
from ...geometry.proposal_map import proposal_map, sampled_intervals
from ..graph import nearest, neighbours
from ..outputs import MapOutput
from .layers import convolution
from .map_heads import MapHeads, map_layers

CELLS_AT_A_TIME = 1024  # bounds the temporary memory, which is several times that of the sampling matrix


class GraphBlock(nn.Module):
    """A GCNeXt block: a branch along time and one along the edges of the graph, added to the input."""

    tconvs: nn.Sequential
    sconvs: nn.Sequential

    def __init__(self, width: int, hidden: int, groups: int) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.tconvs = nn.Sequential(
            nn.Conv1d(width, hidden, 1), relu, nn.Conv1d(hidden, hidden, 3, padding=1, groups=groups), relu,
            nn.Conv1d(hidden, width, 1),
        )  # fmt: skip
        self.sconvs = nn.Sequential(
            nn.Conv2d(2 * width, hidden, 1), relu, nn.Conv2d(hidden, hidden, 1, groups=groups), relu,
            nn.Conv2d(hidden, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """Sequence x [B, C, T], graph [B, T, K] -> [B, C, T]."""
        neighbour = neighbours(x, graph)
        edges = torch.cat([neighbour, x[..., None].expand_as(neighbour)], dim=1)
        return torch.relu(self.tconvs(x) + x + self.sconvs(edges).amax(dim=-1))


def aligned_weights(regions: np.ndarray, length: int, bins: int, dtype: torch.dtype) -> Tensor:
    """Compute the rule of Align1D as a dense matrix [T, bins, P] for regions [P, 2] in snippets.

    A region, at least 1 long, is cut into bins. A bin is cut into equal parts, its length in snippets rounded up. The
    sequence is read at the middle of each part by linear interpolation. It is constant for one snippet beyond its ends,
    and 0 farther away.
    """
    weights = torch.zeros(length, bins, len(regions), dtype=dtype)
    for begin in range(0, len(regions), CELLS_AT_A_TIME):
        part = regions[begin : begin + CELLS_AT_A_TIME]
        size = np.maximum(part[:, 1] - part[:, 0], 1.0) / bins
        points = np.ceil(size)
        dense = np.zeros((length, bins, len(part)))
        for n in range(bins):
            for k in range(int(points.max())):
                t = part[:, 0] + n * size + (k + 0.5) * size / points
                cell = np.flatnonzero((k < points) & (t >= -1) & (t <= length))
                clamped = t[cell].clip(0, length - 1)
                lower = np.floor(clamped).astype(np.int64)
                upper = np.minimum(lower + 1, length - 1)
                bin_weights = dense[:, n]
                np.add.at(bin_weights, (lower, cell), (1 - (clamped - lower)) / points[cell])
                np.add.at(bin_weights, (upper, cell), (clamped - lower) / points[cell])
        weights[:, :, begin : begin + CELLS_AT_A_TIME] = torch.from_numpy(dense)
    return weights


class GTAD(MapHeads):
    """Sub-graph localization: features [B, C, T] -> `MapOutput`."""

    config: GTADConfig
    sampling: list[Tensor]  # of the sequence and of its neighbours, [T, bins * D * T], computed at the first call

    def __init__(self, config: GTADConfig) -> None:
        super().__init__()
        self.config, self.shape = config, proposal_map(config).shape
        width, sampled, cell = config.base_channels, config.sampled_channels, config.map_channels

        def block() -> GraphBlock:
            return GraphBlock(width, config.block_channels, config.block_groups)

        self.backbone1 = nn.Sequential(convolution(config.feature_dim, width), nn.ReLU(), block())
        self.regu_s = nn.Sequential(block(), nn.Conv1d(width, 1, 1), nn.Sigmoid())
        self.regu_e = nn.Sequential(block(), nn.Conv1d(width, 1, 1), nn.Sigmoid())
        self.backbone2 = nn.Sequential(block())
        bins, kernel = config.inner_bins + config.context_bins, config.map_kernel
        self.localization = map_layers(
            nn.Conv2d(width * bins, sampled, 1), (sampled, cell, cell, cell, 2), (1, kernel, kernel, 1)
        )
        self.add_background(cell, config.background_constraint)
        self.sampling = []

    def sample(self, sequence: Tensor, graph: Tensor) -> Tensor:
        """Align sub-graphs: [B, C, T] and its graph -> [B, C * bins of both, D, T], bins fastest."""
        config = self.config
        counts = config.inner_bins, config.context_bins
        if not self.sampling:
            regions = sampled_intervals(config)
            with torch.inference_mode(False):  # a training may come later
                by_bins = {
                    n: aligned_weights(regions, config.window, n, sequence.dtype).flatten(1) for n in set(counts)
                }
                self.sampling = [by_bins[n].to(sequence.device) for n in counts]
        streams = sequence, neighbours(sequence, graph).mean(dim=-1)
        parts = [
            (x @ matrix).unflatten(-1, (count, *self.shape))
            for x, matrix, count in zip(streams, self.sampling, counts, strict=True)
        ]
        return torch.cat(parts, dim=2).flatten(1, 2)

    def forward(self, features: Tensor) -> MapOutput:
        stem = self.backbone1[1](self.backbone1[0](features))
        base = self.backbone1[2](stem, nearest(stem, self.config.neighbours))
        graph = nearest(base, self.config.neighbours)
        start, end = (head[1:](head[0](base, graph)) for head in (self.regu_s, self.regu_e))
        sequence = self.backbone2[0](base, graph)
        cells = self.sample(sequence, nearest(sequence, self.config.neighbours))
        return self.scores(start, end, cells, self.localization)
