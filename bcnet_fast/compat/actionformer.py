"""ActionFormer's evaluator (`libs/utils/metrics.py`), on the evaluation of this package: any NumPy, no pandas."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..results.reader import Results
from . import detections

_SHORTEST = 1e-3  # seconds


class ANETdetection:
    """Mean average precision, and recall of the best k x detections, as ActionFormer computes and prints them.

    Args:
        ant_file: ground truth, JSON with the key `database`.
        split: subset in lower case; None for all videos.
        tiou_thresholds: tIoU from which a detection matches an instance.
        top_k: k of the recall; x is the number of instances of the class in the video.
        label: key of an annotation's class number, or of a list of numbers.
        label_offset: base of a list of class numbers: class = sum(label_offset**i + number_i), last number first.
        num_workers: ignored; everything runs in this process.
        dataset_name: name in the printed table; None for that of the file.

    As in the original, instances shorter than a millisecond are left out, as are those that repeat another one of the
    same `label_id`. Classes are numbered in ascending order. A detection whose class no instance has keeps its
    own number, so it may count as a false positive of another class.

    InputError: the file has no instance, or an annotation lacks `label_id` or `label`.
    """

    def __init__(
        self,
        ant_file: str | os.PathLike,
        split: str | None = None,
        tiou_thresholds: Sequence[float] | np.ndarray = np.linspace(0.1, 0.5, 5),  # noqa: B008 - a constant
        top_k: Sequence[int] = (1, 5),
        label: str = "label_id",
        label_offset: int = 0,
        num_workers: int = 8,
        dataset_name: str | None = None,
    ) -> None:
        self._setup(ant_file, split, tiou_thresholds, label, label_offset, num_workers, dataset_name)
        self.top_k = top_k

    def _setup(self, ant_file, split, tiou_thresholds, label, label_offset, num_workers, dataset_name) -> None:
        self.tiou_thresholds = tiou_thresholds
        self.ap: np.ndarray | None = None
        self.num_workers = num_workers
        self.dataset_name = Path(ant_file).name.replace(".json", "") if dataset_name is None else dataset_name
        self.split = split
        found = _instances(ant_file, split, label, label_offset, self._long_enough)
        numbers = sorted({number for instances in found.values() for *_, number in instances})
        self.activity_index = {number: code for code, number in enumerate(numbers)}
        coded = {
            name: [(start, end, self.activity_index[n]) for start, end, n in instances if self._counts(start, end)]
            for name, instances in found.items()
        }
        self._truth = detections.ClassGroundTruth.of(coded, f"{ant_file}, subset {split!r}" if split else str(ant_file))

    @staticmethod
    def _long_enough(length: float) -> bool:
        return length >= _SHORTEST

    @staticmethod
    def _counts(start: float, end: float) -> bool:
        return True

    def evaluate(self, preds: Any, verbose: bool = True) -> tuple[Any, ...]:
        """Compare detections with the ground truth.

        Args:
            preds: a dictionary of columns `video-id`, `t-start`, `t-end`, `label` and `score` (lists, arrays or
                tensors), a pandas DataFrame of them, or the path of a JSON file,
                {"database": {video: [{"segment", "label_id", "scores"}]}}. It is not changed.
            verbose: print the table.

        Returns: mAP [T] at each threshold, their mean, and the recall [T, K] at each threshold and k.
        """
        found = self._detections(preds)
        mean, average = self._mean_average_precision(found)
        self._warn_of_missing(found)
        self.recall = detections.top_k_recall(self._truth, found, self.tiou_thresholds, self.top_k, self._classes)
        recall = self.recall.mean(axis=2)
        if verbose:
            lines = []
            for tiou, precision, of_k in zip(self.tiou_thresholds, mean, recall, strict=True):
                cells = [f"Recall@{k:d}x = {value * 100:>4.2f} (%) " for k, value in zip(self.top_k, of_k, strict=True)]
                lines.append(f"\n|tIoU = {tiou:.2f}: mAP = {precision * 100:>4.2f} (%) " + "".join(cells))
            self._print(lines, f"Average mAP: {average * 100:>4.2f} (%)")
        return mean, average, recall

    @property
    def _classes(self) -> int:
        return len(self.activity_index)

    def _detections(self, preds: Any) -> Results:
        if isinstance(preds, (str, os.PathLike)):
            names, segments, labels, scores = _read_detections(preds)
        else:
            names, labels, scores, start, end = (
                _listed(preds, name) for name in ("video-id", "label", "score", "t-start", "t-end")
            )
            segments = np.stack([np.array(start, np.float64), np.array(end, np.float64)], axis=1)
        numbers = [int(label) if label == int(label) else label for label in labels]
        return detections.columns(names, segments, scores, [self.activity_index.get(n, n) for n in numbers])

    def _mean_average_precision(self, found: Results) -> tuple[np.ndarray, np.float64]:
        self._warn_of_missing(found)
        self.ap = detections.average_precision(self._truth, found, self.tiou_thresholds, self._classes)
        mean = self.ap.mean(axis=1)
        return mean, mean.mean()

    def _warn_of_missing(self, found: Results) -> None:
        present = set(found.label_names)
        for number, code in self.activity_index.items():
            if str(code) not in present:
                print(f"Warning: No predictions of label '{number}' were provdied.")

    def _print(self, lines: list[str], average: str) -> None:
        print(f"[RESULTS] Action detection results on {self.dataset_name}.")
        print("".join(lines))
        print(average)


def _instances(
    path: str | os.PathLike, split: str | None, label: str, offset: int, long_enough: Callable[[float], bool]
) -> dict[str, list[tuple[float, float, int]]]:
    """(start, end, class number) of the instances of each video of the subset."""
    found = {}
    for name, video in detections.read_json_key(path, "database").items():
        if split is not None and str(video.get("subset")).lower() != split:
            continue
        where = f"{path}: video {name!r}"
        annotations = detections.read_entries(video.get("annotations", []), ("label_id", label), where)
        kept = detections.without_repeats(annotations, "label_id", long_enough)
        found[name] = [(start, end, _class_number(entry[label], offset)) for start, end, entry in kept]
    return found


def _class_number(label: Any, offset: int) -> int:
    if isinstance(label, (tuple, list)):
        return sum(offset**i + int(number) for i, number in enumerate(reversed(label)))
    return int(label)


def _read_detections(path: str | os.PathLike) -> tuple[list[str], list[list[float]], list[int], list[float]]:
    names, segments, labels, scores = [], [], [], []
    for name, entries in detections.read_json_key(path, "database").items():
        for start, end, entry in detections.read_entries(entries, ("label_id", "scores"), f"{path}: video {name!r}"):
            names.append(name)
            segments.append([start, end])
            labels.append(_class_number(entry["label_id"], 0))
            scores.append(float(entry["scores"]))
    return names, segments, labels, scores


def _listed(preds: Any, name: str) -> list[Any]:
    try:
        column = preds[name]
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"preds is a {type(preds).__name__} without {name!r}, expected the columns video-id, t-start, t-end, "
            "label and score, or the path of a JSON file"
        ) from error
    return column.tolist() if hasattr(column, "tolist") else list(column)
