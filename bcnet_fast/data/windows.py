"""From a video's snippets to what the network sees at once: sliding windows, or the whole video rescaled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


def window_starts(snippets: int, window: int, stride: int, *, keep_tail: bool) -> list[int]:
    """First snippets of the windows that cover a video: 0, stride, ... while a whole window fits.

    A video shorter than a window gives [0] (`cut` pads it with zeros). Snippets that stay uncovered at the end get a
    last window, which ends with the video: any number of them with keep_tail, else only more than window // 5. The
    latter is what the public BCNet and G-TAD codes do on THUMOS14; up to 51 snippets (8.5 s) are never scored then.
    """
    starts = list(range(0, max(snippets - window, 0) + 1, stride))
    uncovered = snippets - (starts[-1] + window)
    if uncovered > (0 if keep_tail else window // 5):
        starts.append(snippets - window)
    return starts


def cut(features: np.ndarray, starts: Sequence[int], window: int) -> np.ndarray:
    """Cut windows out of features [T, C]; returns [W, C, window] float32, with zeros after the end of the video."""
    windows = np.zeros((len(starts), features.shape[1], window), np.float32)
    for out, start in zip(windows, starts, strict=True):
        part = features[start : start + window]
        out[:, : len(part)] = part.T
    return windows


def rescale(features: np.ndarray, snippets: int) -> np.ndarray:
    """Rescale a whole video from features [T, C] to [C, snippets] float32 by linear interpolation.

    Snippets are cells, not points: output i reads position (i + 0.5) * T / snippets - 0.5 between neighbouring rows,
    held at the first and the last row (`align_corners=False` of torch, as in G-TAD's ActivityNet code and in OpenTAD).
    No smoothing is done when shortening. With T == snippets the features come back unchanged.
    """
    rows = torch.from_numpy(np.ascontiguousarray(features.T, dtype=np.float32))
    return F.interpolate(rows[None], size=snippets, mode="linear", align_corners=False)[0].numpy()
