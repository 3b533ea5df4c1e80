"""Sampling plans of each kind, at odd sizes."""

from __future__ import annotations

import numpy as np

from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import bmn_intervals, gtad_regions
from bcnet_fast.ops.sampling_plan import aligned_plan, interpolated_plan

PLANS = {
    "bcnet": lambda: interpolated_plan(make_anchors(61, 30), 61, 5, 3),
    "bmn": lambda: interpolated_plan(bmn_intervals(23), 23, 4, 3),
    "gtad": lambda: aligned_plan(gtad_regions(37, 11), 37, (5, 3)),
    "gtad-unequal": lambda: aligned_plan(gtad_regions(20, 20), 20, (6, 1)),
    "any": lambda: interpolated_plan(np.random.default_rng(0).uniform(-9, 30, (53, 2)), 19, 3, 2),
    "one": lambda: interpolated_plan(np.array([[0.0, 1.0]]), 1, 1, 1),
    "empty": lambda: interpolated_plan(np.full((9, 2), np.nan), 5, 2, 3),
}
