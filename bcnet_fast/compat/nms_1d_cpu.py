"""`nms_1d_cpu`, the extension of ActionFormer, TriDet, DyFADet and OpenTAD: same functions, arguments and results.

Tensors are float32 on the CPU. Both functions return what the compiled extension returns, with the same bits and in
the same order, for any input: NaN, segments of negative length, and equal scores too. The Gaussian is `expf` of the C
library, which the extension calls.

Without the native part, NumPy computes the same more slowly, and the last bit of a Gaussian may differ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

# Absolute, because bcnet_fast.compat.activate loads this file as a top-level module.
from bcnet_fast.ops import native
from bcnet_fast.ops.backends import choose, requested
from bcnet_fast.ops.refusals import name_of, refuse, refuse_shape

_EPSILON = np.float32(1e-6)
_CPU = torch.device("cpu")


class _Options(NamedTuple):
    method: int
    iou_threshold: float
    sigma: float
    min_score: float
    t1: float
    t2: float


def nms(segs: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Hard NMS: keep a segment unless its tIoU with a better one that is kept is `iou_threshold` or more.

    Args:
        segs: start and end, [n, 2] float32.
        scores: [n] float32.
        iou_threshold: 0 keeps the best segment only, because segments without overlap have a tIoU of 0.

    Returns: the indices of the kept segments, best first, [k] int64. Equal scores come in the order of `scores.sort`.
    """
    _check("nms", segs, scores)
    if segs.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    segments, threshold = _array(segs), float(iou_threshold)
    if _uses_native():
        # Only PyTorch knows how its sort orders equal scores.
        order = native.module.order_of_distinct(_array(scores))
        kept = native.module.nms_1d(segments, _sorted(scores) if order is None else order, threshold)
    else:
        kept = _nms(segments, _sorted(scores), np.float32(threshold))
    return torch.from_numpy(kept)


def softnms(
    segs: torch.Tensor,
    scores: torch.Tensor,
    dets: torch.Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    t1: float = 0.0,
    t2: float = 0.0,
) -> torch.Tensor:
    """Soft-NMS: pick the best segment, lower the scores of the others, and repeat.

    Args:
        segs: start and end, [n, 2] float32. It is not changed.
        scores: [n] float32. It is not changed.
        dets: [n, 3] float32, or more rows; the first k receive start, end and decayed score of the picks, in place.
        iou_threshold: tIoU from which methods 0 and 1 lower a score.
        sigma: width of the Gaussian of methods 2 and 3.
        min_score: a candidate below it after a pick is dropped. The first pick need not reach it.
        method: 0 sets the score to 0, 1 multiplies it by 1 - tIoU, 2 by exp(-tIoU^2 / sigma), 3 does so too, from the
            tIoU t1 + t2 * length of the pick.
        t1, t2: OpenTAD's arguments for method 3.

    Returns: the indices of the picks, in their order, [k] int64.

    Fast where scores are finite, lengths are not negative, and `min_score` (for method 0 also `iou_threshold`) is
    above 0; otherwise as slow as the extension.
    """
    _check("softnms", segs, scores, dets)
    if method not in (0, 1, 2, 3):
        raise ValueError(f"softnms: method is {method!r}, expected 0, 1, 2 or 3")
    if segs.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    rows = _array(dets)
    run = native.module.soft_nms_1d if _uses_native() else _soft_nms
    options = _Options(int(method), float(iou_threshold), float(sigma), float(min_score), float(t1), float(t2))
    indices = run(_array(segs), _array(scores), rows, options)
    if not dets.is_contiguous():
        dets.detach().numpy()[: len(indices)] = rows[: len(indices)]
    return torch.from_numpy(indices)


def _uses_native() -> bool:
    # The first test takes less time than `choose`, which matters for small sets, the most common case.
    return (native.module is not None and requested() == "auto") or choose("soft_nms", _CPU) == "native"


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's own memory, or a copy if it is not contiguous."""
    return (tensor.detach() if tensor.requires_grad else tensor).contiguous().numpy()


def _sorted(scores: torch.Tensor) -> np.ndarray:
    return scores.detach().sort(0, descending=True)[1].numpy()


def _check(function: str, segs: torch.Tensor, scores: torch.Tensor, dets: torch.Tensor | None = None) -> None:
    """Raise for a tensor of another kind or shape. Without elements, `segs` may have any shape, as in the extension."""
    for name, tensor in (("segs", segs), ("scores", scores), ("dets", scores if dets is None else dets)):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
            found = name_of(tensor.dtype) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            refuse(function, name, found, "a float32 tensor", TypeError)
        if not tensor.is_cpu:
            refuse(function, name, f"on {tensor.device}", "it on the CPU")
    if segs.numel() == 0:
        return
    if segs.dim() != 2 or segs.shape[1] != 2:
        refuse_shape(function, "segs", segs, "[n, 2]")
    n = len(segs)
    if scores.dim() != 1 or len(scores) != n:
        refuse_shape(function, "scores", scores, f"[{n}] to fit segs")
    if dets is not None and (dets.dim() != 2 or len(dets) < n or dets.shape[1] != 3):
        refuse_shape(function, "dets", dets, f"[{n}, 3] or more rows")


def _tiou(segment: np.ndarray, others: np.ndarray) -> np.ndarray:
    """tIoU of one segment (start, end, area) with columns of others, in the extension's order of operations."""
    start, end, area = segment
    inter = np.fmin(end, others[1]) - np.fmax(start, others[0])
    inter = np.where(inter > 0, inter, np.float32(0))
    return inter / ((area + others[2]) - inter)


def _nms(segments: np.ndarray, order: np.ndarray, threshold: np.float32) -> np.ndarray:
    start, end = segments[order].T
    left = np.ones(len(order), dtype=bool)
    with np.errstate(all="ignore"):
        columns = np.stack([start, end, (end - start) + _EPSILON])
        for i in range(len(order)):
            if left[i]:
                left[i + 1 :] &= ~(_tiou(columns[:, i], columns[:, i + 1 :]) >= threshold)
    return order[left]


def _soft_nms(segments: np.ndarray, scores: np.ndarray, rows: np.ndarray, options: _Options) -> np.ndarray:
    method = options.method
    threshold, width, lowest, low, slope = map(np.float32, options[1:])
    start, end = segments.T
    index, remaining, i = np.arange(len(scores)), len(scores), 0
    with np.errstate(all="ignore"):
        # Columns: start, end, area, score. The algorithm reorders them in place, and ties go by the order.
        table = np.stack([start, end, (end - start) + _EPSILON, scores])
        while i < remaining:
            top = i + _first_largest(table[3, i:remaining])
            table[:, [i, top]], index[[i, top]] = table[:, [top, i]], index[[top, i]]
            tiou = _tiou(table[:3, i], table[:3, i + 1 : remaining])
            if method < 2:
                factor = np.where(tiou >= threshold, 1 - tiou if method == 1 else 0, 1).astype(np.float32)
            else:
                # In double and rounded once: closest to the C library, whose error is at most 0.502 ulp.
                factor = np.exp((-(tiou * tiou) / width).astype(np.float64)).astype(np.float32)
                if method == 3:
                    factor = np.where(tiou >= low + slope * table[2, i], factor, np.float32(1))
            table[3, i + 1 : remaining] *= factor
            for position in i + 1 + np.flatnonzero(table[3, i + 1 : remaining] < lowest):
                # The last candidate takes the place of a dropped one, and may have to be dropped itself.
                while position < remaining and table[3, position] < lowest:
                    remaining -= 1
                    table[:, position], index[position] = table[:, remaining], index[remaining]
            i += 1
    rows[:remaining] = table[[0, 1, 3], :remaining].T
    return index[:remaining].copy()


def _first_largest(scores: np.ndarray) -> int:
    """Position of the first largest score. A NaN in the first place stays the largest, elsewhere it never is."""
    return 0 if np.isnan(scores[0]) else int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))
