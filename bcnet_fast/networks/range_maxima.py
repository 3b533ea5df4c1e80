"""Maxima over ranges of rows, for the pooling of second-stage networks."""

from __future__ import annotations

import torch
from torch import Tensor


def range_maxima(x: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """Maximum over rows `first` up to, not including, `end` of each range, channel by channel; 0 for an empty range.

    Two look-ups a range instead of a scan: level k of a table has the maxima over 2^k rows, and any range is the union
    of two such blocks. One level is in memory at a time.

    x: [T, C]
    first, end: [...] int64, within 0 to T

    Returns [..., C]. Not differentiable.
    """
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

    features: [T, C] of one video
    rows: int64 [N, 3, 2], see `geometry.proposal_windows.pooled_rows`
    """
    windows = range_maxima(features, rows[..., 0], rows[..., 1] + 1)
    return windows[:, 1].contiguous(), windows.flatten(1)
