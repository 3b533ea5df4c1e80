"""BMN for training. The sampled features of all cells are never in memory at once."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ..outputs import MapOutput
from ..reference import bmn as reference
from .map_heads import map_output


class BMN(reference.BMN):
    """Boundary-Matching Network: features [B, C, T] -> `MapOutput`."""

    def forward(self, features: Tensor) -> MapOutput:
        base = self.x_1d_b(features)
        start, end, streams = self.x_1d_s(base), self.x_1d_e(base), [self.x_1d_p(base)]
        return map_output(self, start, end, streams, cast(nn.Conv3d, self.x_3d_p[0]), self.x_2d_p)
