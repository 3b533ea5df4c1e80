"""The convolutions over the proposal map that end BMN and G-TAD, in plain PyTorch."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from ...geometry.proposal_map import MapConfig
from ..background import background_layer
from ..outputs import MapOutput


def map_layers(first: nn.Module | None, widths: tuple[int, ...], kernels: tuple[int, ...]) -> nn.Sequential:
    """Stack convolutions from width to width with ReLU between them and a sigmoid at the end.

    first: a layer before them, followed by ReLU
    widths: channels before, between and after the convolutions
    kernels: kernel size of each
    """
    layers: list[nn.Module] = [] if first is None else [first, nn.ReLU()]
    for (channels_in, channels_out), kernel in zip(itertools.pairwise(widths), kernels, strict=True):
        layers += [nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


class MapHeads(nn.Module):
    """A network whose last layers are `map_layers` called `heads`, with the background score beside the last."""

    config: MapConfig
    background: nn.Sequential | None

    def add_background(self, channels: int, constrained: bool) -> None:
        """Set the background head for the last hidden layer, or None for a network without the constraint."""
        self.background = background_layer(nn.Conv2d, channels, kernel_size=1) if constrained else None

    def scores(self, start: Tensor, end: Tensor, cells: Tensor, heads: nn.Sequential) -> MapOutput:
        """Probabilities start, end [B, 1, T] and cells [B, C, rows, columns] -> scores."""
        hidden = heads[:-2](cells)
        background = None if self.background is None else self.background(hidden).squeeze(1)
        return MapOutput(start.squeeze(1), end.squeeze(1), heads[-2:](hidden), background)
