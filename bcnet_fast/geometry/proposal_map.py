"""The proposal maps of BMN and G-TAD: a cell for every pair of boundaries, and the interval that is sampled for it.

A map is [rows, columns] in one of two layouts, where both snippets of a pair are included:

    layout           used by                                 shape    cell
    start_end        BMN's public release                    [T, T]   [s, e]: snippets s to e
    duration_start   G-TAD, and BMN in mmaction2, OpenTAD    [D, T]   [d, s]: snippets s to s + d

Cells that end before they start, reach beyond the window or are longer than D are not valid: they are no proposals.
Networks compute them all the same, and convolutions over the map read them.
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
    """The interval of each cell.

    start, end: [rows, columns] int64 in snippets, half open
    valid: [rows, columns] bool, whether the cell is a proposal
    """

    start: np.ndarray
    end: np.ndarray
    valid: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.valid.shape
        return rows, columns


def layout_of(config: MapConfig) -> str:
    """The layout of a network's map: "start_end" or "duration_start"."""
    return config.map_layout if isinstance(config, BMNConfig) else "duration_start"


@functools.lru_cache(maxsize=16)
def proposal_map(config: MapConfig) -> ProposalMap:
    """Build the map of a network."""
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
    """The interval that is sampled for each cell, float64 [rows * columns, 2] in snippets.

    Both systems extend an interval by `ratio` of its length on both sides, by the rule of the layout: `bmn_intervals`
    for "start_end", `gtad_regions` for "duration_start". Where BMN samples nothing, intervals are NaN.
    """
    if layout_of(config) == "start_end":
        intervals = bmn_intervals(config.window, ratio)
    else:
        intervals = gtad_regions(config.window, config.max_duration, ratio)
    if isinstance(config, BMNConfig):
        intervals[~proposal_map(config).valid.ravel()] = np.nan
    return intervals


def sampled_cells(valid: np.ndarray) -> np.ndarray:
    """Numbers row * columns + column of the valid cells, in order, then of the first other cell, if there is one.

    The last cell stands for all other cells, which sample the same: nothing in BMN, one region in G-TAD.
    """
    valid = valid.ravel()
    return np.concatenate([np.flatnonzero(valid), np.flatnonzero(~valid)[:1]])


def sampling_plan(config: MapConfig, cells: np.ndarray, dtype: torch.dtype = torch.float32) -> SamplingPlan:
    """Plan the sampling of some cells, named by their numbers row * columns + column."""
    intervals = sampled_intervals(config)[cells]
    if isinstance(config, BMNConfig):
        return interpolated_plan(intervals, config.window, config.bins, config.points_per_bin, dtype)
    return aligned_plan(intervals, config.window, (config.inner_bins, config.context_bins), dtype=dtype)


def bmn_intervals(length: int, ratio: float = 0.5) -> np.ndarray:
    """The intervals that BMN samples for the cells (start, end) of its map, float64 [T * T, 2]; NaN where end < start.

    The snippets s to e, both included, have the length L = e - s + 1. `ratio * (L + 1)` is added on both sides.
    """
    start, end = np.indices((length, length)).reshape(2, -1).astype(np.float64)
    extent = end - start + 2
    intervals = np.stack([start - extent * ratio, end + 1 + extent * ratio], axis=1)
    intervals[end < start] = np.nan
    return intervals


def gtad_regions(length: int, max_duration: int, ratio: float = 0.5) -> np.ndarray:
    """The regions that G-TAD samples for the cells (d, start) of its map, float64 [D * T, 2].

    `ratio * (d + 1)` is added on both sides of [s, s + d]. Cells that reach beyond the sequence get the region [0, 0]:
    they are not empty, but equal.
    """
    duration, start = np.indices((max_duration, length)).reshape(2, -1).astype(np.float64)
    extension = (duration + 1) * ratio
    regions = np.stack([start - extension, start + duration + extension], axis=1)
    regions[start + duration >= length] = 0
    return regions
