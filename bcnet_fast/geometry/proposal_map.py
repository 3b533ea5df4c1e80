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
from ..ops.sampling_plan import SamplingPlan, aligned_plan, bmn_intervals, gtad_regions, interpolated_plan

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
    `sampling.bmn_intervals` with "start_end", `sampling.gtad_regions` with "duration_start".
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
