"""BMN for training, without the samples of every cell in memory."""

from __future__ import annotations

from torch import Tensor

from ..outputs import MapOutput
from ..reference import bmn as reference
from .map_heads import map_output


class BMN(reference.BMN):
    """Boundary-Matching Network: features [B, C, T] -> `MapOutput`."""

    def forward(self, features: Tensor) -> MapOutput:
        base = self.x_1d_b(features)
        return map_output(self, self.x_1d_s(base), self.x_1d_e(base), [self.x_1d_p(base)], self.x_3d_p[0], self.x_2d_p)
