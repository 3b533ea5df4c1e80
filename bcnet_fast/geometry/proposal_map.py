"""The maps of BMN and G-TAD: a cell for every pair of boundaries, and what is sampled for it.

A map is [rows, columns]. In the layout "start_end" (BMN's public release) row s and column e stand for the snippets s
to e, both included, and a map is [T, T]; in "duration_start" (G-TAD, and BMN in mmaction2 and OpenTAD) row d and column
s stand for the snippets s to s + d, and a map is [D, T]. Cells that end before they start, reach beyond the window or
are longer than D are no proposals. Networks calculate them all the same, and convolutions over the map read them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from ..config import BMNConfig, GTADConfig
from ..ops.sampling_plan import SamplingPlan, aligned_plan, interpolated_plan

MapConfig = BMNConfig | GTADConfig


@dataclass(frozen=True, eq=False)
class ProposalMap:
    """The interval of each cell, in snippets: start and end, half open, int64 [rows, columns]; valid is bool."""

    start: np.ndarray
    end: np.ndarray
    valid: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.valid.shape


def layout_of(config: MapConfig) -> str:
    return config.map_layout if isinstance(config, BMNConfig) else "duration_start"


@functools.lru_cache(maxsize=16)
def proposal_map(config: MapConfig) -> ProposalMap:
    """The map of a network."""
    length, longest = config.window, config.max_duration
    if layout_of(config) == "start_end":
        start, last = np.indices((length, length))
        end = last + 1
        valid = (end > start) & (end - start <= longest)
    else:
        duration, start = np.indices((longest, length))
        end = start + duration + 1
        valid = end <= length
    return ProposalMap(start, end, valid)


def sampled_intervals(config: MapConfig, ratio: float = 0.5) -> np.ndarray:
    """What the network samples for each cell, float64 [rows * columns, 2] in snippets; NaN where BMN samples nothing.

    Both systems add `ratio` of an interval's length on both sides, by a rule that goes with the layout:
    `bmn_intervals` with "start_end", `gtad_regions` with "duration_start".
    """
    if layout_of(config) == "start_end":
        intervals = bmn_intervals(config.window, ratio)
    else:
        intervals = gtad_regions(config.window, config.max_duration, ratio)
    if isinstance(config, BMNConfig):
        intervals[~proposal_map(config).valid.ravel()] = np.nan
    return intervals


def sampled_cells(valid: np.ndarray) -> np.ndarray:
    """The numbers row * columns + column of valid cells, in order, and of the first of the others, if there are any.

    It stands for all others, which sample the same: nothing in BMN, one region in G-TAD.
    """
    valid = valid.ravel()
    return np.concatenate([np.flatnonzero(valid), np.flatnonzero(~valid)[:1]])


def sampling_plan(config: MapConfig, cells: np.ndarray, dtype: torch.dtype = torch.float32) -> SamplingPlan:
    """The plan that samples some cells, given by their numbers row * columns + column."""
    intervals = sampled_intervals(config)[cells]
    if isinstance(config, BMNConfig):
        return interpolated_plan(intervals, config.window, config.bins, config.points_per_bin, dtype)
    return aligned_plan(intervals, config.window, (config.inner_bins, config.context_bins), dtype=dtype)


def bmn_intervals(length: int, ratio: float = 0.5) -> np.ndarray:
    """What BMN samples for the cells (start, end) of its map, float64 [T * T, 2], NaN where end < start.

    The snippets s to e, both included, are L = e - s + 1 long, and `ratio * (L + 1)` is added on both sides.
    """
    start, end = np.indices((length, length)).reshape(2, -1).astype(np.float64)
    extent = end - start + 2
    intervals = np.stack([start - extent * ratio, end + 1 + extent * ratio], axis=1)
    intervals[end < start] = np.nan
    return intervals


def gtad_regions(length: int, max_duration: int, ratio: float = 0.5) -> np.ndarray:
    """What G-TAD samples for the cells (d, start) of its map, float64 [D * T, 2].

    The snippets s to s + d, both included; `ratio * (d + 1)` is added on both sides of [s, s + d]. Cells that reach
    beyond the sequence get the region [0, 0], so they are not empty, but all alike.
    """
    duration, start = np.indices((max_duration, length)).reshape(2, -1).astype(np.float64)
    extension = (duration + 1) * ratio
    regions = np.stack([start - extension, start + duration + extension], axis=1)
    regions[start + duration >= length] = 0
    return regions
