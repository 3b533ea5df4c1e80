"""BMN's inference, written once for all devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...config import BMNConfig
from ...profiling import stage
from ..outputs import MapOutput
from .map_heads import MapLayers, MapScores
from .rewrites import Rewrites

LAYERS = MapLayers("x_3d_p.0", ("x_2d_p.0", "x_2d_p.2", "x_2d_p.4"), "x_2d_p.6")


class BMNEngine:
    """Features to scores."""

    def __init__(
        self, config: BMNConfig, state: Mapping[str, Tensor], kernels: Any, careful: Any, rewrites: Rewrites
    ) -> None:
        """`state` maps the parameter names of `reference.bmn.BMN` to tensors, and is not needed afterwards."""
        self.kernels = kernels

        def convolution(name: str, channels: int) -> Any:
            weight = state[f"{name}.weight"]
            return kernels.convolution_weight(weight, state[f"{name}.bias"], channels // weight.shape[1])

        width = config.base_channels
        self.base = convolution("x_1d_b.0", config.feature_dim), convolution("x_1d_b.2", width)
        self.boundaries = [
            (
                convolution(f"{name}.0", width),
                kernels.weight(state[f"{name}.2.weight"].flatten(1)),
                kernels.constant(state[f"{name}.2.bias"]),
            )
            for name in ("x_1d_s", "x_1d_e")
        ]
        self.sequence = convolution("x_1d_p.0", width)
        self.map = MapScores(config, state, LAYERS, kernels, rewrites)

    def __call__(self, features: Tensor) -> MapOutput:
        """features as the kernels take them, one window or a batch -> scores; all cells are computed."""
        kernels = self.kernels
        with stage("sequence"):
            x = kernels.convolution(kernels.features(features), self.base[0], slot="base0")
            base = kernels.convolution(x, self.base[1], slot="base1")
            start, end = (
                kernels.linear(kernels.convolution(base, first, slot="head"), weight, bias=bias, slot=f"boundary{i}")
                for i, (first, weight, bias) in enumerate(self.boundaries)
            )
            sequence = kernels.convolution(base, self.sequence, slot="sequence")
        return self.map(start, end, [sequence])
