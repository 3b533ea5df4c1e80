"""Hard NMS and Soft-NMS as nms_1d_cpu defines them, one float32 operation after the other."""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np
import torch

ZERO, ONE, EPSILON = np.float32(0), np.float32(1), np.float32(1e-6)
_library = ctypes.util.find_library("m")
if _library:
    expf = ctypes.CDLL(_library).expf
    expf.argtypes, expf.restype = [ctypes.c_float], ctypes.c_float
else:
    expf = None


def tiou(a, b):
    """tIoU of two segments (start, end, area)."""
    left = b[0] if a[0] < b[0] else a[0]
    right = b[1] if b[1] < a[1] else a[1]
    inter = right - left if right - left > 0 else ZERO
    return inter / (a[2] + b[2] - inter)


def columns(segs: torch.Tensor) -> list[tuple[np.float32, ...]]:
    return [(start, end, end - start + EPSILON) for start, end in segs.numpy()]


def plain_nms(segs: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> list[int]:
    with np.errstate(all="ignore"):
        segments, threshold, kept = columns(segs), np.float32(iou_threshold), []
        for i in scores.sort(0, descending=True)[1].tolist():
            if not any(tiou(segments[k], segments[i]) >= threshold for k in kept):
                kept.append(i)
    return kept


def plain_softnms(
    segs: torch.Tensor, scores: torch.Tensor, iou_threshold, sigma, min_score, method, t1=0.0, t2=0.0
) -> tuple[list[int], list[list[float]]]:
    """Indices and rows of `dets`."""
    threshold, sigma, lowest, t1, t2 = (np.float32(x) for x in (iou_threshold, sigma, min_score, t1, t2))
    with np.errstate(all="ignore"):
        left = [
            [segment, score, i]
            for i, segment, score in zip(range(len(segs)), columns(segs), scores.numpy(), strict=True)
        ]
        picks = []
        while left:
            top = 0
            for j in range(1, len(left)):
                if left[top][1] < left[j][1]:
                    top = j
            # The first candidate and the pick trade places; a dropped one is replaced by the last.
            left[0], left[top] = left[top], left[0]
            pick, score, index = left.pop(0)
            picks.append((index, [pick[0], pick[1], score]))
            j = 0
            while j < len(left):
                overlap = tiou(pick, left[j][0])
                if method < 2:
                    factor = (ONE - overlap if method == 1 else ZERO) if overlap >= threshold else ONE
                else:
                    decays = method == 2 or overlap >= t1 + t2 * pick[2]
                    factor = np.float32(expf(-(overlap * overlap) / sigma)) if decays else ONE
                left[j][1] = left[j][1] * factor
                if left[j][1] < lowest:
                    last = left.pop()
                    if j < len(left):
                        left[j] = last
                else:
                    j += 1
    return [index for index, _ in picks], [row for _, row in picks]
