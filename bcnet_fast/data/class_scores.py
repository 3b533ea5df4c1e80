"""Class scores of whole videos, from every public layout.

Proposals have no class. Detections combine them with the scores of a video classifier, see `results.fusion`.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..bounds import LARGEST_FLOAT
from ..errors import InputError
from ..storage.address import Place, place_of
from ..storage.arrays import open_npy, open_npz
from ..storage.files import parse_json, read_json, read_text, readable, require_file
from ..storage.remote import reads_addresses
from ..text import brief, some
from .annotations import THUMOS14_CLASSES, read_table, strip_activitynet_prefix

_EXPECTED = "class scores (UntrimmedNet npy, npz, npy with a JSON list, CUHK JSON, {video: {label: score}} JSON, CSV)"
_LARGEST = 1 << 30  # bytes of all scores and names, in memory
_ARRAYS = {"scores", "videos", "labels"}
_UNTRIMMED_NET = (1574, 101)  # shape of an array whose rows and columns have known names


@dataclass(frozen=True)
class ClassScores:
    """Scores [V, C] of videos and classes, float32 or float64 as stored; -inf if a score is missing."""

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    scores: np.ndarray

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Video -> row of `scores`."""
        return {name: row for row, name in enumerate(self.videos)}

    def __contains__(self, video: object) -> bool:
        return video in self.row_of


@reads_addresses(_EXPECTED)
def read_class_scores(path: str | os.PathLike, *, strip_prefix: bool = False) -> ClassScores:
    """Read class scores. The content determines the layout:

    * `.npy` [1574, 101]: UntrimmedNet on the THUMOS14 test set; row = number of the test video - 1, column = UCF-101
      number of the class - 1. The 20 classes of the detection task are kept.
    * `.npy` [V, C] next to a `.json` of the same name: {"videos": [V names], "labels": [C names]}, or only the list of
      videos if the columns are the 20 THUMOS14 classes in alphabetical order.
    * `.npz` with the arrays `scores` [V, C], `videos` [V] and `labels` [C].
    * JSON of CUHK: {"results": {video: [C scores]}, "class": [C names]}, or {"results": {video: [{"label", "score"}]}}.
    * JSON {video: {label: score}}, and CSV with the columns video, label, score. JSON and CSV may be gzipped.

    strip_prefix: remove the ActivityNet prefix `v_` of the ids.

    InputError: unknown layout, names that do not fit the array, a repeated video or label, a score that is not a finite
    number >= 0. Negative scores, such as logits, would reverse the order of proposals; apply softmax first.
    """
    path = require_file(path, _EXPECTED)
    with readable(path, _EXPECTED):
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
        raise InputError(f"{path} has no score, expected {_EXPECTED}")
    negative = (class_scores.scores < 0) & np.isfinite(class_scores.scores)
    if negative.any():
        row, column = np.argwhere(negative)[0]
        raise InputError(
            f"{path}: video {class_scores.videos[row]!r} has the score {class_scores.scores[row, column]:g}, "
            "expected at least 0; apply softmax to logits first"
        )
    if class_scores.scores.max() > LARGEST_FLOAT:
        raise InputError(f"{path} has the score {class_scores.scores.max():g}, expected at most {LARGEST_FLOAT:g}")
    if strip_prefix:
        videos = strip_activitynet_prefix(dict.fromkeys(class_scores.videos), str(path))
        class_scores = replace(class_scores, videos=tuple(videos))
    return class_scores


def score_files(path: str | os.PathLike | None) -> list[Place]:
    """The files that `read_class_scores` reads, such as an array and the names of its rows and columns; none for None.

    An address stands for itself: names beside it are not read.
    """
    if path is None:
        return []
    place = place_of(path)
    # Only arrays have a second file. A file that cannot be read is refused when it is read.
    with contextlib.suppress(InputError), readable(place, _EXPECTED):
        if isinstance(place, Path) and open_npy(require_file(place, _EXPECTED)).shape != _UNTRIMMED_NET:
            return [place, _names_path(place)]
    return [place]


def _names_path(array: Path) -> Path:
    return array.with_suffix(".json")


def _from_arrays(path: Path) -> ClassScores:
    packed = zipfile.is_zipfile(path)
    members = open_npz(path) if packed else {"scores": lambda: open_npy(path)}
    if len(members) > 1 and members.keys() != _ARRAYS:
        raise InputError(f"{path} has the arrays {some(list(members))}, expected scores, videos and labels")
    opened = {name: array() for name, array in members.items()}
    _require_small(sum(math.prod(array.shape) * _bytes_of_value(array.dtype) for array in opened.values()), path)
    arrays = {name: array[...] for name, array in opened.items()}
    scores = arrays.get("scores")
    if scores is None or scores.ndim != 2 or scores.dtype.kind not in "fiu":
        found = {name: list(array.shape) for name, array in arrays.items()}
        raise InputError(f"{path} has arrays of shapes {found}, expected scores [videos, classes]")
    if len(arrays) > 1:
        videos, labels = (np.atleast_1d(arrays[key]).tolist() for key in ("videos", "labels"))
        return _checked(videos, labels, scores, path)
    if scores.shape == _UNTRIMMED_NET:
        columns = np.array(list(THUMOS14_CLASSES.values())) - 1
        videos = [f"video_test_{number:07d}" for number in range(1, len(scores) + 1)]
        return _checked(videos, list(THUMOS14_CLASSES), scores[:, columns], path)
    names_path = _names_path(path)
    if not names_path.exists():
        raise InputError(
            f"{path} has shape {list(scores.shape)}, expected UntrimmedNet scores [1574, 101], or names of rows and "
            f"columns in {names_path.name}"
        )
    names = read_json(names_path, "the names of the videos and labels of an array of class scores")
    if isinstance(names, list):
        names = {"videos": names, "labels": list(THUMOS14_CLASSES)}
    if not isinstance(names, dict) or not all(isinstance(names.get(key), list) for key in ("videos", "labels")):
        expected = f'{{"videos": [names], "labels": [names]}} for {path.name}'
        raise InputError(f"{names_path}: unknown layout, expected {expected}")
    return _checked(names["videos"], names["labels"], scores, path)


def _bytes_of_value(dtype: np.dtype) -> int:
    """Bytes in memory; those of a name are at least those of a text in Python."""
    return max(dtype.itemsize, 8 if dtype.kind in "fiu" else 64)


def _require_small(size: int, path: Path) -> None:
    """InputError: scores of this size in bytes are too large for memory."""
    if size > _LARGEST:
        raise InputError(f"{path} has {size / 2**30:.3g} GiB of scores, expected at most {_LARGEST >> 30} GiB")


def _from_json(content: Any, path: Path) -> ClassScores:
    if not isinstance(content, dict):
        raise InputError(f"{path} is a JSON list, expected {_EXPECTED}")
    results = content.get("results", content)
    if not isinstance(results, dict) or not results:
        raise InputError(f"{path} has no video, expected {_EXPECTED}")
    if isinstance(content.get("class"), list):
        labels = content["class"]
        for name, row in results.items():
            if not isinstance(row, list) or len(row) != len(labels):
                raise InputError(f"{path}: video {name!r} has another number of scores than the {len(labels)} classes")
        try:
            scores = np.array(list(results.values()), dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: a score is not a finite number ({error})") from error
        return _checked(list(results), labels, scores, path)
    triples = []
    for name, given in results.items():
        try:
            pairs = given.items() if isinstance(given, dict) else [(item["label"], item["score"]) for item in given]
        except (TypeError, KeyError):
            raise InputError(f"{path}: video {name!r} has {brief(given)}, expected labels with scores") from None
        triples += [(name, label, score) for label, score in pairs]
    return _from_triples(triples, path)


def _from_csv(text: str, path: Path) -> ClassScores:
    columns, rows = read_table(text, path, _EXPECTED)
    if not {"video", "label", "score"} <= set(columns):
        raise InputError(f"{path} has the columns {', '.join(columns)[:60]!r}, expected {_EXPECTED}")
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
        raise InputError(f"{path}: video {list(videos)[row]!r} has more than one score of {list(labels)[column]!r}")
    _require_small(8 * len(videos) * len(labels), path)
    scores = np.full((len(videos), len(labels)), -np.inf)
    for row, column, (name, _, score) in zip(rows, columns, triples, strict=True):
        try:
            scores[row, column] = score
            finite = np.isfinite(scores[row, column])
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            raise InputError(f"{path}: video {name!r} has the score {brief(score)}, expected a finite number")
    return ClassScores(tuple(videos), tuple(labels), scores)


def _checked(videos: list[Any], labels: list[Any], scores: np.ndarray, path: Path) -> ClassScores:
    if scores.shape != (len(videos), len(labels)):
        raise InputError(
            f"{path}: scores has shape {list(scores.shape)}, expected [{len(videos)} videos, {len(labels)} classes]"
        )
    for what, names in (("video", videos), ("class", labels)):
        _require_text(what, names, path)
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise InputError(f"{path}: {what} {repeated[0]!r} is repeated")
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores).all(axis=1)))
        raise InputError(f"{path}: video {videos[row]!r} has NaN or infinite scores")
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    return ClassScores(tuple(videos), tuple(labels), scores)


def _require_text(what: str, names: list[Any], path: Path) -> None:
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{path}: a {what} has the name {brief(name)}, expected text")
