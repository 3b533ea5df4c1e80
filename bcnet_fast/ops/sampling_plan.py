"""Sparse sampling plans: which snippets each bin of each anchor reads, and with which weights.

A plan depends on the anchors alone and is built once. Two sampling rules are covered: evenly spaced points (BMN, and
BCNet after it) and aligned bins (G-TAD). They differ in the position of the points and in what happens at the ends of
the sequence. Both interpolate linearly and average the points of a bin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .refusals import check_rows, refuse, refuse_dtype, refuse_shape

# Anchors that the native code processes at the same time; the same number is in csrc/include/anchor_sampling.h.
GROUP = 8
# Anchors whose points are in memory at the same time while a plan is built.
BLOCK = 256
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """Sparse matrix that samples N bins for each of P anchors from sequences of T snippets, and its transpose.

    Bin n of anchor p reads the snippets from first[p, n] on, with the weights from offsets[p N + n] up to
    offsets[p N + n + 1]; a bin may be empty. The weights of a plan are called its taps. Plans are built by
    `interpolated_plan` and `aligned_plan`, and their tensors must not be changed.

    length: T, snippets of a sequence.
    bins: bins taken from each of the feature sequences; N is their sum.
    longest: largest number of snippets that a bin reads.
    first: [P, N] int32.
    offsets: [P * N + 1] int32.
    weights: [taps] float32 or float64.
    by_snippet_offsets: [N * T + 1] int32; row n * T + t of the transpose has the taps of bin n at snippet t.
    by_snippet_anchor: [taps] int32, the anchor of each tap of the transpose.
    by_snippet_weight: [taps], in the dtype of weights.
    order: [groups, GROUP] int32, every anchor once; those of a group read alike, up to a shift. -1 fills up a group.
    """

    length: int
    bins: tuple[int, ...]
    longest: int
    first: Tensor
    offsets: Tensor
    weights: Tensor
    by_snippet_offsets: Tensor
    by_snippet_anchor: Tensor
    by_snippet_weight: Tensor
    order: Tensor

    def pack(self) -> tuple[list[Tensor], list[int]]:
        """Return the plan as operators take it: its tensors, and [T, longest, *bins]."""
        return [getattr(self, name) for name in PLAN_TENSORS], [self.length, self.longest, *self.bins]

    @classmethod
    def unpack(cls, tensors: Sequence[Tensor], sizes: Sequence[int]) -> SamplingPlan:
        """Return the plan that `pack` was called on."""
        length, longest, *bins = sizes
        return cls(length, tuple(bins), longest, *tensors)

    @property
    def anchors(self) -> int:
        """P, number of anchors."""
        return self.first.shape[0]

    @property
    def taps(self) -> int:
        """Number of weights, over all anchors and bins."""
        return self.weights.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SamplingPlan:
        """Return the plan on another device, or with weights of another dtype; itself if nothing changes."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = {n: t.to(device, dtype) if t.is_floating_point() else t.to(device) for n, t in tensors.items()}
        return self if all(getattr(self, name) is t for name, t in moved.items()) else replace(self, **moved)

    def dense(self) -> Tensor:
        """Return the dense matrix [P, N, T], for tests and inspection: 130 MB for BMN's map, 540 MB for G-TAD's."""
        count = self.offsets.diff().long()
        cell = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
        snippet = self.first.flatten()[cell] + torch.arange(self.taps, device=count.device) - self.offsets[cell]
        dense = self.weights.new_zeros(len(count), self.length)
        dense[cell, snippet] = self.weights
        return dense.view(self.anchors, -1, self.length)


PLAN_TENSORS = tuple(field.name for field in fields(SamplingPlan))[3:]


def interpolated_plan(
    intervals: np.ndarray, length: int, bins: int = 32, points_per_bin: int = 3, dtype: torch.dtype = torch.float32
) -> SamplingPlan:
    """Sample `bins * points_per_bin` evenly spaced points of each interval, both ends included (BMN's public release).

    Args:
        intervals: start and end in snippets, [P, 2], in any order; a NaN leaves all bins of an anchor empty.
            `make_anchors(...)` for BCNet, `bmn_intervals(T)` for BMN.
        length: T, snippets of the sequence.
        bins: N, vectors of an anchor.
        points_per_bin: consecutive points whose mean is a bin.
        dtype: of the weights, float32 or float64. They are rounded to float32 anyway, as in the public releases.

    A point t gives 1 - f to the snippet trunc(t) and f to ceil(t), with the signed fraction f = t - trunc(t). Weights
    outside [0, T - 1] are dropped. So points in (-1, 0) read snippet 0 in full, and points in (T - 1, T) fade out.

    Raises:
        TypeError: a number or dtype is of another kind.
        ValueError: a number is below 1, or `intervals` is not [P, 2] or infinite.
    """
    intervals = _check(
        "intervals", intervals, dtype, length=(length, 1), bins=(bins, 1), points_per_bin=(points_per_bin, 1)
    )
    check_rows("sampling plan", "intervals", intervals, ~np.any(np.isinf(intervals), axis=1), "finite numbers or NaN")
    count = bins * points_per_bin

    def taps_of(block: np.ndarray) -> _Taps:
        start, end = block[:, :1], block[:, 1:]
        points = start + (end - start) / max(count - 1.0, 1.0) * np.arange(count)
        points = points.reshape(len(points), bins, points_per_bin)
        lower = np.trunc(points)
        fraction = points - lower
        snippet = np.stack([lower, np.ceil(points)])
        inside = (snippet >= 0) & (snippet < length)  # false for NaN
        taps = _taps(np.where(inside, snippet, 0.0), np.where(inside, [1.0 - fraction, fraction], 0.0))
        return taps._replace(weights=(1.0 / points_per_bin * taps.weights).astype(np.float32))

    return _plan(_by_blocks(intervals, taps_of, dtype), intervals, length, (bins,))


def aligned_plan(
    regions: np.ndarray,
    length: int,
    bins: tuple[int, ...] = (16, 16),
    points_per_bin: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SamplingPlan:
    """Average points at the middle of equal parts of equal bins of each region (Align1D of G-TAD's public release).

    Args:
        regions: start and end in snippets, [P, 2]; a region shorter than 1 counts as 1 long. `gtad_regions(T, D)` for
            G-TAD.
        length: T, snippets of the sequence.
        bins: bins of each feature sequence, over the same region. G-TAD has two sequences: the features, and the mean
            of their graph neighbours.
        points_per_bin: points of a bin; 0 for the length of the bin, rounded up.
        dtype: of the weights, float32 or float64, computed in float64.

    A point t outside [-1, T] gives 0. Up to one snippet outside the sequence it reads the snippet at that end. The mean
    counts all points.

    Raises:
        TypeError: a number or dtype is of another kind.
        ValueError: a number is too small, or `regions` is not [P, 2] or not finite.
    """
    regions = _check("regions", regions, dtype, length=(length, 1), bins=(bins, 1), points_per_bin=(points_per_bin, 0))
    check_rows("sampling plan", "regions", regions, np.all(np.isfinite(regions), axis=1), "finite numbers")

    def taps_of(block: np.ndarray, number: int) -> _Taps:
        start, extent = block[:, :1, None], np.maximum(block[:, 1:] - block[:, :1], 1.0)[:, :, None]
        size = extent / number
        points_in_bin = np.full_like(size, points_per_bin) if points_per_bin else np.ceil(size)
        k = np.arange(points_in_bin.max())
        points = start + np.arange(number)[:, None] * size + (k + 0.5) * size / points_in_bin
        used = (k < points_in_bin) & (points >= -1) & (points <= length)
        points = points.clip(0, length - 1)
        lower = np.floor(points)
        fraction = points - lower
        snippet = np.stack([lower, np.minimum(lower + 1, length - 1)])
        return _taps(snippet, np.where(used, [1 - fraction, fraction], 0.0) / points_in_bin)

    def joined() -> _Taps:
        parts = {number: _by_blocks(regions, functools.partial(taps_of, number=number), dtype) for number in set(bins)}
        return _side_by_side([parts[number] for number in bins])

    return _plan(joined(), regions, length, tuple(bins))


def _check(name: str, intervals: np.ndarray, dtype: torch.dtype, **least: tuple[Any, int]) -> np.ndarray:
    """Return the intervals as float64; raise if no plan can be built. `least`: number(s) and smallest allowed value."""
    intervals = np.asarray(intervals, dtype=np.float64)
    if intervals.ndim != 2 or intervals.shape[1] != 2 or len(intervals) == 0:
        refuse_shape("sampling plan", name, intervals, "[P, 2] with P >= 1")
    for argument, (given, lowest) in least.items():
        numbers = given if isinstance(given, tuple) else (given,)
        if not all(isinstance(number, (int, np.integer)) for number in numbers):
            wanted = "integers" if isinstance(given, tuple) else "an integer"
            refuse("sampling plan", argument, repr(given), wanted, TypeError)
        if min(numbers, default=lowest - 1) < lowest:
            refuse("sampling plan", argument, given, f"at least {lowest}")
    if dtype not in DTYPES:
        refuse_dtype("sampling plan", "dtype", dtype, DTYPES)
    return intervals


class _Taps(NamedTuple):
    """Taps of the bins of one feature sequence: bin n of anchor p reads `count[p, n]` snippets from `first[p, n]` on.

    first: [P, N] int32.
    count: [P, N] int32.
    weights: [sum of count], by anchor, then bin, then snippet.
    """

    first: np.ndarray
    count: np.ndarray
    weights: np.ndarray


def _by_blocks(intervals: np.ndarray, taps_of: Callable[[np.ndarray], _Taps], dtype: torch.dtype) -> _Taps:
    """Return the taps of all intervals, computed block by block, with weights of a dtype."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    blocks = [taps_of(intervals[begin : begin + BLOCK]) for begin in range(0, len(intervals), BLOCK)]
    blocks = [taps._replace(weights=taps.weights.astype(kind)) for taps in blocks]
    return _Taps(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def _taps(snippet: np.ndarray, weight: np.ndarray) -> _Taps:
    """Sum up points: each of [2, P, N, points] adds its weight to its snippet."""
    read = weight != 0
    first = np.where(read, snippet, np.inf).min(axis=(0, 3))
    last = np.where(read, snippet, -np.inf).max(axis=(0, 3))
    empty = first == np.inf
    first = np.where(empty, 0, first).astype(np.int32)
    count = np.where(empty, 0, last - first + 1).astype(np.int32)
    origin = _starts(count) - first
    place = origin[:, :, None] + snippet.astype(np.int64)
    return _Taps(first, count, np.bincount(place[read], weight[read], minlength=count.sum()))


def _side_by_side(parts: list[_Taps]) -> _Taps:
    """Join the bins of several feature sequences."""
    first, count = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("first", "count"))
    weights = np.empty(count.sum(), parts[0].weights.dtype)
    ends = np.cumsum([part.count.shape[1] for part in parts])
    for part, starts in zip(parts, np.split(_starts(count), ends[:-1], axis=1), strict=True):
        weights[_places(starts, part.count)] = part.weights
    return _Taps(first, count, weights)


def _plan(taps: _Taps, intervals: np.ndarray, length: int, bins: tuple[int, ...]) -> SamplingPlan:
    first, count, weights = taps
    starts = _starts(count)
    arrays = {
        "first": first,
        "offsets": np.append(starts, np.int32(len(weights))),
        "weights": weights,
        "order": _order(intervals),
        **_by_snippet(first, count, starts, weights, length),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return SamplingPlan(length=length, bins=bins, longest=int(count.max()), **tensors)


def _starts(count: np.ndarray) -> np.ndarray:
    """Return where each bin's weights begin, int32 [P, N]."""
    return (np.cumsum(count, dtype=np.int32) - count.ravel()).reshape(count.shape)


def _places(starts: np.ndarray, count: np.ndarray) -> np.ndarray:
    """List the numbers from `starts` on, `count` of them for each bin, bin after bin."""
    places = np.repeat((starts - _starts(count)).ravel(), count.ravel())
    places += np.arange(len(places), dtype=np.int32)
    return places


def _by_snippet(first, count, starts, weights, length) -> dict[str, np.ndarray]:
    """Transpose the taps, bin by bin: sorting all at once would take more memory than the plan itself."""
    sizes, anchors, sorted_weights = [], [], []
    for bin_first, bin_count, bin_starts in zip(first.T, count.T, starts.T, strict=True):
        snippet = _places(bin_first, bin_count)
        order = np.argsort(snippet, kind="stable")
        sizes.append(np.bincount(snippet, minlength=length))
        anchors.append(np.repeat(np.arange(len(bin_count), dtype=np.int32), bin_count)[order])
        sorted_weights.append(weights[_places(bin_starts, bin_count)[order]])
    return {
        "by_snippet_offsets": np.append(0, np.concatenate(sizes).cumsum()).astype(np.int32),
        "by_snippet_anchor": np.concatenate(anchors),
        "by_snippet_weight": np.concatenate(sorted_weights),
    }


def _order(intervals: np.ndarray) -> np.ndarray:
    """Group anchors of equal length by start: away from the ends of the sequence they read alike, up to a shift."""
    lengths, kind = np.unique(np.round(intervals[:, 1] - intervals[:, 0], 6), return_inverse=True, equal_nan=True)
    by_kind = np.lexsort((intervals[:, 0], kind))
    sizes = np.bincount(kind, minlength=len(lengths))
    rank = np.arange(len(kind)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Lengths alternate every few groups, so that consecutive groups read nearby snippets, which are still cached.
    place = np.lexsort((rank, kind[by_kind], rank // (4 * GROUP)))
    rank, kind, anchor = rank[place], kind[by_kind][place], by_kind[place]
    first_of_group = rank % GROUP == 0
    order = np.full((first_of_group.sum(), GROUP), -1, np.int32)
    order[np.cumsum(first_of_group) - 1, rank % GROUP] = anchor
    return order
