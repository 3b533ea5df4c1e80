"""The dense sampling matrix of BCNet and BMN, computed as in BCNet's public release."""

from __future__ import annotations

import math

import numpy as np


def sampling_weights(anchors: np.ndarray, window: int, bins: int, points_per_bin: int) -> np.ndarray:
    """Compute the weights that sample N bins per anchor from T snippets, float32 [T, N, P].

    anchors: [P, 2] start and end in snippets
    window: T
    bins: N

    An anchor has N * points_per_bin points, evenly spaced from its start to its end, both included. A point between
    two snippets is interpolated linearly, a point outside [0, T-1] is dropped, and a bin is the mean of its points
    (paper, section 3.3, after BMN). Just before snippet 0 the fraction is negative, and snippet 0 counts in full.
    Operations in float64 have the order of the public code, so the rounded weights equal its checkpoints' bit for bit.
    """
    count = bins * points_per_bin
    start, end = anchors[:, :1].astype(np.float64), anchors[:, 1:].astype(np.float64)
    points = start + (end - start) / max(count - 1.0, 1.0) * np.arange(count)  # [P, N * points_per_bin]
    fraction, lower = np.modf(points)
    lower = lower.astype(np.int64)
    anchor_index, bin_index = np.indices(points.shape)
    bin_index //= points_per_bin

    shape = (window, bins, len(anchors))
    snippet = np.stack([lower, np.ceil(points).astype(np.int64)])
    weight = np.stack([1.0 - fraction, fraction])
    inside = (snippet >= 0) & (snippet < window)
    cell = (snippet * bins + bin_index) * len(anchors) + anchor_index
    weights = np.bincount(cell[inside], weight[inside], minlength=math.prod(shape)).reshape(shape)
    return (1.0 / points_per_bin * weights).astype(np.float32)
