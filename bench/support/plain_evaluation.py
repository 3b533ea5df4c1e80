"""AR@AN and mAP by their definitions, in loops over thresholds, videos and entries as public evaluators have them.

The reference of `bench/evaluation.py` and of the tests: simple enough to be checked by reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bcnet_fast.data.annotations import Instance, VideoAnnotation

Truth = Mapping[str, VideoAnnotation]
Entries = Mapping[str, Sequence[dict[str, Any]]]  # of each video: segment in seconds, score, label


def tiou_matrix(instances: Sequence[Instance], segments: Iterable[Sequence[float]]) -> np.ndarray:
    """tIoU [instances, segments], float64."""
    start, end = np.array(list(segments), dtype=np.float64).reshape(-1, 2).T
    rows = []
    for instance in instances:
        overlap = np.maximum(0.0, np.minimum(end, instance.end) - np.maximum(start, instance.start))
        rows.append(overlap / (end - start + instance.end - instance.start - overlap))
    return np.array(rows).reshape(len(instances), len(start))


def plain_recall(
    truth: Truth, results: Entries, thresholds: Sequence[float], max_proposals: int, points: int
) -> np.ndarray:
    """Recall [points], averaged over thresholds: every video keeps the same share of its own list."""
    videos = {name: video.instances for name, video in truth.items() if video.instances}
    share = max_proposals * len(videos) / sum(map(len, results.values()))
    matrices = []
    for name, instances in videos.items():
        ranked = sorted(results.get(name, []), key=lambda entry: -entry["score"])
        kept = ranked[: min(int(len(ranked) * share), len(ranked))]
        matrices.append(tiou_matrix(instances, (entry["segment"] for entry in kept)))
    total_kept = sum(matrix.shape[1] for matrix in matrices)
    shares = np.arange(1, points + 1) / points * (max_proposals * len(videos) / total_kept)
    found = np.zeros((len(thresholds), points))
    for row, threshold in zip(found, thresholds, strict=True):
        for matrix in matrices:
            hits = matrix >= threshold
            for point, part in enumerate(shares):
                row[point] += np.count_nonzero(hits[:, : int(hits.shape[1] * part)].any(axis=1))
    return found.mean(axis=0) / sum(map(len, videos.values()))


def plain_precision(truth: Truth, results: Entries, thresholds: Sequence[float]) -> dict[str, list[float]]:
    """Interpolated average precision of each label of the truth, one for each threshold.

    In order of score, a detection takes the free instance with the highest tIoU, unless that is below the threshold.
    """
    labels = sorted({instance.label for video in truth.values() for instance in video.instances})
    ranked = {label: [] for label in labels}
    for name, entries in results.items():
        for entry in entries:
            if entry["label"] in ranked:
                ranked[entry["label"]].append((entry["score"], name, entry["segment"]))
    precision = {}
    for label in labels:
        instances = {name: [one for one in video.instances if one.label == label] for name, video in truth.items()}
        positives = sum(map(len, instances.values()))
        taken = [{name: [False] * len(one) for name, one in instances.items()} for _ in thresholds]
        correct: list[list[float]] = [[] for _ in thresholds]  # precision at each detection that is right
        for rank, (_, name, segment) in enumerate(sorted(ranked[label], key=lambda entry: -entry[0]), 1):
            if not instances.get(name):
                continue
            tiou = tiou_matrix(instances[name], [segment])[:, 0]
            preferred = np.argsort(-tiou, kind="stable")
            for threshold, busy, right in zip(thresholds, taken, correct, strict=True):
                for index in preferred:
                    if tiou[index] < threshold:
                        break
                    if not busy[name][index]:
                        busy[name][index] = True
                        right.append((len(right) + 1) / rank)
                        break
        precision[label] = [sum(np.maximum.accumulate(right[::-1])) / positives for right in correct]
    return precision


def toolkit_overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection by the span of both segments; 0 where they only touch."""
    inter = min(one[1], other[1]) - max(one[0], other[0])
    return inter / (max(one[1], other[1]) - min(one[0], other[0])) if inter > 0 else 0.0


def plain_toolkit_precision(truth: Truth, results: Entries, thresholds: Sequence[float]) -> dict[str, list[float]]:
    """Average precision of the THUMOS'14 toolkit for each label of the truth, one for each threshold.

    Instances in turn take the free detection of the largest overlap, if that is above the threshold. Free detections
    that overlap an ambiguous interval are left out.
    """
    labels = sorted({instance.label for video in truth.values() for instance in video.instances})
    precision: dict[str, list[float]] = {}
    for label in labels:
        precision[label] = []
        for threshold in thresholds:
            right, wrong, positives = [], [], 0
            for name in [*truth, *(name for name in results if name not in truth)]:
                video = truth.get(name)
                instances = [one for one in video.instances if one.label == label] if video else []
                positives += len(instances)
                entries = [entry for entry in results.get(name, []) if entry["label"] == label]
                free = sorted(entries, key=lambda entry: -entry["score"])
                for instance in instances:
                    overlaps = [toolkit_overlap((instance.start, instance.end), entry["segment"]) for entry in free]
                    if overlaps and max(overlaps) > threshold:
                        right.append(free.pop(overlaps.index(max(overlaps)))["score"])
                for entry in free:
                    if not any(toolkit_overlap(one, entry["segment"]) for one in (video.ambiguous if video else ())):
                        wrong.append(entry["score"])
            ranked = sorted([(score, True) for score in right] + [(score, False) for score in wrong], reverse=True)
            found, area = 0, 0.0
            for rank, (_, is_right) in enumerate(ranked, 1):
                found += is_right
                area += is_right * found / rank / positives
            precision[label].append(area)
    return precision
