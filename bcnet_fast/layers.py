"""Drop-in layers for other implementations of BMN and G-TAD: same constructors, weights and results, less work.

`BoundaryMatching` replaces BMN's boundary-matching layer and the 3-D convolution after it. `GraphAlign` replaces the
layer of that name in G-TAD, and `GraphAlignConv` that layer and the first convolution of the localization module.

The layers call `ops.anchor_sampling` and `ops.anchor_projection`. So they are differentiable, run on the same devices
and in the same dtypes, follow torch.autocast, and compile to one graph. docs/layers.md shows where to put them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import BMNConfig
from .geometry.proposal_map import gtad_regions, proposal_map, sampled_intervals
from .networks.graph import nearest, neighbours
from .ops import anchor_projection, anchor_sampling
from .ops.reference import accumulation_dtype
from .ops.sampling_plan import PLAN_TENSORS, SamplingPlan, aligned_plan, interpolated_plan
from .text import alternatives

PLAN_BUFFERS = tuple(f"plan_{name}" for name in PLAN_TENSORS)
LAYOUTS = ("start_end", "duration_start")
STYLES = (0, 1, 2)


class _Planned(nn.Module):
    """A module with a sampling plan, which moves with it but is not part of its state.

    The plan's tensors are buffers, because PyTorch copies buffers to the replicas of a module.
    """

    plan_weights: Tensor

    def hold(self, exact: SamplingPlan) -> None:
        """Set the plan, with float64 weights, so that a module loses no digits when it becomes float64 later."""
        self._exact = exact
        self._place(torch.empty(0))

    def _place(self, like: Tensor) -> None:
        plan = self._exact.to(like.device, accumulation_dtype(like.dtype))
        for name in PLAN_BUFFERS:
            self.register_buffer(name, getattr(plan, name.removeprefix("plan_")), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Planned:
        super()._apply(fn, recurse)
        # Casting a module casts its buffers too, but the plan has to be in the dtype of sums.
        self._place(self.plan_weights)
        return self

    def plan(self) -> SamplingPlan:
        exact = self._exact
        tensors = [getattr(self, name) for name in PLAN_BUFFERS]
        return SamplingPlan(exact.length, exact.bins, exact.longest, *tensors)


class BoundaryMatching(_Planned, nn.Conv3d):
    """BMN's boundary-matching layer, the 3-D convolution after it, and ReLU.

    Args:
        temporal_dim: T, snippets of the sequence.
        boundary_ratio: the sampled interval extends a proposal on both sides by this fraction of its length.
        num_samples: N, sampled vectors of a proposal.
        num_samples_per_bin: points whose mean is a sampled vector.
        hidden_dim_1d: C, channels of the sequence.
        hidden_dim_3d: O, channels of the map.
        layout: "start_end", the map [T, T] of the public BMN, or "duration_start", the map [D, T] of mmaction2.
        max_duration: D, snippets of the longest proposal; None for T.

    forward: features [B, C, T] -> [B, O, rows, columns], the values of `relu(conv3d(sampled))[:, :, 0]`, where
    `sampled` is the output of the boundary-matching layer, [B, C, N, rows, columns]. Cells that are not proposals have
    the value relu(bias). The memory format is `torch.channels_last`.

    The module is an nn.Conv3d: `weight` [O, C, N, 1, 1] and `bias` [O] load from the state of the replaced convolution,
    and initialisation by type works. The weight is contiguous as [N, C, O].

    Raises:
        ValueError: a size is below 1, or the layout is unknown. forward raises as `ops.anchor_projection` does.
    """

    def __init__(
        self,
        temporal_dim: int,
        boundary_ratio: float = 0.5,
        num_samples: int = 32,
        num_samples_per_bin: int = 3,
        hidden_dim_1d: int = 256,
        hidden_dim_3d: int = 512,
        *,
        layout: str = "start_end",
        max_duration: int | None = None,
    ) -> None:
        longest = temporal_dim if max_duration is None else max_duration
        _check_sizes(
            temporal_dim=temporal_dim, max_duration=longest, num_samples=num_samples, hidden_dim_1d=hidden_dim_1d,
            hidden_dim_3d=hidden_dim_3d, num_samples_per_bin=num_samples_per_bin,
        )  # fmt: skip
        _check_choice("layout", layout, LAYOUTS)
        super().__init__(hidden_dim_1d, hidden_dim_3d, kernel_size=(num_samples, 1, 1))
        # The memory layout that the operator reads, so that no call copies the weight.
        by_bin = self.weight.detach().flatten(2).permute(2, 1, 0).contiguous()
        self.weight = nn.Parameter(by_bin.permute(2, 1, 0)[..., None, None])

        config = BMNConfig(window=temporal_dim, max_duration=longest, map_layout=layout)
        self.map_shape = proposal_map(config).shape
        # Cells that are not proposals are anchors with empty bins. Writing relu(bias) for them takes less time than
        # scattering the proposals over the map.
        intervals = sampled_intervals(config, boundary_ratio)
        self.hold(interpolated_plan(intervals, temporal_dim, num_samples, num_samples_per_bin, torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        weight = self.weight.flatten(2).permute(2, 1, 0)
        return _on_map(anchor_projection(features, self.plan(), weight, self.bias, relu=True), self.map_shape)


class _Graph:
    """Options of G-TAD's layer, and the sequences that it samples."""

    def __init__(self, k: int, t: int, d: int, samp: int, style: int, bins: tuple[int, int]) -> None:
        _check_choice("style", style, STYLES)
        self.k, self.samp, self.style = k, samp, style
        inner, context = bins
        self.bins = (inner, context) if style else (inner,)
        _check_sizes(k=k, t=t, d=d, **{f"bins[{i}]": count for i, count in enumerate(self.bins)})
        self.map_shape = d, t

    def plan(self) -> SamplingPlan:
        longest, length = self.map_shape
        return aligned_plan(gtad_regions(length, longest), length, self.bins, self.samp, torch.float64)

    def sequences(self, x: Tensor, index: Tensor | None) -> Tensor:
        """x [B, C, T] -> the features of the plan: x itself, or [B, 2, C, T] with the means of graph neighbours."""
        if self.style == 0:
            return x
        if self.style == 1:
            index = nearest(x, self.k)
        elif index is None:
            raise ValueError("index is None, expected [B, T, K], the neighbours for style 2")
        return torch.stack([x, neighbours(x, index).mean(dim=-1)], dim=1)


class GraphAlign(_Planned):
    """G-TAD's layer of that name: bins of every cell, sampled from the sequence and the means of graph neighbours.

    Args:
        k: neighbours of a snippet in the graph, itself included.
        t: T, snippets of the sequence.
        d: D, snippets of the longest proposal.
        bs: ignored; the layer accepts any batch size.
        samp: points of a bin; 0 for the length of the bin, rounded up.
        style: 0 samples the sequence only, 1 also the means of the `k` nearest neighbours, 2 of those in `index`.
        bins: sampled vectors of a cell from each: (16, 16) in G-TAD's branch master, (32, 4) in its branch anet.

    forward: x [B, C, T] and, for style 2, index [B, T, K] int64 -> [B, C * bins, D, T], bins fastest. Cells that reach
    beyond the sequence all have the same value, which is not zero. `GraphAlignConv` avoids this large result.

    Raises:
        ValueError: a size is below 1, the style is unknown, or the index is missing. forward raises as
            `ops.anchor_sampling` does.
    """

    def __init__(
        self,
        k: int = 3,
        t: int = 100,
        d: int = 100,
        bs: int = 64,
        samp: int = 0,
        style: int = 0,
        *,
        bins: tuple[int, int] = (16, 16),
    ) -> None:
        super().__init__()
        self.graph = _Graph(k, t, d, samp, style, bins)
        self.hold(self.graph.plan())

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        sampled = anchor_sampling(self.graph.sequences(x, index), self.plan())  # [B, D * T, bins, C]
        # Two copies, the first in tiles and the second in long rows, take less time than one permuting copy.
        by_bin = [one.flatten(1).t().contiguous().unflatten(0, one.shape[1:]) for one in sampled]
        by_channel = torch.stack([one.transpose(0, 1) for one in by_bin])  # [B, C, bins, D * T]
        return by_channel.flatten(1, 2).unflatten(2, self.graph.map_shape)


class GraphAlignConv(_Planned, nn.Conv2d):
    """`GraphAlign`, the 1x1 convolution at the start of G-TAD's localization module, and ReLU.

    Args:
        k, t, d, bs, samp, style, bins: as in `GraphAlign`.
        h_dim_1d: C, channels of the sequence.
        h_dim_3d: O, channels of the map.

    forward: x [B, C, T] and, for style 2, index [B, T, K] int64 -> [B, O, D, T], the values of
    `relu(conv2d(graph_align(x, index)))`, in the memory format `torch.channels_last`.

    The module is an nn.Conv2d: `weight` [O, C * bins, 1, 1] and `bias` [O] load from the state of the replaced
    convolution, and initialisation by type works.

    Raises:
        ValueError: a size is below 1, the style is unknown, or the index is missing. forward raises as
            `ops.anchor_projection` does.
    """

    def __init__(
        self,
        k: int = 3,
        t: int = 100,
        d: int = 100,
        bs: int = 64,
        samp: int = 0,
        style: int = 0,
        *,
        bins: tuple[int, int] = (16, 16),
        h_dim_1d: int = 256,
        h_dim_3d: int = 512,
    ) -> None:
        graph = _Graph(k, t, d, samp, style, bins)
        _check_sizes(h_dim_1d=h_dim_1d, h_dim_3d=h_dim_3d)
        super().__init__(h_dim_1d * sum(graph.bins), h_dim_3d, kernel_size=1)
        # The operator reads [bins, C, O]. With this memory layout a call copies rows instead of single numbers.
        self.weight = nn.Parameter(self.weight.detach().flatten(1).t().contiguous().t()[..., None, None])
        self.graph = graph
        self.hold(graph.plan())

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        weight = self.weight.flatten(1).t().unflatten(0, (-1, sum(self.graph.bins))).transpose(0, 1)
        sequences = self.graph.sequences(x, index)
        return _on_map(anchor_projection(sequences, self.plan(), weight, self.bias, relu=True), self.graph.map_shape)


def _on_map(cells: Tensor, shape: tuple[int, int]) -> Tensor:
    """View [B, rows * columns, O] as [B, O, rows, columns]."""
    return cells.unflatten(1, shape).permute(0, 3, 1, 2)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")


def _check_choice(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected {alternatives(map(str, choices))}")
