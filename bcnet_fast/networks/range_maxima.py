"""Maxima over ranges of rows, for the pooling of second-stage networks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import native


def range_maxima(x: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """Maximum over rows `first` up to, not including, `end` of each range, channel by channel; 0 for an empty range.

    Two look-ups a range instead of a scan: level k of a table has the maxima over 2^k rows, and any range is the union
    of two such blocks. On a CPU in C++, some columns at a time, else one level at a time.

    x: [T, C]
    first, end: [...] int64, within 0 to T

    Returns [..., C]. Not differentiable.
    """
    if native.module is not None and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        rows = x.detach() if x.stride(1) == 1 and x.stride(0) >= x.shape[1] else x.detach().contiguous()
        ranges = torch.stack([first, end], dim=-1).view(-1, 1, 2)
        out = x.new_empty(*first.shape, x.shape[1])
        flat = out.view(len(ranges), x.shape[1]).numpy()
        native.module.range_maxima(rows.numpy(), ranges.numpy(), flat, threads=torch.get_num_threads())
        return out
    shape, first, end = first.shape, first.flatten(), end.flatten()
    maxima = x.new_zeros(len(first), x.shape[1])
    length = end - first
    # frexp is exact where a logarithm would round: 2^(exponent - 1) <= length < 2^exponent.
    level_of = torch.frexp(length.clamp(min=0).double()).exponent.long() - 1
    block, table = 1, x
    for level in range(int(level_of.max()) + 1 if len(length) else 0):
        if level:
            table = torch.maximum(table[:-block], table[block:])
            block *= 2
        ranges = torch.nonzero(level_of == level).squeeze(1)
        maxima[ranges] = torch.maximum(table[first[ranges]], table[end[ranges] - block])
    return maxima.view(*shape, x.shape[1])


def proposal_features(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Pool what P-GCN reads of proposals: activity features [N, C] and completeness features [N, 3 C].

    Aliases: activity features are the middle of the completeness features, in the same memory.

    features: [T, C] of one video
    rows: int64 [N, 3, 2], see `geometry.proposal_windows.pooled_rows`
    """
    windows = range_maxima(features, rows[..., 0], rows[..., 1] + 1)
    return windows[:, 1], windows.flatten(1)
