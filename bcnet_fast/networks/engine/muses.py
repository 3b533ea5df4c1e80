"""MUSES-Net's inference in PyTorch, for any device. `reference.muses` defines its results."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import MUSESConfig
from ...profiling import stage
from ..outputs import SecondStageOutput
from ..range_maxima import range_maxima
from ..reference.muses import BRANCHES, INNER_BINS, Backbone, roi_bins, roi_pool, tap_offsets
from .rewrites import Rewrites

REACH = max(max(tap_offsets(*branch)) for branch in BRANCHES)  # distance of the farthest tap, in columns


class MUSESEngine:
    """Features of a video and regions of its proposals to scores."""

    def __init__(
        self,
        config: MUSESConfig,
        state: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        rewrites: Rewrites,
    ) -> None:
        """Prepare all weights.

        state: the parameters of `reference.muses.MUSES` by name, not needed afterwards
        dtype: of arithmetic and scores, float32 or float64
        """
        self.config, self.device, self.dtype, self.rewrites = config, device, dtype, rewrites
        if rewrites.merged_taps:
            self.convolutions = [
                [part.to(device, dtype) for part in merged_layer(state, f"backbone.layers.{layer}")] for layer in (0, 2)
            ]
        else:
            self.backbone = Backbone(config)
            own = {name: state[f"backbone.{name}"] for name in self.backbone.state_dict()}
            self.backbone.load_state_dict(own)
            self.backbone = self.backbone.to(device, dtype)

        def linear(*names: str) -> tuple[Tensor, Tensor]:
            weight, bias = (
                torch.cat([state[f"roi_head.{name}.{part}"] for name in names]) for part in ("weight", "bias")
            )
            return weight.to(device, dtype), bias.to(device, dtype)

        def by_bins(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            # Maxima lie channel by channel for each bin; the release flattens them bin by bin for each channel.
            return weight.unflatten(1, (config.channels[1], -1)).transpose(1, 2).flatten(1).contiguous(), bias

        self.activity = by_bins(*linear("Act_MLP.0")), linear("activity_fc")
        self.completeness = by_bins(*linear("Comp_MLP.0")), linear("completeness_fc", "regressor_fc")

    def __call__(self, features: Tensor, rois: Tensor) -> SecondStageOutput:
        """Score proposals; see `reference.muses.MUSES.forward`."""
        features, rois, classes = features.to(self.device, self.dtype), rois.to(self.device), self.config.classes
        with stage("sequence"):
            sequence = self._sequence(features)
        with stage("regions"):
            pooled = self._pooled(sequence, rois)
        with stage("heads"):
            activity = _two_layers(pooled[:, INNER_BINS], *self.activity)
            of_regions = _two_layers(pooled, *self.completeness)
        completeness, regression = of_regions.split([classes, 2 * classes], dim=1)
        return SecondStageOutput(activity, completeness, regression.unflatten(1, (classes, 2)))

    def _sequence(self, x: Tensor) -> Tensor:
        """Both layers of temporal aggregation: [C, T] -> [O, T]."""
        if not self.rewrites.merged_taps:
            return self.backbone(x)
        for weight, bias in self.convolutions:
            x = torch.relu(F.conv1d(x[None], weight, bias, padding=REACH)[0])
        return x

    def _pooled(self, sequence: Tensor, rois: Tensor) -> Tensor:
        """Maxima of the bins: [N, 8, O]."""
        if not self.rewrites.maxima_table:
            return roi_pool(sequence, rois).transpose(1, 2)
        low, high = roi_bins(rois, sequence.shape[1]).unbind(-1)
        return range_maxima(sequence.T.contiguous(), low, high)


def merged_layer(state: Mapping[str, Tensor], layer: str) -> tuple[Tensor, Tensor]:
    """One convolution that equals the sum of a layer's branches: weight [O, I, 21] and bias [O], float64."""
    names = [f"{layer}.branches.{branch}" for branch in range(len(BRANCHES))]
    outputs, inputs = state[f"{names[0]}.weight"].shape[:2]
    merged = torch.zeros(outputs, inputs, 2 * REACH + 1, dtype=torch.float64)
    for name, branch in zip(names, BRANCHES, strict=True):
        taps = torch.tensor([REACH + offset for offset in tap_offsets(*branch)])
        merged.index_add_(2, taps, state[f"{name}.weight"].cpu().double().squeeze(2))
    return merged, torch.stack([state[f"{name}.bias"].cpu().double() for name in names]).sum(dim=0)


def _two_layers(x: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    return F.linear(torch.relu(F.linear(x.flatten(1), *first)), *second)
