"""The definition of `ops.match_proposals` as a loop over pairs: the truth of its tests, and public practice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


def look_up(table: Sequence[Sequence[int]]) -> Callable[[int, int], int]:
    """The matching anchor of a pair from the table [T, D]."""
    return lambda start, end: table[start][end - start - 1]


def search(anchors: Sequence[Sequence[float]]) -> Callable[[int, int], int]:
    """The matching anchor of a pair as public code finds it: by the tIoU with all anchors, the first of the highest."""
    anchor_start, anchor_end = np.array(anchors, dtype=np.float64).T

    def matching(start: int, end: int) -> int:
        overlap = np.maximum(np.minimum(end, anchor_end) - np.maximum(start, anchor_start), 0.0)
        return int(np.argmax(overlap / (end - start + (anchor_end - anchor_start) - overlap)))

    return matching


def match_one_window(
    start: Sequence[float],
    end: Sequence[float],
    classification: Sequence[float],
    regression: Sequence[float],
    background: Sequence[float] | None,
    anchors: Sequence[Sequence[float]],
    matching: Callable[[int, int], int],
    durations: int,
    *,
    length: int | None = None,
    boundary_threshold: float = 0.7,
    min_classification: float = 0.9,
    min_regression: float = 0.8,
    max_snippets: float | None = None,
    clamp_boundaries: bool = False,
) -> list[tuple[int, int, float, float, float]]:
    """Rows (start snippet, end snippet, refined start, refined end, score), in order.

    `matching` is `look_up(table)` or `search(anchors)`; numbers are Python's, or float64 of NumPy.
    """
    snippets = len(start)
    length = snippets if length is None else length

    def candidates(values: Sequence[float]) -> list[bool]:
        padded = [-math.inf, *values, -math.inf]
        return [
            t < length and (padded[t + 1] >= boundary_threshold or padded[t] < padded[t + 1] > padded[t + 2])
            for t in range(snippets)
        ]

    is_start, is_end = candidates(start), candidates(end)
    first_snippets, last_end = list(range(snippets)), snippets - 1
    if clamp_boundaries:
        first_snippets = [min(max(s, 1), snippets - 2) for s in range(snippets)]
        last_end = snippets - 2
    rows = []
    for s in first_snippets:
        if not is_start[s]:
            continue
        for e in range(s + 1, min(s + durations, last_end) + 1):
            if not is_end[e]:
                continue
            m = matching(s, e)
            t0, t1 = float(s), float(e)
            if classification[m] > min_classification and regression[m] > min_regression:
                t0, t1 = (s + anchors[m][0]) / 2, (e + anchors[m][1]) / 2
            score = start[s] * end[e] * classification[m] * regression[m]
            if background is not None:
                score = score * (1 - background[m])
            if max_snippets is not None and t1 - t0 >= max_snippets:
                score = 0.0
            rows.append((s, e, t0, t1, score))
    return rows
