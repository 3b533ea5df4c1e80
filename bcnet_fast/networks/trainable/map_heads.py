"""The end of BMN and G-TAD for training: from a sequence to the scores of the cells of their map.

Sampling and the layer after it are one operator, for valid cells and for one that stands for all others, which sample
the same. What follows without a look at a neighbouring cell is made for these alone too.
"""

from __future__ import annotations

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
    """Of `maps.sampled_cells`."""
    return sampling_plan(config, sampled_cells(proposal_map(config).valid), dtype).to(device)


@cached_tensors(8)
def valid_cells(config: MapConfig, device: torch.device) -> Tensor:
    """Their numbers row * columns + column, int64."""
    return torch.from_numpy(np.flatnonzero(proposal_map(config).valid)).to(device)


def spread(x: Tensor, config: MapConfig) -> Tensor:
    """Valid cells and what stands for the others, [B, cells, C] -> the map [B, C, rows, columns], channels last."""
    shape, valid = proposal_map(config).shape, valid_cells(config, x.device)
    if len(valid) < np.prod(shape):
        # So that the gradients are a sum and a selection: no sums by index, which some devices make in any order.
        x = x[:, -1:].expand(-1, np.prod(shape), -1).index_copy(1, valid, x[:, :-1])
    return x.unflatten(1, shape).permute(0, 3, 1, 2)


def layer(module: nn.Module, x: Tensor, *, relu: bool = False) -> Tensor:
    """A convolution of size 1, on cells [B, cells, C]"""
    return linear(x, module.weight.flatten(1), module.bias, relu=relu)


def map_output(
    network: MapHeads, start: Tensor, end: Tensor, streams: list[Tensor], first: nn.Module, heads: nn.Sequential
) -> MapOutput:
    """start, end [B, 1, T] and the sequences that are sampled, [B, C, T] each -> scores.

    first: the convolution of the sampled vectors; heads: `networks.reference.maps.map_layers` after that.
    """
    config, features = network.config, streams[0] if len(streams) == 1 else torch.stack(streams, dim=1)
    plan = cells_plan(config, features.device, accumulation_dtype(features.dtype))
    weight = first.weight.flatten(1).unflatten(1, (features.shape[-2], -1)).permute(2, 1, 0)
    x = ops.anchor_projection(features, plan, weight, first.bias, relu=True)

    of_cells, *over_cells, of_scores = (module for module in heads if isinstance(module, nn.Conv2d))
    x = layer(of_cells, x, relu=True)
    whole = over_cells[0].kernel_size != (1, 1)
    if whole:
        x = spread(x, config)
        for convolution in over_cells:
            x = convolution(x).relu_()
        x = x.flatten(2).mT
    else:
        for convolution in over_cells:
            x = layer(convolution, x, relu=True)
    # The scores of all kinds in one product.
    kinds = [of_scores] if network.background is None else [of_scores, network.background[0]]
    weight, bias = (torch.cat([getattr(kind, name) for kind in kinds]) for name in ("weight", "bias"))
    x = linear(x, weight.flatten(1), bias).sigmoid()
    x = x.mT.unflatten(-1, proposal_map(config).shape) if whole else spread(x, config)
    return MapOutput(start.squeeze(1), end.squeeze(1), x[:, :2], None if network.background is None else x[:, 2])
