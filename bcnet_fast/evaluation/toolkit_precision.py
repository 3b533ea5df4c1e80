"""Mean average precision as the toolkit of the THUMOS'14 challenge (TH14evalkit) defines it.

Systems before 2019 report it. It differs from ActivityNet's metric in the direction of matching, in the detections that
it ignores, and in the average:

* Within a class and a video, instances choose detections. In file order, each takes the free detection with the largest
  overlap, if that is above the threshold. Ties go to the higher score.
* A free detection that overlaps an `Ambiguous` interval of its video is ignored. Every other free one is wrong, in
  videos without instances too.
* Average precision is the sum of precision times the step in recall. Right detections come first among equal scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..data.annotations import VideoAnnotation
from ..results.reader import Results
from .ground_truth import Truth, missing_videos, unknown_videos, with_ambiguous
from .matching import count_ties, first_come_pairs, overlapping_pairs
from .mean_average_precision import MeanAveragePrecision


def toolkit_precision(
    ground_truth: Mapping[str, VideoAnnotation],
    detections: Results | Mapping[str, Any],
    *,
    tiou_thresholds: Sequence[float],
) -> MeanAveragePrecision:
    """Average precision of the THUMOS'14 toolkit for every class and tIoU threshold.

    The ambiguous intervals are those of `VideoAnnotation.ambiguous` and the instances labelled `Ambiguous`.
    `detections` may also be what `Results.from_dict` takes. ValueError without any instance or without labels.
    """
    results = detections if isinstance(detections, Results) else Results.from_dict(detections)
    if results.label is None and len(results.scores):
        raise ValueError("detections has no labels, which mAP requires; bcnet_fast.results.fusion.fuse adds them")
    videos = with_ambiguous(ground_truth)
    truth = Truth.of(videos)
    thresholds = np.asarray(tiou_thresholds, dtype=np.float64)
    n_classes = len(truth.label_names)

    detected = np.zeros(0, dtype=np.int64) if results.label is None else results.label
    code_of = {name: code for code, name in enumerate(truth.label_names)}
    codes = np.array([code_of.get(name, -1) for name in results.label_names], dtype=np.int64)
    counts = np.bincount(detected, minlength=len(codes))
    unknown = {name: int(n) for name, code, n in zip(results.label_names, codes, counts, strict=True) if code < 0}

    known = np.flatnonzero(codes[detected] >= 0)
    # Sorted by class, then best score first; equal scores stay in file order.
    order = known[np.lexsort((-results.scores[known], codes[detected[known]]))]
    label, video = codes[detected[order]], results.video[order]
    segments, scores = results.segments[order], results.scores[order]
    place = {name: number for number, name in enumerate(results.video_names)}

    taken = np.zeros((len(thresholds), len(order)), dtype=bool)
    truth_video = np.array([place.get(name, -1) for name in truth.video_names], dtype=np.int64)[truth.video]
    truth_group = np.where(truth_video < 0, -1, truth_video * n_classes + truth.label)
    free = np.ones(taken.shape, dtype=bool)
    for instance, detection, overlap in overlapping_pairs(
        truth_group, truth.segments, video * n_classes + label, segments, _span_overlap
    ):
        near = np.flatnonzero(overlap > thresholds.min())
        preferred = near[np.lexsort((detection[near], -overlap[near], instance[near]))]
        instance, detection, overlap = instance[preferred], detection[preferred], overlap[preferred]
        for of_threshold, left, threshold in zip(taken, free, thresholds, strict=True):
            above = overlap > threshold
            chosen = detection[above]
            of_threshold[chosen[first_come_pairs(instance[above], chosen, left)]] = True

    intervals = [
        (place[name], *one) for name, of_video in videos.items() if name in place for one in of_video.ambiguous
    ]
    columns = np.array(intervals, dtype=np.float64).reshape(-1, 3)
    ambiguous = np.zeros(len(order), dtype=bool)
    for _, detection, overlap in overlapping_pairs(
        columns[:, 0].astype(np.int64), columns[:, 1:], video, segments, _span_overlap
    ):
        ambiguous[detection[overlap > 0.0]] = True

    positives = np.bincount(truth.label, minlength=n_classes)
    precision = [_average_precision(label, scores, one, ~ambiguous, positives) for one in taken]
    return MeanAveragePrecision(
        tiou_thresholds=thresholds,
        labels=truth.label_names,
        average_precision=np.array(precision).reshape(len(thresholds), n_classes).T,
        videos=len(truth.video_names),
        instances=len(truth.video),
        detections=len(order),
        unknown_labels=unknown,
        videos_without_proposals=missing_videos(results, truth),
        videos_without_ground_truth=unknown_videos(results, truth),
        tied_detections=count_ties(label, scores),
    )


def _span_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection by the span of both segments, in the toolkit's order of operations; 0 where they only touch."""
    inter = np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0])
    span = np.maximum(a[:, 1], b[:, 1]) - np.minimum(a[:, 0], b[:, 0])
    return np.where(inter > 0, inter, 0.0) / np.where(inter > 0, span, 1.0)


def _average_precision(
    label: np.ndarray, scores: np.ndarray, right: np.ndarray, counted: np.ndarray, positives: np.ndarray
) -> np.ndarray:
    """Average precision [C] of detections by class and descending score.

    right: detections that an instance has taken, [N].
    counted: detections that are wrong unless an instance has taken them, [N].
    positives: instances of each class, [C].
    """
    new_class = np.append(True, label[1:] != label[:-1])[: len(label)]
    new_score = new_class | np.append(True, scores[1:] != scores[:-1])[: len(label)]
    every = np.arange(len(label))
    class_start = np.maximum.accumulate(np.where(new_class, every, 0))
    tie_start = np.maximum.accumulate(np.where(new_score, every, 0))
    found = np.append(0, np.cumsum(right))
    listed = np.append(0, np.cumsum(right | counted))
    hits = np.flatnonzero(right)
    of_class = found[hits + 1] - found[class_start[hits]]
    # All that have a higher score, and the right ones among the equal scores up to this one.
    rank = listed[tie_start[hits]] - listed[class_start[hits]] + found[hits + 1] - found[tie_start[hits]]
    return np.bincount(label[hits], weights=of_class / rank, minlength=len(positives)) / positives
