"""MUSES-Net (Liu et al., "Multi-shot Temporal Event Localization: a Benchmark", CVPR 2021) in plain PyTorch.

The definition that every faster version is tested against. Runs on any device in float32 and float64; trainable.
Parameter names are those of the public release. Its temporal aggregation is a deformable convolution with constant
offsets, which is a convolution with gaps between the taps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import MUSESConfig
from ..outputs import SecondStageOutput
from .layers import linear_head

BRANCHES = ((1, 3, 3), (3, 3, 3), (3, 3, 6), (3, 3, 9))  # kernel height and width, and gap between groups of taps
BINS = 8  # bins of a region
INNER_BINS = slice(2, 6)  # the proposal itself, where its region is not cut at an end of the video
STRIDE = 8  # video frames between columns


def tap_offsets(height: int, width: int, gap: int) -> list[int]:
    """Columns that the taps of a branch read, relative to its own: `height` groups, `gap` apart, of `width` taps."""
    centre = (height * width - 1) // 2
    return [
        (gap - width) * (tap // width - (height - 1) // 2) + tap - centre for tap in range(height * width)
    ]  # fmt: skip


class Branch(nn.Module):
    """A convolution over the taps of one branch, padded with zeros: [..., I, T] -> [..., O, T]."""

    def __init__(self, inputs: int, outputs: int, height: int, width: int, gap: int) -> None:
        super().__init__()
        self.offsets = tap_offsets(height, width, gap)
        bound = 1 / math.sqrt(inputs * len(self.offsets))
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 1, len(self.offsets)).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        columns, reach = x.shape[-1], max(self.offsets)
        padded = F.pad(x, (reach, reach))
        y = self.bias[:, None]
        for offset, weight in zip(self.offsets, self.weight.squeeze(2).unbind(-1), strict=True):
            y = y + weight @ padded[..., reach + offset : reach + offset + columns]
        return y


class TemporalAggregation(nn.Module):
    """The sum of four branches: [..., I, T] -> [..., O, T]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([Branch(inputs, outputs, *branch) for branch in BRANCHES])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(dim=0)


class Backbone(nn.Module):
    """Two layers of temporal aggregation: [..., C, T] -> [..., O, T]."""

    def __init__(self, config: MUSESConfig) -> None:
        super().__init__()
        inner, outer = config.channels
        self.layers = nn.Sequential(
            TemporalAggregation(config.feature_dim, inner), nn.ReLU(), TemporalAggregation(inner, outer), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def roi_bins(rois: Tensor, columns: int) -> Tensor:
    """Columns of the 8 bins of regions: rois int64 [N, 2] in frames, both inclusive -> int64 [N, 8, 2], first and end.

    Columns beyond the sequence are cut off, which leaves bins empty.
    """
    first, width = rois[:, :1], rois[:, 1:] + 1 - rois[:, :1]
    bins, scale = torch.arange(BINS, device=rois.device), BINS * STRIDE
    low = torch.div(BINS * first + bins * width, scale, rounding_mode="floor")
    high = -torch.div(-(BINS * first + (bins + 1) * width), scale, rounding_mode="floor")
    return torch.stack([low, high], dim=-1).clamp(0, columns)


def roi_pool(x: Tensor, rois: Tensor) -> Tensor:
    """Maximum of every bin, 0 for an empty one: x [O, T] -> [N, O, 8].

    The first of equal maxima gets the gradient. torchvision's operator of the same name rounds regions differently.
    """
    empty = x.new_zeros(len(x))
    pooled = [
        torch.stack([x[:, low:high].max(dim=1).values if low < high else empty for low, high in bins], dim=1)
        for bins in roi_bins(rois, x.shape[1]).tolist()
    ]
    return torch.stack(pooled) if pooled else x.new_zeros(0, len(x), BINS)


class RegionHead(nn.Module):
    """Pooled regions -> scores."""

    def __init__(self, config: MUSESConfig) -> None:
        super().__init__()
        channels, width, self.classes = config.channels[1], config.head_width, config.classes
        self.activity_fc = linear_head(width, config.classes + 1)
        self.completeness_fc = linear_head(width, config.classes)
        self.regressor_fc = linear_head(width, 2 * config.classes)
        inner = len(range(BINS)[INNER_BINS])
        self.Act_MLP = nn.Sequential(nn.Linear(inner * channels, width), nn.ReLU())
        self.Comp_MLP = nn.Sequential(nn.Linear(BINS * channels, width), nn.ReLU())
        self.dropout = nn.Dropout(config.activity_dropout)

    def forward(self, pooled: Tensor) -> SecondStageOutput:
        """pooled: [N, O, 8]."""
        activity = self.dropout(self.Act_MLP(pooled[..., INNER_BINS].flatten(1)))
        completeness = self.Comp_MLP(pooled.flatten(1))
        regression = self.regressor_fc(completeness).unflatten(1, (self.classes, 2))
        return SecondStageOutput(self.activity_fc(activity), self.completeness_fc(completeness), regression)


class MUSES(nn.Module):
    """Features of a video and regions of its proposals -> `SecondStageOutput`."""

    def __init__(self, config: MUSESConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.roi_head = Backbone(config), RegionHead(config)

    def forward(self, features: Tensor, rois: Tensor) -> SecondStageOutput:
        """Score N proposals.

        features: [C, T], of which column i begins at frame 8 i
        rois: int64 [N, 2], first and last frame of the region of a proposal, `geometry.proposal_windows.regions`
        """
        return self.roi_head(roi_pool(self.backbone(features), rois))
