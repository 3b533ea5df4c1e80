"""Mean average precision of labelled detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.annotations import VideoAnnotation
from ..results.reader import Results
from .ground_truth import Truth, missing_videos, unknown_videos
from .matching import by_preference, count_ties, first_come_pairs, overlapping_pairs, ranking


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Result of `mean_average_precision`; C classes of the ground truth, T thresholds."""

    tiou_thresholds: np.ndarray  # [T]
    labels: tuple[str, ...]  # [C]
    average_precision: np.ndarray  # [C, T]
    videos: int  # with instances
    instances: int
    detections: int  # used, so without the unknown labels
    unknown_labels: dict[str, int]  # label that no instance has -> detections set aside
    videos_without_proposals: tuple[str, ...]  # all their instances are missed
    videos_without_ground_truth: tuple[str, ...]  # their detections are false positives
    tied_detections: int  # with the score of another one of the same class

    @property
    def mean(self) -> np.ndarray:
        """mAP [T] at each threshold, between 0 and 1."""
        return self.average_precision.mean(axis=0)

    @property
    def average(self) -> float:
        """The mean of mAP over the thresholds."""
        return float(self.mean.mean())


def mean_average_precision(
    ground_truth: Mapping[str, VideoAnnotation],
    detections: Results | Mapping[str, Any],
    *,
    tiou_thresholds: Sequence[float],
) -> MeanAveragePrecision:
    """Interpolated average precision of labelled detections for every class and tIoU threshold.

    Detections come by descending score. Each takes the free instance of its class and video with the highest tIoU,
    unless that is below the threshold. `detections` may also be what `Results.from_dict` takes. ValueError without any
    instance or without labels.
    """
    results = detections if isinstance(detections, Results) else Results.from_dict(detections)
    if results.label is None and len(results.scores):
        raise ValueError("detections has no labels, which mAP requires; bcnet_fast.results.fusion.fuse adds them")
    truth = Truth.of(ground_truth)
    thresholds = np.asarray(tiou_thresholds, dtype=np.float64)
    n_classes = len(truth.label_names)

    code_of = {name: code for code, name in enumerate(truth.label_names)}
    codes = np.array([code_of.get(name, -1) for name in results.label_names], dtype=np.int64)
    detected = np.zeros(0, dtype=np.int64) if results.label is None else results.label
    label = codes[detected]
    known = label >= 0
    counts = np.bincount(detected, minlength=len(codes))
    unknown = {name: int(n) for name, code, n in zip(results.label_names, codes, counts, strict=True) if code < 0}

    order, rank = ranking(results.scores[known], label[known])
    order = np.flatnonzero(known)[order]
    label = label[order]
    video = truth.index_of_videos(results)[order]
    group = np.where(video < 0, -1, video * n_classes + label)
    true_positive = np.zeros((len(thresholds), len(order)), dtype=bool)
    truth_group = truth.video * n_classes + truth.label
    free = np.ones((len(thresholds), len(truth_group)), dtype=bool)
    for row, instance, tiou in overlapping_pairs(group, results.segments[order], truth_group, truth.segments):
        tiou[np.isnan(tiou)] = np.inf
        preferred = by_preference(row, tiou)
        preferred = preferred[tiou[preferred] >= thresholds.min()]
        row, instance, tiou = row[preferred], instance[preferred], tiou[preferred]
        for positives, left, threshold in zip(true_positive, free, thresholds, strict=True):
            enough = tiou >= threshold
            near = row[enough]
            positives[near[first_come_pairs(near, instance[enough], left)]] = True

    positives_of_class = np.bincount(truth.label, minlength=n_classes)
    first = np.searchsorted(label, np.arange(n_classes + 1))
    precision = np.zeros((n_classes, len(thresholds)))
    for code in range(n_classes):
        of_class = slice(first[code], first[code + 1])
        for column, positives in enumerate(true_positive[:, of_class]):
            ranks = rank[of_class][positives]
            precision[code, column] = _interpolated_precision(ranks, positives_of_class[code])

    return MeanAveragePrecision(
        tiou_thresholds=thresholds,
        labels=truth.label_names,
        average_precision=precision,
        videos=len(truth.video_names),
        instances=len(truth.video),
        detections=len(order),
        unknown_labels=unknown,
        videos_without_proposals=missing_videos(results, truth),
        videos_without_ground_truth=unknown_videos(results, truth),
        tied_detections=count_ties(label, results.scores[order]),
    )


def _interpolated_precision(ranks: np.ndarray, n_positives: int) -> float:
    """Average precision over all recall points, from the ranks [k] (from 0) of the true positives."""
    found = np.arange(1, len(ranks) + 1)
    # Between two true positives precision only falls, so its envelope needs the true positives alone.
    envelope = np.maximum.accumulate((found / (ranks + 1.0))[::-1])[::-1]
    return float(np.sum(np.diff(found / n_positives, prepend=0.0) * envelope))
