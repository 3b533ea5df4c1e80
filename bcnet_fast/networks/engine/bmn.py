"""BMN's inference, written once against `Kernels`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic

from torch import Tensor

from ...config import BMNConfig
from ...profiling import stage
from ..outputs import MapOutput
from .buffers import BMNBuffer as Buffer
from .kernels import ConvolutionLayer, Kernels, LinearLayer, S, Stack, W
from .map_heads import MapLayers, MapScores
from .rewrites import Rewrites

LAYERS = MapLayers("x_3d_p.0", ("x_2d_p.0", "x_2d_p.2", "x_2d_p.4"), "x_2d_p.6")


class BMNEngine(Generic[S, W, Stack]):
    """Features to scores."""

    def __init__(
        self,
        config: BMNConfig,
        state: Mapping[str, Tensor],
        kernels: Kernels[S, W, Stack],
        precise: Kernels[S, W, Stack],
        rewrites: Rewrites,
    ) -> None:
        """Prepare all weights.

        state: the parameters of `reference.bmn.BMN` by name, not needed afterwards
        precise: not used, since no layer enlarges rounding errors
        """
        self.kernels, width = kernels, config.base_channels

        def convolution(name: str, channels: int) -> ConvolutionLayer[S, W]:
            weight = state[f"{name}.weight"]
            return kernels.convolution_layer(weight, state[f"{name}.bias"], channels // weight.shape[1])

        def head(name: str) -> LinearLayer[S, W]:
            weight, bias = state[f"{name}.weight"].flatten(1), state[f"{name}.bias"]
            return LinearLayer(kernels.weight(weight), kernels.constant(bias))

        self.base = convolution("x_1d_b.0", config.feature_dim), convolution("x_1d_b.2", width)
        self.start, self.end = ((convolution(f"{name}.0", width), head(f"{name}.2")) for name in ("x_1d_s", "x_1d_e"))
        self.sequence = convolution("x_1d_p.0", width)
        self.map = MapScores(config, state, LAYERS, kernels, rewrites)

    def __call__(self, features: Tensor) -> MapOutput:
        """Compute the scores of all cells from features as the kernels take them: [C, T] in C++, else [B, C, T]."""
        kernels = self.kernels
        with stage("sequence"):
            x = kernels.convolution(kernels.features(features), self.base[0], out=Buffer.BASE_1)
            base = kernels.convolution(x, self.base[1], out=Buffer.BASE_2)
            start = self._boundary(base, *self.start, Buffer.START_LOGITS)
            end = self._boundary(base, *self.end, Buffer.END_LOGITS)
            sequence = kernels.convolution(base, self.sequence, out=Buffer.SEQUENCE)
        return self.map(start, end, [sequence])

    def _boundary(self, base: S, first: ConvolutionLayer[S, W], head: LinearLayer[S, W], buffer: Buffer) -> S:
        """Logits [..., T, 1]."""
        hidden = self.kernels.convolution(base, first, out=Buffer.BOUNDARY_HIDDEN)
        return self.kernels.linear(hidden, head.weight, bias=head.bias, out=buffer)
