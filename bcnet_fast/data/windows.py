"""Windows of a video: sliding windows, or the whole video rescaled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


def window_starts(snippets: int, window: int, stride: int, *, keep_tail: bool) -> list[int]:
    """First snippets of the windows of a video: 0, stride, ... while a whole window fits.

    A video shorter than a window gives [0], and `cut` pads it with zeros. Snippets left over at the end get one more
    window that ends with the video: always with keep_tail, else only if there are more than window // 5. The latter is
    what the public BCNet and G-TAD codes do on THUMOS14, where up to 51 snippets (8.5 s) are then never scored.
    """
    starts = list(range(0, max(snippets - window, 0) + 1, stride))
    uncovered = snippets - (starts[-1] + window)
    if uncovered > (0 if keep_tail else window // 5):
        starts.append(snippets - window)
    return starts


def cut(features: np.ndarray, starts: Sequence[int], window: int) -> np.ndarray:
    """Cut features [T, C] into windows [W, C, window] float32, zero after the end of the video."""
    windows = np.zeros((len(starts), features.shape[1], window), np.float32)
    for out, start in zip(windows, starts, strict=True):
        part = features[start : start + window]
        out[:, : len(part)] = part.T
    return windows


def rescale(features: np.ndarray, snippets: int) -> np.ndarray:
    """Rescale features [T, C] of a whole video to [C, snippets] float32 by linear interpolation.

    Snippets are cells, not points: output i reads position (i + 0.5) * T / snippets - 0.5, clamped to the first and
    last row (`align_corners=False` of torch, as in the ActivityNet code of G-TAD and in OpenTAD). No antialiasing.
    """
    rows = torch.from_numpy(np.ascontiguousarray(features.T, dtype=np.float32))
    return F.interpolate(rows[None], size=snippets, mode="linear", align_corners=False)[0].numpy()
