"""OpenTAD's evaluators `mAP` and `Recall` (`opentad/evaluations`), on the evaluation of this package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..evaluation.average_recall import average_recall
from ..results.reader import Results
from ..storage.files import parse_json, read_text
from . import detections


class _Evaluator:
    """Ground truth of a subset, and results, as OpenTAD reads them."""

    def __init__(
        self,
        ground_truth_filename: str | os.PathLike,
        prediction_filename: str | os.PathLike | dict[str, Any],
        subset: str,
        tiou_thresholds: Sequence[float] | np.ndarray,
        blocked_videos: str | os.PathLike | None,
    ) -> None:
        self.subset = subset
        self.tiou_thresholds = tiou_thresholds
        self.blocked_videos: list[str] = _read_list(blocked_videos) if blocked_videos is not None else []
        self.activity_index: dict[str, int] = {}
        self._truth = self._read_ground_truth(ground_truth_filename)
        self._results = self._read_results(prediction_filename)

    def _read_ground_truth(self, path: str | os.PathLike) -> detections.ClassGroundTruth:
        instances = {}
        for name, video in detections.read_json_key(path, "database").items():
            if video.get("subset") != self.subset or name in self.blocked_videos:
                continue
            annotations = detections.read_entries(video.get("annotations", []), ("label",), f"{path}: video {name!r}")
            kept = detections.without_repeats(annotations, "label", lambda length: length > 0)
            instances[name] = [
                (start, end, self.activity_index.setdefault(entry["label"], len(self.activity_index)))
                for start, end, entry in kept
            ]
        return detections.ClassGroundTruth.of(instances, f"{path}, subset {self.subset!r}")

    def _read_results(self, source: str | os.PathLike | dict[str, Any]) -> Results:
        if isinstance(source, dict):
            name, videos = "prediction_filename", detections.object_under(source, "results", "prediction_filename")
        else:
            name, videos = str(source), detections.read_json_key(source, "results")
        names, segments, scores, classes = [], [], [], []
        for video, entries in videos.items():
            if video in self.blocked_videos:
                continue
            for start, end, entry in detections.read_entries(entries, ("score",), f"{name}: video {video!r}"):
                names.append(video)
                # A segment that ends before its start overlaps nothing, like one without length.
                segments.append((start, max(start, end)))
                scores.append(float(entry["score"]))
                classes.append(self.activity_index.get(entry.get("label"), len(self.activity_index)))
        return detections.columns(names, segments, scores, classes)

    def _heading(self) -> list[str]:
        return [
            f"Loaded annotations from {self.subset} subset.",
            f"Number of ground truth instances: {self._truth.instances}",
            f"Number of predictions: {len(self._results.scores)}",
            f"Fixed threshold for tiou score: {self.tiou_thresholds}",
        ]


class mAP(_Evaluator):
    """Mean average precision, and recall of the best k x detections where `top_k` is given.

    Args:
        ground_truth_filename: JSON with the key `database`.
        prediction_filename: JSON file, or dictionary, with the key `results`.
        subset: name of the subset; case matters.
        tiou_thresholds: tIoU from which a detection matches an instance.
        top_k: numbers k of the recall; x is the number of instances of the class in the video.
        blocked_videos: JSON file with a list of videos to leave out.
        thread: ignored; everything runs in this process.

    As in the original, instances without length are left out, as are those that repeat another one of the same label.
    Detections without a label, or with one that no instance has, only count in the number of predictions.

    InputError: a file is missing or has another layout, or the subset has no instance.
    """

    def __init__(
        self,
        ground_truth_filename: str | os.PathLike,
        prediction_filename: str | os.PathLike | dict[str, Any],
        subset: str,
        tiou_thresholds: Sequence[float] | np.ndarray,
        top_k: Sequence[int] | None = None,
        blocked_videos: str | os.PathLike | None = None,
        thread: int = 16,
    ) -> None:
        super().__init__(ground_truth_filename, prediction_filename, subset, tiou_thresholds, blocked_videos)
        self.top_k = top_k
        self.thread = thread

    def evaluate(self) -> dict[str, float]:
        """Returns: `average_mAP`, `mAP@t` for each threshold t, and `recall@t@k` where `top_k` is given."""
        arguments = self._truth, self._results, self.tiou_thresholds
        classes = len(self.activity_index)
        self.ap = detections.average_precision(*arguments, classes)
        self.mAPs = self.ap.mean(axis=1)
        self.average_mAP = self.mAPs.mean()
        metrics = {"average_mAP": self.average_mAP}
        metrics |= {f"mAP@{tiou}": value for tiou, value in zip(self.tiou_thresholds, self.mAPs, strict=True)}
        if self.top_k is not None:
            self.recall = detections.top_k_recall(*arguments, self.top_k, classes)
            self.mRecall = self.recall.mean(axis=2)
            for tiou, of_k in zip(self.tiou_thresholds, self.mRecall, strict=True):
                metrics |= {f"recall@{tiou}@{k}": value for k, value in zip(self.top_k, of_k, strict=True)}
        return metrics

    def logging(self, logger: Any = None) -> None:
        """Print the table of `evaluate`, or pass its lines to `logger.info`."""
        lines = [*self._heading(), f"Average-mAP: {self.average_mAP * 100:>4.2f} (%)"]
        pairs = zip(self.tiou_thresholds, self.mAPs, strict=True)
        lines += [f"mAP at tIoU {tiou:.2f} is {value * 100:>4.2f}%" for tiou, value in pairs]
        if self.top_k is not None:
            lines.append(f"Fixed top-kx results: {self.top_k}")
            for tiou, of_k in zip(self.tiou_thresholds, self.mRecall, strict=True):
                cells = [f"R{k:d} is {value * 100:>4.2f}%" for k, value in zip(self.top_k, of_k, strict=True)]
                lines.append(f"Recall at tIoU {tiou:.2f}: {', '.join(cells)}")
        _log(lines, logger)


class Recall(_Evaluator):
    """Average recall of proposals at average numbers of them, and the area under that curve.

    Args:
        ground_truth_filename, prediction_filename, subset, tiou_thresholds, blocked_videos: as in `mAP`.
        topk: average numbers of proposals a video to report, at most `max_avg_nr_proposals`.
        max_avg_nr_proposals: end of the curve; None or 0 for all proposals.

    InputError: as in `mAP`, or `topk` is beyond the curve.
    """

    def __init__(
        self,
        ground_truth_filename: str | os.PathLike,
        prediction_filename: str | os.PathLike | dict[str, Any],
        subset: str,
        tiou_thresholds: Sequence[float] | np.ndarray,
        topk: Sequence[int] = (1, 5, 10, 100),
        max_avg_nr_proposals: float | None = 100,
        blocked_videos: str | os.PathLike | None = None,
    ) -> None:
        super().__init__(ground_truth_filename, prediction_filename, subset, tiou_thresholds, blocked_videos)
        self.topk = [int(k) for k in topk]
        self.max_avg_nr_proposals = max_avg_nr_proposals

    def evaluate(self) -> dict[str, float]:
        """Returns: `AUC` as a share of 1, and `AR@k` for each k of `topk`."""
        videos = sum(bool(video.instances) for video in self._truth.videos.values())
        most = self.max_avg_nr_proposals or len(self._results.scores) / videos
        thresholds = np.asarray(self.tiou_thresholds).tolist()
        found = average_recall(
            self._truth.videos, self._results, tiou_thresholds=thresholds, max_proposals=most, points=most
        )
        self.recall = found.recall
        self.avg_recall = found.average_recall
        self.proposals_per_video = found.proposals_per_video
        self.auc = found.auc / 100
        points = self.recall.shape[1]
        if not all(1 <= k <= points for k in self.topk):
            raise InputError(f"topk is {self.topk}, expected numbers from 1 to {points}, the end of the curve")
        return {"AUC": self.auc} | {f"AR@{k}": float(np.mean(self.recall[:, k - 1])) for k in self.topk}

    def logging(self, logger: Any = None) -> None:
        """Print the table of `evaluate`, or pass its lines to `logger.info`."""
        lines = [*self._heading(), f"AUC: {self.auc * 100:>4.2f} (%)"]
        lines += [f"AR@{k:3d} is {np.mean(self.recall[:, k - 1]) * 100:>4.2f}%" for k in self.topk]
        _log(lines, logger)


def _read_list(path: str | os.PathLike) -> list[str]:
    expected = "JSON, a list of videos"
    content = parse_json(read_text(path, expected), path, expected)
    if not isinstance(content, list):
        raise InputError(f"{path} has {type(content).__name__}, expected {expected}")
    return content


def _log(lines: list[str], logger: Any) -> None:
    write = print if logger is None else logger.info
    for line in lines:
        write(line)
