"""Temporal intersection over union of segments."""

from __future__ import annotations

import numpy as np


def pairwise_tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """tIoU of segments [n, 2] with segments [n, 2], in the public order of operations; NaN for two of no length."""
    inter = np.maximum(np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]), 0.0)
    with np.errstate(invalid="ignore"):
        return inter / ((b[:, 1] - b[:, 0]) + (a[:, 1] - a[:, 0]) - inter)
