"""Where second-stage networks look: the frames around a proposal, and the rows of features that belong to them.

A window is a range of frames. P-GCN pools three of them for a proposal: before its start, itself, and after its end,
each extension half as long as the proposal. MUSES-Net pools one region that covers all three, in bins.
"""

from __future__ import annotations

import numpy as np

from ..config import FeatureRows


def relative_segments(segments: np.ndarray, frames: int) -> np.ndarray:
    """Segments [N, 2] in frames as fractions of the video, float64."""
    return np.asarray(segments, dtype=np.float64) / max(frames, 1)


def inference_ticks(segments: np.ndarray, frames: int) -> np.ndarray:
    """Frames at which the windows of proposals begin and end, for inference.

    Like the public code, it goes through fractions of the video and back, which loses a frame of some proposals.

    segments: [N, 2] in frames

    Returns int64 [N, 4]: start, end, start of the extension, end of the extension.
    """
    start, end = relative_segments(segments, frames).reshape(-1, 2).T
    length = end - start
    first, last = np.maximum(0, start - 0.5 * length), np.minimum(1, end + 0.5 * length)
    return np.trunc(np.stack([start, end, first, last], axis=1) * frames).astype(np.int64)


def training_ticks(segments: np.ndarray, frames: int) -> np.ndarray:
    """`inference_ticks` for training, where the public code counts frames from 1 and uses whole numbers throughout."""
    start, end = np.asarray(segments, dtype=np.int64).reshape(-1, 2).T
    start = start + 1
    half = (end - start + 1) // 2
    return np.stack([start, end, np.maximum(1, start - half), np.minimum(frames, end + half)], axis=1)


def pooled_rows(ticks: np.ndarray, frames: int, rows: int, layout: FeatureRows) -> np.ndarray:
    """Rows of features over which P-GCN takes maxima.

    A window at least two rows long never includes the last row of the video; a shorter one is its first row alone.

    ticks: int64 [N, 4], see `inference_ticks`
    rows: T, rows of features that there are

    Returns int64 [N, 3, 2]: first and last row of the windows before, inside and after the proposal.
    """
    ticks = np.asarray(ticks, dtype=np.int64).reshape(-1, 4)
    return window_rows(ticks[:, [[2, 0], [0, 1], [1, 3]]], frames, rows, layout)


def window_rows(windows: np.ndarray, frames: int, rows: int, layout: FeatureRows) -> np.ndarray:
    """First and last row [..., 2] of windows [..., 2] in frames, see `pooled_rows`."""
    start, end = np.moveaxis(np.asarray(windows, dtype=np.int64), -1, 0)
    if layout.rescaled:
        first, last = layout.rescaled * start // frames, -(-layout.rescaled * (end + 1) // frames)
    else:
        first, last = start // layout.stride, -((layout.clip - end) // layout.stride)
    first, last = np.minimum(rows - 1, first), np.minimum(rows - 2, last)
    return np.stack([first, np.maximum(first, last)], axis=-1)


def regions(ticks: np.ndarray) -> np.ndarray:
    """Regions of MUSES-Net in frames, int64 [N, 2], from ticks [N, 4]: extensions included, at least a frame long."""
    first, last = np.asarray(ticks, dtype=np.int64).reshape(-1, 4)[:, 2:].T
    return np.stack([first, np.maximum(last, first + 1)], axis=1)
