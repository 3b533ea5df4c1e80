"""BMN (Lin et al., "BMN: Boundary-Matching Network for Temporal Action Proposal Generation", ICCV 2019), plain PyTorch.

The definition that every faster version is tested against. Runs on any device in float32 and float64; trainable.
Parameter names are those of the public PyTorch release and of mmaction2. As there, one dense matrix samples every cell
of the map, so that the sparse operators are tested against independent code.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...config import BMNConfig
from ...geometry.proposal_map import proposal_map, sampled_intervals
from ..outputs import MapOutput
from .dense_sampling import sampling_weights
from .layers import convolution
from .map_heads import MapHeads, map_layers


def boundary_head(channels: int) -> nn.Sequential:
    """A start or end head: [B, C, T] -> probabilities [B, 1, T]."""
    return nn.Sequential(
        convolution(channels, channels), nn.ReLU(), nn.Conv1d(channels, 1, kernel_size=1), nn.Sigmoid()
    )


def sampling_matrix(config: BMNConfig) -> Tensor:
    """Compute the releases' constant that samples every cell, float32 [T, N, rows * columns]."""
    # Cells that sample nothing get points outside the sequence, whose weights are dropped.
    intervals = np.nan_to_num(sampled_intervals(config), nan=-2.0 * config.window)
    return torch.from_numpy(sampling_weights(intervals, config.window, config.bins, config.points_per_bin))


class BMN(MapHeads):
    """Boundary-Matching Network: features [B, C, T] -> `MapOutput`."""

    config: BMNConfig
    sampling: Tensor | None  # [T, N * rows * columns], computed at the first call

    def __init__(self, config: BMNConfig) -> None:
        super().__init__()
        self.config, self.shape = config, proposal_map(config).shape
        width, sampled = config.base_channels, config.sampled_channels
        base = convolution(config.feature_dim, width), nn.ReLU(), convolution(width, width), nn.ReLU()
        self.x_1d_b = nn.Sequential(*base)
        self.x_1d_s, self.x_1d_e = boundary_head(width), boundary_head(width)
        self.x_1d_p = nn.Sequential(nn.Conv1d(width, width, kernel_size=3, padding=1), nn.ReLU())
        kernel = (config.bins, 1, 1)
        self.x_3d_p = nn.Sequential(nn.Conv3d(width, sampled, kernel_size=kernel, stride=kernel), nn.ReLU())
        cell = config.map_channels
        self.x_2d_p = map_layers(None, (sampled, cell, cell, cell, 2), (1, 3, 3, 1))
        self.add_background(cell, config.background_constraint)
        self.register_buffer("sampling", None, persistent=False)

    def sample(self, sequence: Tensor) -> Tensor:
        """The boundary-matching layer: [B, C, T] -> N sampled vectors per cell, [B, C, N, rows, columns]."""
        config = self.config
        if self.sampling is None:
            with torch.inference_mode(False):  # a training may come later
                self.sampling = sampling_matrix(config).flatten(1).to(sequence)
        return (sequence @ self.sampling).unflatten(-1, (config.bins, *self.shape))

    def forward(self, features: Tensor) -> MapOutput:
        base = self.x_1d_b(features)
        cells = self.x_3d_p(self.sample(self.x_1d_p(base))).squeeze(2)
        return self.scores(self.x_1d_s(base), self.x_1d_e(base), cells, self.x_2d_p)
