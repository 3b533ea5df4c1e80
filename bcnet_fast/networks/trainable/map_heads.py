"""The last layers of BMN and G-TAD for training: from sequences to the scores of the cells of a map.

Sampling and the layer after it are one operator. It runs on valid cells and on one that stands for all others, which
sample the same. So do the later layers, as far as they read no neighbouring cells.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ... import ops
from ...geometry.proposal_map import MapConfig, proposal_map, sampled_cells, sampling_plan
from ...ops.constants import cached_tensors
from ...ops.reference import accumulation_dtype
from ...ops.sampling_plan import SamplingPlan
from ..outputs import MapOutput
from ..reference.map_heads import MapHeads
from .onednn_linear import linear


@cached_tensors(8)
def cells_plan(config: MapConfig, device: torch.device, dtype: torch.dtype) -> SamplingPlan:
    """The sampling plan of `proposal_map.sampled_cells`."""
    return sampling_plan(config, sampled_cells(proposal_map(config).valid), dtype).to(device)


@cached_tensors(8)
def valid_cells(config: MapConfig, device: torch.device) -> Tensor:
    """Numbers row * columns + column of the valid cells, int64."""
    return torch.from_numpy(np.flatnonzero(proposal_map(config).valid)).to(device)


def spread(x: Tensor, config: MapConfig) -> Tensor:
    """Spread cells over the map: [B, cells, C] -> [B, C, rows, columns], channels last.

    x: the valid cells, then the one that stands for all others, if there are any
    """
    shape, valid = proposal_map(config).shape, valid_cells(config, x.device)
    count = math.prod(shape)
    if len(valid) < count:
        # The gradient is a sum and a selection. Sums by index would have no fixed order on some devices.
        x = x[:, -1:].expand(-1, count, -1).index_copy(1, valid, x[:, :-1])
    return x.unflatten(1, shape).permute(0, 3, 1, 2)


def layer(module: nn.Conv2d, x: Tensor, *, relu: bool = False) -> Tensor:
    """Apply a convolution of 1 by 1 to cells [B, cells, C]."""
    return linear(x, module.weight.flatten(1), module.bias, relu=relu)


def map_output(
    network: MapHeads,
    start: Tensor,
    end: Tensor,
    streams: list[Tensor],
    first: nn.Conv2d | nn.Conv3d,
    heads: nn.Sequential,
) -> MapOutput:
    """Compute the scores of a map.

    start, end: [B, 1, T] probabilities
    streams: the sequences that are sampled, [B, C, T] each
    first: the convolution of the sampled vectors
    heads: `reference.map_heads.map_layers` after it
    """
    config, features = network.config, streams[0] if len(streams) == 1 else torch.stack(streams, dim=1)
    plan = cells_plan(config, features.device, accumulation_dtype(features.dtype))
    weight = first.weight.flatten(1).unflatten(1, (features.shape[-2], -1)).permute(2, 1, 0)
    x = ops.anchor_projection(features, plan, weight, first.bias, relu=True)

    cells, *convolutions, scores = (module for module in heads if isinstance(module, nn.Conv2d))
    x = layer(cells, x, relu=True)
    whole_map = convolutions[0].kernel_size != (1, 1)
    if whole_map:
        x = spread(x, config)
        for convolution in convolutions:
            x = convolution(x).relu_()
        x = x.flatten(2).mT
    else:
        for convolution in convolutions:
            x = layer(convolution, x, relu=True)
    # One product for the scores of all kinds.
    kinds = [scores] if network.background is None else [scores, cast(nn.Conv2d, network.background[0])]
    weight, bias = (torch.cat([getattr(kind, name) for kind in kinds]) for name in ("weight", "bias"))
    x = linear(x, weight.flatten(1), bias).sigmoid()
    x = x.mT.unflatten(-1, proposal_map(config).shape) if whole_map else spread(x, config)
    return MapOutput(start.squeeze(1), end.squeeze(1), x[:, :2], None if network.background is None else x[:, 2])
