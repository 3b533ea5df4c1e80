"""Shared by the evaluators of ActionFormer, TriDet and OpenTAD: files, ground truth, and numbers for each class."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.annotations import Instance, VideoAnnotation
from ..errors import InputError
from ..evaluation.ground_truth import Truth
from ..evaluation.matching import overlapping_pairs, ranking
from ..evaluation.mean_average_precision import mean_average_precision
from ..results.reader import Results
from ..storage.files import parse_json, read_text


def read_json_key(path: str | os.PathLike, key: str) -> dict[str, Any]:
    """The object {video: ...} under a key of a JSON file. A repeated video keeps the last entry, as in `json.load`."""
    expected = f'JSON, {{"{key}": {{video: ...}}}}'
    content = parse_json(read_text(path, expected), path, expected, unique_keys=False)
    return object_under(content, key, str(path))


def object_under(content: Any, key: str, source: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        found = f"the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else type(content).__name__
        raise InputError(f'{source} has {found}, expected {{"{key}": {{video: ...}}}}')
    return content[key]


def read_entries(entries: Any, keys: Sequence[str], where: str) -> list[tuple[float, float, Any]]:
    """(start, end, entry) of the entries of a video, each of which needs a segment and `keys`."""
    try:
        read = [(float(entry["segment"][0]), float(entry["segment"][1]), entry) for entry in entries]
        missing = next((key for *_, entry in read for key in keys if key not in entry), None)
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{where}: an entry without a segment of two numbers ({error!r}), expected one in each"
        ) from None
    if missing is not None:
        raise InputError(f"{where}: an entry has no {missing}, expected one in each")
    return read


def without_repeats(
    annotations: Sequence[tuple[float, float, Any]], key: str, long_enough: Callable[[float], bool]
) -> list[tuple[float, float, Any]]:
    """Annotations that are long enough and do not repeat an earlier one of the same `key` within a millisecond."""
    kept: list[tuple[float, float, Any]] = []
    for start, end, entry in annotations:
        repeats = any(
            abs(start - s) <= 1e-3 and abs(end - e) <= 1e-3 and entry[key] == other[key] for s, e, other in kept
        )
        if long_enough(end - start) and not repeats:
            kept.append((start, end, entry))
    return kept


@dataclass(frozen=True)
class ClassGroundTruth:
    """Instances of the classes 0 to C - 1 by video, in file order."""

    videos: dict[str, VideoAnnotation]
    instances: int

    @staticmethod
    def of(instances: dict[str, list[tuple[float, float, int]]], source: str) -> ClassGroundTruth:
        """Build from (start, end, class) of the instances of each video. InputError: there is none; names `source`."""
        count = sum(map(len, instances.values()))
        if not count:
            raise InputError(f"{source}: no instance, expected at least one")
        videos = {
            name: VideoAnnotation(name, instances=tuple(Instance(start, end, str(code)) for start, end, code in found))
            for name, found in instances.items()
        }
        return ClassGroundTruth(videos, count)


def columns(
    video_names: Sequence[str],
    segments: Sequence[Sequence[float]] | np.ndarray,
    scores: Sequence[float],
    classes: Sequence[int],
) -> Results:
    """Detections with a class number as label. Values are not checked: the public evaluators take any number."""
    names: dict[str, int] = {}
    labels: dict[str, int] = {}
    video = np.array([names.setdefault(name, len(names)) for name in video_names], dtype=np.int64)
    label = np.array([labels.setdefault(str(code), len(labels)) for code in classes], dtype=np.int64)
    shaped = np.asarray(segments, dtype=np.float64).reshape(len(video), 2)
    return Results(tuple(names), video, shaped, np.asarray(scores, dtype=np.float64), tuple(labels), label)


def average_precision(
    truth: ClassGroundTruth, detections: Results, thresholds: Sequence[float] | np.ndarray, n_classes: int
) -> np.ndarray:
    """AP [T, C], 0 for a class without instances."""
    found = mean_average_precision(truth.videos, detections, tiou_thresholds=np.asarray(thresholds).tolist())
    precision = np.zeros((len(thresholds), n_classes))
    precision[:, [int(label) for label in found.labels]] = found.average_precision.T
    return precision


def top_k_recall(
    truth: ClassGroundTruth,
    detections: Results,
    thresholds: Sequence[float] | np.ndarray,
    top_k: Sequence[int],
    n_classes: int,
) -> np.ndarray:
    """Recall [T, K, C] of the best k x detections of each video and class, where x is the number of its instances."""
    instances = Truth.of(truth.videos)
    classes = np.array([int(name) for name in instances.label_names])[instances.label]
    code_of = {str(code): code for code in range(n_classes)}
    labels = np.array([code_of.get(name, -1) for name in detections.label_names], dtype=np.int64)
    video = instances.index_of_videos(detections)
    label = labels[detections.label] if len(detections.scores) else video
    usable = (video >= 0) & (label >= 0)
    group = np.where(usable, video * n_classes + label, -1)
    truth_group = instances.video * n_classes + classes

    order, rank = ranking(detections.scores, group)
    order, rank = order[group[order] >= 0], rank[group[order] >= 0]
    # First rank that finds each instance, at each threshold; no rank is as large as `never`.
    never = len(detections.scores)
    first_rank = np.full((len(thresholds), len(truth_group)), never)
    pairs = overlapping_pairs(group[order], detections.segments[order], truth_group, instances.segments)
    for row, instance, tiou in pairs:
        for found, threshold in zip(first_rank, thresholds, strict=True):
            hit = tiou >= threshold
            np.minimum.at(found, instance[hit], rank[row[hit]])

    _, position, of_group = np.unique(truth_group, return_inverse=True, return_counts=True)
    taken = of_group[position]
    of_class = np.bincount(classes, minlength=n_classes)
    recall = np.zeros((len(thresholds), len(top_k), n_classes))
    for ranks, of_threshold in zip(first_rank, recall, strict=True):
        for k, of_k in zip(top_k, of_threshold, strict=True):
            hits = np.bincount(classes[ranks < np.minimum(k * taken, never)], minlength=n_classes)
            of_k[:] = hits / np.maximum(of_class, 1)
    return recall
