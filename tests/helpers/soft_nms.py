"""Candidates for Soft-NMS, and options with which it is called."""

from __future__ import annotations

import numpy as np
import torch

SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 200)
OPTIONS = (
    {},
    {"sigma": 0.46, "min_score": 0.05, "iou_threshold": 0.1},
    {"sigma": 0.004, "iou_threshold": (0.1, 0.3), "length_epsilon": 0.0},
    {"sigma": 3.0, "min_score": -1.0, "max_proposals": 5, "length_epsilon": 0.5},
    {"iou_threshold": 0.5, "min_score": 0.2, "max_proposals": 0},
    {"iou_threshold": (0.9, -0.2), "min_score": 0.001, "max_proposals": 20},
)
# Arguments of the bindings.
NATIVE_OPTIONS = {
    "method": 0,
    "sigma": 0.5,
    "threshold_low": 0.0,
    "threshold_high": 0.0,
    "min_score": 0.001,
    "max_proposals": -1,
    "length_epsilon": 0.0,
}


def random_sets(rng: np.random.Generator, dtype: torch.dtype, grid: bool, count: int = 120):
    """Many sets, some empty. On the grid nearly everything is tied: scores, starts, ends, lengths of zero."""
    sizes = rng.choice(SIZES, count)
    n = sizes.sum()
    if grid:
        start, length = rng.integers(-4, 12, n) / 2, rng.choice([0, 0, 1, 1, 2, 3, 10], n)
        scores = rng.choice([-0.5, 0.0, 0.125, 0.25, 0.25, 0.5, 1.0], n)
    else:
        start, length, scores = rng.uniform(-20, 20, n), rng.exponential(8, n), rng.uniform(-0.1, 1, n)
        again = rng.integers(0, max(n, 1), n // 10)
        start[again[::2]], length[again[::2]], scores[again[::2]] = start[again[0]], length[again[0]], scores[again[0]]
    segments = torch.from_numpy(np.stack([start, start + length], 1)).to(dtype)
    offsets = torch.from_numpy(np.concatenate([[0], sizes.cumsum()]))
    return segments, torch.from_numpy(scores).to(dtype), offsets


def good() -> dict[str, torch.Tensor]:
    """Arguments of a call that is fine."""
    return {"segments": torch.tensor([[0, 2], [1, 3.0]]), "scores": torch.tensor([0.5, 0.4])}
