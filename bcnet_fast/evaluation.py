"""Average recall and mean average precision with the arithmetic of the public evaluators, vectorised.

Average recall at an average number of proposals (AR@AN) and the area under that curve (AUC) are those of the
ActivityNet proposal task (Escorcia et al., DAPs, ECCV 2016), which BSN, BMN, G-TAD and BCNet report; mean average
precision (mAP) is that of the ActivityNet detection task. What matters for equal numbers:

* AN is a share of every video's own list and not its first AN proposals. Of N proposals in the file (those of
  videos without ground truth included) and V videos with instances, each video keeps `int(n * ratio)` of its n,
  `ratio = AN_max * V / N`; point j of P takes `int(kept * share_j)` of them, `share_j = j / P * AN_max * V / all kept`.
* A tIoU equal to the threshold counts. A tIoU of 0 / 0 (two equal segments of no length) is a miss in AR and a true
  positive in mAP.
* Equal scores and equal tIoUs come in the order of a reversed introsort: the later one first, in lists of up to 16.
* Average precision interpolates at all points; a class without detections counts 0.

Where the public code stops with a KeyError, this one goes on and says so in its result: the instances of a video
without proposals are missed, detections of a class that the ground truth does not have are set aside.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data.annotations import VideoAnnotation
from .errors import InputError
from .storage.files import parse_json, read_text

# Pairs of segments that are compared at once: bounds the working memory to a few dozen MB.
_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class MetricSettings:
    """The numbers that a data set's evaluation is defined by."""

    subset: str
    recall_thresholds: tuple[float, ...]  # tIoU
    max_proposals: int  # AN of the last point of the recall curve, which has a point for every whole AN
    recall_at: tuple[int, ...]  # AN that papers print
    map_thresholds: tuple[float, ...]  # tIoU


# The recall thresholds are those of linspace to the last bit: 0.8500000000000001 on THUMOS14, 0.8999999999999999 on
# ActivityNet. Results depend on that where a tIoU equals a threshold.
METRICS: dict[str, MetricSettings] = {
    "thumos14": MetricSettings(
        subset="test",
        recall_thresholds=tuple(np.linspace(0.5, 1.0, 11).tolist()),
        max_proposals=1000,
        recall_at=(50, 100, 200, 500, 1000),
        map_thresholds=(0.3, 0.4, 0.5, 0.6, 0.7),
    ),
    "activitynet13": MetricSettings(
        subset="validation",
        recall_thresholds=tuple(np.linspace(0.5, 0.95, 10).tolist()),
        max_proposals=100,
        recall_at=(1, 5, 10, 100),
        map_thresholds=tuple(np.linspace(0.5, 0.95, 10).tolist()),
    ),
}


@dataclass(frozen=True)
class Results:
    """Proposals or detections of many videos in columns, in file order.

    `video` [N] and `label` [N] (None without labels) are int64 indices into the names; `segments` [N, 2] float64 are
    seconds; `scores` [N] are float64.
    """

    video_names: tuple[str, ...]
    video: np.ndarray
    segments: np.ndarray
    scores: np.ndarray
    label_names: tuple[str, ...] = ()
    label: np.ndarray | None = None

    @staticmethod
    def from_dict(results: Mapping[str, Any], source: str = "results") -> Results:
        """Build from {video: list of {"segment": [start, end], "score", "label"} or array [n, 3] (start, end, score)}.

        `label` is given for all entries or for none. InputError names `source`, the video and the entry that is no
        such object, has a NaN or infinite number, or ends before it starts.
        """
        lists = {name: _entries(entries, name, source) for name, entries in results.items()}
        video = np.repeat(np.arange(len(lists)), [len(entries) for entries in lists.values()])
        flat = [entry for entries in lists.values() for entry in entries]
        try:
            segments = np.array([entry["segment"] for entry in flat], dtype=np.float64).reshape(len(flat), 2)
            scores = np.array([entry["score"] for entry in flat], dtype=np.float64).reshape(len(flat))
            usable = np.isfinite(segments).all(1) & np.isfinite(scores) & (segments[:, 0] <= segments[:, 1])
        except (TypeError, KeyError, ValueError, OverflowError):
            usable = np.array([_is_usable(entry) for entry in flat])
        if not usable.all():
            wrong = int(np.argmin(usable))
            raise InputError(
                f"{source}: video {list(lists)[video[wrong]]!r}: expected a finite score and a segment of two finite "
                f"numbers in order, found {str(flat[wrong])[:120]}"
            )
        labelled = ["label" in entry for entry in flat]
        if not any(labelled):
            return Results(tuple(lists), video, segments, scores)
        if not all(labelled):
            name = list(lists)[video[labelled.index(False)]]
            raise InputError(f"{source}: expected a label in every entry or in none, found video {name!r} without one")
        codes: dict[str, int] = {}
        label = np.array([codes.setdefault(str(entry["label"]), len(codes)) for entry in flat])
        return Results(tuple(lists), video, segments, scores, tuple(codes), label)

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """The inverse of `from_dict`: the value of `results` in a submission file."""
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in self.video_names}
        columns = zip(self.video.tolist(), self.segments.tolist(), self.scores.tolist(), strict=True)
        for position, (video, segment, score) in enumerate(columns):
            entry = {"score": score, "segment": segment}
            if self.label is not None:
                entry["label"] = self.label_names[self.label[position]]
            results[self.video_names[video]].append(entry)
        return results


def _entries(entries: Any, name: str, source: str) -> list[Any]:
    if isinstance(entries, np.ndarray):
        if entries.ndim != 2 or entries.shape[1] != 3:
            raise InputError(f"{source}: video {name!r}: expected an array [n, 3], found {list(entries.shape)}")
        return [{"segment": row[:2], "score": row[2]} for row in entries.tolist()]
    if not isinstance(entries, list):
        raise InputError(f"{source}: video {name!r}: expected a list of proposals, found {str(entries)[:80]}")
    return entries


def _is_usable(entry: Any) -> bool:
    try:
        start, end = (float(time) for time in entry["segment"])
        return bool(np.isfinite([start, end, float(entry["score"])]).all()) and start <= end
    except (TypeError, KeyError, ValueError, OverflowError):
        return False


def read_results(path: str | os.PathLike) -> Results:
    """Read a submission JSON, {"results": {video: [{"score", "segment", "label"}]}}, plain or gzip.

    InputError: no such file, not this layout, no video, a video given twice, a wrong entry (`Results.from_dict`).
    """
    expected = 'proposals as JSON, {"results": {video: [{"score", "segment"}]}}'
    text = read_text(path, expected)
    content = parse_json(text, path, expected, unique_keys=False)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        found = f"the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: expected {expected}, found {found}")
    if not content["results"]:
        raise InputError(f"{path}: expected {expected}, found no video in it")
    results = Results.from_dict(content["results"], str(path))
    if text.count('"segment"') != len(results.scores):
        # Most likely a video that is there twice, of which JSON keeps the last: this says which.
        parse_json(text, path, expected)
    return results


@dataclass(frozen=True)
class AverageRecall:
    """What `average_recall` found; T thresholds, P curve points."""

    tiou_thresholds: np.ndarray  # [T]
    max_proposals: float
    recall: np.ndarray  # [T, P]
    average_recall: np.ndarray  # [P], mean over the thresholds
    proposals_per_video: np.ndarray  # [P], the AN of every point
    videos: int  # with instances
    instances: int
    proposals: int  # in the file
    videos_without_proposals: tuple[str, ...]  # all their instances are missed
    videos_without_ground_truth: tuple[str, ...]  # their proposals count in N
    tied_proposals: int  # with the score of another one of the same video

    @property
    def auc(self) -> float:
        """Area under the curve in percent of its last AN. The curve starts at its first point, so 99 is perfect."""
        widths, heights = np.diff(self.proposals_per_video), self.average_recall
        area = np.sum(widths * (heights[1:] + heights[:-1]) / 2.0)
        return float(100.0 * area / self.proposals_per_video[-1])

    def at(self, an: float) -> float:
        """AR@AN: the value of the curve point for `an` proposals a video, a number between 0 and 1."""
        point = round(an / self.max_proposals * len(self.average_recall))
        if not 1 <= point <= len(self.average_recall):
            raise ValueError(f"an: expected a number up to {self.max_proposals}, found {an}")
        return float(self.average_recall[point - 1])


def average_recall(
    ground_truth: Mapping[str, VideoAnnotation],
    proposals: Results | Mapping[str, Any],
    *,
    tiou_thresholds: Sequence[float],
    max_proposals: float,
    points: int | None = None,
) -> AverageRecall:
    """Recall of ranked proposals against their average number a video, averaged over tIoU thresholds.

    `proposals` may also be what `Results.from_dict` takes. Labels do not matter: an instance annotated under two
    classes counts twice. The curve ends at `max_proposals` a video on average and has `points` equally spaced points,
    by default one for every whole number of proposals. ValueError without any instance.
    """
    results = proposals if isinstance(proposals, Results) else Results.from_dict(proposals)
    truth = _Truth.of(ground_truth)
    thresholds = np.asarray(tiou_thresholds, dtype=np.float64)
    points = int(max_proposals) if points is None else points
    n_videos, n_proposals = len(truth.video_names), len(results.scores)

    budget = max_proposals * float(n_videos)
    video = truth.index_of_videos(results)
    order, rank = _ranking(results.scores, video)
    tied = _count_ties(video[order], results.scores[order])
    listed = np.bincount(video[video >= 0], minlength=n_videos)
    kept = np.minimum((listed * (budget / max(n_proposals, 1))).astype(np.int64), listed)
    total_kept = int(kept.sum())
    keep = (video[order] >= 0) & (rank < kept[video[order]])
    order, rank = order[keep], rank[keep]

    # First rank that finds each instance, at each threshold; no rank is as large as `never`.
    never = n_proposals
    first_rank = np.full((len(thresholds), len(truth.video)), never)
    for row, instance, tiou in _pairs(video[order], results.segments[order], truth.video, truth.segments):
        near = tiou >= thresholds.min()
        row, instance, tiou = row[near], instance[near], tiou[near]
        for found, threshold in zip(first_rank, thresholds, strict=True):
            hit = tiou >= threshold
            np.minimum.at(found, instance[hit], rank[row[hit]])

    # Point j takes the first taken[j] proposals of a video: an instance is found from the first j on with
    # taken[j] > first rank, and the same for all videos with equally long lists.
    share = np.arange(1, points + 1) / float(points) * (budget / max(total_kept, 1))
    newly_found = np.zeros((len(thresholds), points + 1), dtype=np.int64)
    kept_of_instance = kept[truth.video]
    for length in np.unique(kept):
        taken = np.minimum((length * share).astype(np.int64), length)
        first_point = np.searchsorted(taken, first_rank[:, kept_of_instance == length], side="right")
        for counts, of_threshold in zip(newly_found, first_point, strict=True):
            counts += np.bincount(of_threshold, minlength=points + 1)
    recall = np.cumsum(newly_found[:, :points], axis=1) / float(len(truth.video))

    return AverageRecall(
        tiou_thresholds=thresholds,
        max_proposals=float(max_proposals),
        recall=recall,
        average_recall=recall.mean(axis=0),
        proposals_per_video=share * (float(max(total_kept, 1)) / n_videos),
        videos=n_videos,
        instances=len(truth.video),
        proposals=n_proposals,
        videos_without_proposals=tuple(np.array(truth.video_names, dtype=object)[listed == 0]),
        videos_without_ground_truth=_strangers(results, truth),
        tied_proposals=tied,
    )


@dataclass(frozen=True)
class MeanAveragePrecision:
    """What `mean_average_precision` found; C classes of the ground truth, T thresholds."""

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

    By descending score, each detection takes the free instance of its class and video with the highest tIoU, if that
    is not below the threshold. `detections` may also be what `Results.from_dict` takes. ValueError without any instance
    or without labels.
    """
    results = detections if isinstance(detections, Results) else Results.from_dict(detections)
    if results.label is None and len(results.scores):
        raise ValueError("detections: expected labels, found none (bcnet_fast.results.fusion.fuse adds them)")
    truth = _Truth.of(ground_truth)
    thresholds = np.asarray(tiou_thresholds, dtype=np.float64)
    n_classes = len(truth.label_names)

    code_of = {name: code for code, name in enumerate(truth.label_names)}
    codes = np.array([code_of.get(name, -1) for name in results.label_names], dtype=np.int64)
    label = codes[results.label] if len(codes) else np.zeros(0, dtype=np.int64)
    known = label >= 0
    counts = np.bincount(results.label, minlength=len(codes)) if len(codes) else []
    unknown = {name: int(n) for name, code, n in zip(results.label_names, codes, counts, strict=True) if code < 0}

    order, rank = _ranking(results.scores[known], label[known])
    order = np.flatnonzero(known)[order]
    label = label[order]
    video = truth.index_of_videos(results)[order]
    group = np.where(video < 0, -1, video * n_classes + label)
    true_positive = np.zeros((len(thresholds), len(order)), dtype=bool)
    truth_group = truth.video * n_classes + truth.label
    candidates = []
    for row, instance, tiou in _pairs(group, results.segments[order], truth_group, truth.segments):
        tiou[np.isnan(tiou)] = np.inf
        preferred = _by_preference(row, tiou)
        preferred = preferred[tiou[preferred] >= thresholds.min()]
        candidates.append((row[preferred], instance[preferred], tiou[preferred]))
    if candidates:
        row, instance, tiou = (np.concatenate(column) for column in zip(*candidates, strict=True))
        for positives, threshold in zip(true_positive, thresholds, strict=True):
            enough = tiou >= threshold
            positives[_match(row[enough], instance[enough])] = True

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
        videos_without_proposals=_missing(results, truth),
        videos_without_ground_truth=_strangers(results, truth),
        tied_detections=_count_ties(label, results.scores[order]),
    )


def without_duplicates(
    ground_truth: Mapping[str, VideoAnnotation], tolerance_s: float = 1e-3
) -> dict[str, VideoAnnotation]:
    """Ground truth as OpenTAD and ActionFormer clean it: no instance without length, none twice in the same class.

    Both ends of two instances may differ by `tolerance_s` seconds; the first one stays.
    """
    cleaned = {}
    for name, video in ground_truth.items():
        kept: list[Any] = []
        for instance in video.instances:
            repeats = any(
                other.label == instance.label
                and abs(other.start - instance.start) <= tolerance_s
                and abs(other.end - instance.end) <= tolerance_s
                for other in kept
            )
            if instance.end > instance.start and not repeats:
                kept.append(instance)
        cleaned[name] = dataclasses.replace(video, instances=tuple(kept))
    return cleaned


@dataclass(frozen=True)
class _Truth:
    """The instances of all videos in columns; videos without instances are left out."""

    video_names: tuple[str, ...]
    video: np.ndarray  # [G]
    segments: np.ndarray  # [G, 2]
    label_names: tuple[str, ...]
    label: np.ndarray  # [G]

    @staticmethod
    def of(ground_truth: Mapping[str, VideoAnnotation]) -> _Truth:
        videos = {name: video.instances for name, video in ground_truth.items() if video.instances}
        instances = [instance for of_video in videos.values() for instance in of_video]
        if not instances:
            raise ValueError("ground_truth: expected annotated instances, found none")
        codes: dict[str, int] = {}
        return _Truth(
            video_names=tuple(videos),
            video=np.repeat(np.arange(len(videos)), [len(of_video) for of_video in videos.values()]),
            segments=np.array([(instance.start, instance.end) for instance in instances], dtype=np.float64),
            label=np.array([codes.setdefault(instance.label, len(codes)) for instance in instances]),
            label_names=tuple(codes),
        )

    def index_of_videos(self, results: Results) -> np.ndarray:
        """For every entry of `results` the index of its video here, -1 for a video without instances. [N]"""
        index = {name: position for position, name in enumerate(self.video_names)}
        return np.array([index.get(name, -1) for name in results.video_names], dtype=np.int64)[results.video]


def _missing(results: Results, truth: _Truth) -> tuple[str, ...]:
    present = {results.video_names[video] for video in np.unique(results.video)}
    return tuple(name for name in truth.video_names if name not in present)


def _strangers(results: Results, truth: _Truth) -> tuple[str, ...]:
    annotated = set(truth.video_names)
    present = (results.video_names[video] for video in np.unique(results.video))
    return tuple(name for name in present if name not in annotated)


def descending(values: np.ndarray) -> np.ndarray:
    """Indices [..., n] from the largest to the smallest of values [..., n], equal ones in the order of the public code.

    The public code reverses `argsort()`, that is introsort: of equal values the later one comes first in up to 16, and
    what comes first in longer lists is up to the pivots. NumPy now sorts float64 with vector instructions where the
    processor has them, in another order; for long double it has no such code and every machine gives the same order.
    """
    return np.argsort(values.astype(np.longdouble), axis=-1, kind="quicksort")[..., ::-1]


def _ranking(scores: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order [N] by group and, within it, best score first, and the rank [N] from 0 within the group of each of them."""
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], group[order])
    for members in np.split(order, np.flatnonzero(np.diff(first)) + 1):
        members[:] = members[descending(scores[members])]
    return order, np.arange(len(order)) - first


def _count_ties(group: np.ndarray, scores: np.ndarray) -> int:
    """How many of the entries, given in the order of `_ranking`, have the score of another one of their group."""
    same = (np.diff(group) == 0) & (np.diff(scores) == 0)
    return int(np.count_nonzero(np.append(same, False) | np.append(False, same)))


def _pairs(
    group: np.ndarray, segments: np.ndarray, truth_group: np.ndarray, truth_segments: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs (row, instance) of the same group with their tIoU, by row and instance, a bounded number at a time."""
    by_group = np.argsort(truth_group, kind="stable")
    first = np.searchsorted(truth_group[by_group], group, side="left")
    count = np.searchsorted(truth_group[by_group], group, side="right") - first
    end = np.cumsum(count)
    row = 0
    while row < len(group):
        before = end[row] - count[row]
        stop = max(row + 1, int(np.searchsorted(end, before + _PAIRS_AT_ONCE, side="right")))
        rows = np.repeat(np.arange(row, stop), count[row:stop])
        place_in_row = np.arange(len(rows)) - (end[rows] - count[rows] - before)
        instances = by_group[first[rows] + place_in_row]
        yield rows, instances, _tiou(segments[rows], truth_segments[instances])
        row = stop


def _by_preference(row: np.ndarray, tiou: np.ndarray) -> np.ndarray:
    """Order of the pairs of `_pairs` that lists the instances of every row by descending tIoU."""
    order = np.arange(len(row))
    _, first, count = np.unique(row, return_index=True, return_counts=True)
    for length in np.unique(count):
        pairs = first[count == length, None] + np.arange(length)
        order[pairs] = np.take_along_axis(pairs, descending(tiou[pairs]), axis=1)
    return order


def _tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """tIoU of segments [n, 2] with segments [n, 2], in the public order of operations; NaN for two of no length."""
    inter = np.maximum(np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]), 0.0)
    with np.errstate(invalid="ignore"):
        return inter / ((b[:, 1] - b[:, 0]) + (a[:, 1] - a[:, 0]) - inter)


def _match(row: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Rows that get an instance when every row in turn takes its first free one; pairs come in order of preference.

    A pair that is the first of those left both for its row and for its instance is taken in the sequential rule too,
    so all such pairs are taken at once, their rows and instances leave, and the rest goes round again.
    """
    matched = []
    while len(row):
        position = np.arange(len(row))
        first_of_instance = np.full(instance.max() + 1, len(row))
        np.minimum.at(first_of_instance, instance, position)
        first_of_row = np.append(True, row[1:] != row[:-1])
        taken = first_of_row & (first_of_instance[instance] == position)
        matched.append(row[taken])
        gone = np.zeros(instance.max() + 1, dtype=bool)
        gone[instance[taken]] = True
        left = ~gone[instance] & ~np.isin(row, row[taken])
        row, instance = row[left], instance[left]
    return np.concatenate(matched) if matched else np.zeros(0, dtype=np.int64)


def _interpolated_precision(ranks: np.ndarray, n_positives: int) -> float:
    """Average precision over all recall points, from the ranks [k] (from 0) of the true positives."""
    found = np.arange(1, len(ranks) + 1)
    # Between two true positives precision only falls, so its envelope needs the true positives alone.
    envelope = np.maximum.accumulate((found / (ranks + 1.0))[::-1])[::-1]
    return float(np.sum(np.diff(found / n_positives, prepend=0.0) * envelope))
