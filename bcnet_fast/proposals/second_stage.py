"""Labelled detections from the scores of second-stage networks: fusion of streams, suppression, regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import DetectionConfig, RegressionStats
from ..networks.outputs import SecondStageOutput


@dataclass(frozen=True)
class StreamScores:
    """Scores of N proposals by one stream (RGB or optical flow) or by several, float64.

    activity: [N, K + 1] logits, background first
    completeness: [N, K]
    regression: [N, K, 2], move of the centre in lengths of the proposal, logarithm of the length's factor
    """

    activity: np.ndarray
    completeness: np.ndarray
    regression: np.ndarray


@dataclass(frozen=True)
class Detections:
    """M detections of one video, class after class, best first in each.

    classes: [M] int64, from 0
    segments: [M, 2] float64, start and end as fractions of the video
    scores: [M] float64
    """

    classes: np.ndarray
    segments: np.ndarray
    scores: np.ndarray


def stream_scores(output: SecondStageOutput, stats: RegressionStats | None) -> StreamScores:
    """Scores of a network, its regression in units of `stats` undone. ValueError: the stats are unknown."""
    if stats is None:
        raise ValueError(
            "the checkpoint has no statistics of the regression (reg_stats), expected those of the training"
        )
    activity, completeness, regression = (
        scores.detach().cpu().double().numpy() for scores in (output.activity, output.completeness, output.regression)
    )
    return StreamScores(activity, completeness, regression * stats.std + stats.mean)


def fuse_streams(streams: Sequence[StreamScores], weights: Sequence[float]) -> StreamScores:
    """Weighted mean of raw scores. The public codes weigh flow 1.2 times as much as RGB.

    ValueError: streams of other shapes, or weights that are no share of a positive sum.
    """
    total = sum(weights)
    if len(streams) != len(weights) or not total > 0 or min(weights) < 0:
        raise ValueError(f"weights is {list(weights)}, expected {len(streams)} numbers of a positive sum")
    fused = {}
    for name in vars(streams[0]):
        columns = [getattr(stream, name) for stream in streams]
        if len({column.shape for column in columns}) > 1:
            raise ValueError(f"{name} has shapes {[list(c.shape) for c in columns]}, expected one for all streams")
        fused[name] = sum(weight * column for weight, column in zip(weights, columns, strict=True)) / total
    return StreamScores(**fused)


def detect(
    scores: StreamScores,
    segments: np.ndarray,
    settings: DetectionConfig,
    *,
    regress: bool = True,
    class_weights: np.ndarray | None = None,
) -> Detections:
    """Detections of one video.

    A pair of proposal and class scores softmax(activity) exp(completeness). The best `settings.top` pairs of the video
    are kept. In each class, a pair falls whose IoU with a better one exceeds `settings.nms_threshold`. The regression
    is applied last, to the segments that are left, and cut to the video.

    segments: [N, 2] as fractions of the video, `geometry.proposal_windows.relative_segments`
    regress: whether the regression is applied
    class_weights: [K], factors of the scores, such as those of a classifier of whole videos
    """
    segments = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
    combined = _softmax(scores.activity)[:, 1:] * np.exp(scores.completeness)
    if class_weights is not None:
        combined = combined * class_weights
    best = np.argsort(-combined, axis=None, kind="stable")[: settings.top]
    proposal, label = np.divmod(best, combined.shape[1])
    kept = []
    for code in np.unique(label):
        of_class = proposal[label == code]
        kept.append(of_class[_suppress(segments[of_class], settings.nms_threshold)])
    classes = np.repeat(np.unique(label), [len(rows) for rows in kept])
    rows = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
    found = segments[rows]
    if regress:
        found = _regressed(found, scores.regression[rows, classes])
    return Detections(classes, found, combined[rows, classes])


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _suppress(segments: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy suppression of segments [n, 2], best first: the indices of those that stay."""
    start, end = segments.T
    length, left, kept = end - start, np.arange(len(segments)), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        overlap = np.minimum(end[left], end[best]) - np.maximum(start[left], start[best])
        union = length[left] + length[best] - overlap
        # Multiplied instead of divided: two empty segments at one place would give 0 / 0. The second one is dropped.
        left = left[(overlap <= threshold * union) & (union != 0)]
    return np.array(kept, dtype=np.int64)


def _regressed(segments: np.ndarray, regression: np.ndarray) -> np.ndarray:
    start, end = segments.T
    move, factor = regression.T
    centre, half = (start + end) / 2 + (end - start) * move, (end - start) * np.exp(factor) / 2
    return np.clip(np.stack([centre - half, centre + half], axis=1), 0, 1)
