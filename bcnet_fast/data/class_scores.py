"""Video-level class scores, and the rules that turn proposals and class scores into detections.

A proposal has no class. For detection, the classes that a video classifier gives to the whole video are multiplied
into its proposals; which classifier, how many classes, and how they are multiplied differs between public codes and
changes mAP, so every rule here has a name.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..storage.files import parse_json, read_json, read_text, require_file
from .annotations import THUMOS14_CLASSES, read_table, strip_activitynet_prefix

_EXPECTED = "class scores (UntrimmedNet npy, npz, npy with a JSON list, CUHK JSON, {video: {label: score}} JSON, CSV)"


@dataclass(frozen=True)
class ClassScores:
    """Scores [V, C] of every video and class, as stored (float32 or float64); -inf where none was given."""

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    scores: np.ndarray

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Video -> its row of `scores`."""
        return {name: row for row, name in enumerate(self.videos)}

    def __contains__(self, video: object) -> bool:
        return video in self.row_of


def read_class_scores(path: str | os.PathLike, *, strip_prefix: bool = False) -> ClassScores:
    """Read class scores; the layout is told by the content.

    * `.npy` [1574, 101]: UntrimmedNet on the THUMOS14 test set; row = number of the test video - 1, column = UCF-101
      number of the class - 1; the 20 classes of the detection task are kept.
    * `.npy` [V, C] beside a `.json` of the same name: {"videos": [V names], "labels": [C names]}, or only the list of
      videos when the columns are the 20 THUMOS14 classes in alphabetical order.
    * `.npz` with the arrays `scores` [V, C], `videos` [V] and `labels` [C].
    * JSON of CUHK: {"results": {video: [C scores]}, "class": [C names]}, or {"results": {video: [{"label", "score"}]}}.
    * JSON {video: {label: score}}, and CSV with the columns video, label, score. JSON and CSV may be gzipped.

    `strip_prefix` takes the ActivityNet prefix `v_` off the ids. InputError: none of these, names that do not fit the
    array, a video or label given twice, a score that is not a finite number of at least 0. (Negative ones, such as
    logits, would turn the order of a video's proposals round in every product: take their softmax first.)
    """
    path = require_file(path, _EXPECTED)
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith((b"\x93NUMPY", b"PK")):
        class_scores = _from_arrays(path)
    else:
        text = read_text(path, _EXPECTED)
        if text.lstrip()[:1] in ("{", "["):
            class_scores = _from_json(parse_json(text, path, _EXPECTED), path)
        else:
            class_scores = _from_csv(text, path)
    if not class_scores.scores.size:
        raise InputError(f"{path}: expected {_EXPECTED}, found no score in it")
    negative = (class_scores.scores < 0) & np.isfinite(class_scores.scores)
    if negative.any():
        row, column = np.argwhere(negative)[0]
        raise InputError(
            f"{path}: video {class_scores.videos[row]!r}: expected class scores of at least 0, "
            f"found {class_scores.scores[row, column]:g}; take the softmax of logits first"
        )
    if strip_prefix:
        videos = strip_activitynet_prefix(dict.fromkeys(class_scores.videos), str(path))
        class_scores = replace(class_scores, videos=tuple(videos))
    return class_scores


def _from_arrays(path: Path) -> ClassScores:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = {"scores": loaded}
        else:
            with loaded:
                arrays = dict(loaded)
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError(f"{path}: expected {_EXPECTED}, found a file that NumPy cannot read ({error})") from error
    scores = arrays.get("scores")
    if scores is None or scores.ndim != 2 or scores.dtype.kind not in "fiu":
        found = {name: list(array.shape) for name, array in arrays.items()}
        raise InputError(f"{path}: expected an array of scores [videos, classes], found {found}")
    if len(arrays) > 1:
        missing = {"videos", "labels"} - arrays.keys()
        if missing:
            raise InputError(f"{path}: expected the arrays scores, videos and labels, found {', '.join(arrays)}")
        return _checked(*(np.atleast_1d(arrays[key]).tolist() for key in ("videos", "labels")), scores, path)
    if scores.shape == (1574, 101):
        columns = np.array(list(THUMOS14_CLASSES.values())) - 1
        videos = [f"video_test_{number:07d}" for number in range(1, len(scores) + 1)]
        return _checked(videos, list(THUMOS14_CLASSES), scores[:, columns], path)
    names_path = path.with_suffix(".json")
    if not names_path.exists():
        raise InputError(
            f"{path}: expected UntrimmedNet scores [1574, 101] or the names of the rows in {names_path.name}, "
            f"found {list(scores.shape)} and no such file"
        )
    names = read_json(names_path, "the names of the videos and labels of an array of class scores")
    if isinstance(names, list):
        names = {"videos": names, "labels": list(THUMOS14_CLASSES)}
    if not isinstance(names, dict) or not all(isinstance(names.get(key), list) for key in ("videos", "labels")):
        raise InputError(f'{names_path}: expected {{"videos": [names], "labels": [names]}}, found another layout')
    return _checked(names["videos"], names["labels"], scores, path)


def _from_json(content: Any, path: Path) -> ClassScores:
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected {_EXPECTED}, found a JSON list")
    results = content.get("results", content)
    if not isinstance(results, dict) or not results:
        raise InputError(f"{path}: expected {_EXPECTED}, found no video in it")
    if isinstance(content.get("class"), list):
        labels = content["class"]
        for name, row in results.items():
            if not isinstance(row, list) or len(row) != len(labels):
                raise InputError(f"{path}: video {name!r}: expected {len(labels)} scores, one for each class")
        try:
            scores = np.array(list(results.values()), dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: expected scores that are finite numbers ({error})") from error
        return _checked(list(results), labels, scores, path)
    triples = []
    for name, given in results.items():
        try:
            pairs = given.items() if isinstance(given, dict) else [(item["label"], item["score"]) for item in given]
        except (TypeError, KeyError):
            raise InputError(f"{path}: video {name!r}: expected labels with scores, found {str(given)[:80]}") from None
        triples += [(name, label, score) for label, score in pairs]
    return _from_triples(triples, path)


def _from_csv(text: str, path: Path) -> ClassScores:
    columns, rows = read_table(text, path, _EXPECTED)
    if not {"video", "label", "score"} <= set(columns):
        raise InputError(f"{path}: expected {_EXPECTED}, found the columns {', '.join(columns)[:60]!r}")
    return _from_triples([(row["video"], row["label"], row["score"]) for _, row in rows], path)


def _from_triples(triples: list[tuple[str, Any, Any]], path: Path) -> ClassScores:
    _require_text("class", [label for _, label, _ in triples], path)
    videos: dict[str, int] = {}
    labels: dict[str, int] = {}
    rows = np.array([videos.setdefault(name, len(videos)) for name, _, _ in triples], dtype=np.int64)
    columns = np.array([labels.setdefault(label, len(labels)) for _, label, _ in triples], dtype=np.int64)
    places, times = np.unique(rows * max(len(labels), 1) + columns, return_counts=True)
    if (times > 1).any():
        row, column = divmod(int(places[np.argmax(times > 1)]), len(labels))
        raise InputError(
            f"{path}: video {list(videos)[row]!r}: expected one score of {list(labels)[column]!r}, found more"
        )
    scores = np.full((len(videos), len(labels)), -np.inf)
    for row, column, (name, _, score) in zip(rows, columns, triples, strict=True):
        try:
            scores[row, column] = score
            finite = np.isfinite(scores[row, column])
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            raise InputError(f"{path}: video {name!r}: expected scores that are finite numbers, found {score!r:.80}")
    return ClassScores(tuple(videos), tuple(labels), scores)


def _checked(videos: list[Any], labels: list[Any], scores: np.ndarray, path: Path) -> ClassScores:
    if scores.shape != (len(videos), len(labels)):
        raise InputError(
            f"{path}: expected scores of {len(videos)} videos and {len(labels)} classes, found {list(scores.shape)}"
        )
    for what, names in (("video", videos), ("class", labels)):
        _require_text(what, names, path)
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise InputError(f"{path}: expected every {what} once, found {repeated[0]!r} more often")
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores).all(axis=1)))
        raise InputError(f"{path}: video {videos[row]!r}: expected finite scores, found NaN or infinity")
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    return ClassScores(tuple(videos), tuple(labels), scores)


def _require_text(what: str, names: list[Any], path: Path) -> None:
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{path}: expected the name of every {what} as text, found {name!r:.80}")
