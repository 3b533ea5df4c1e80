"""Proposals and detections of many videos in columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..bounds import LARGEST_FLOAT
from ..errors import InputError
from ..text import brief


@dataclass(frozen=True)
class Results:
    """Proposals or detections of many videos in columns, in file order.

    video: index into `video_names`, [N] int64.
    segments: start and end, [N, 2] float64, seconds.
    scores: [N] float64.
    label: index into `label_names`, [N] int64, or None for proposals.
    notes: what a reader had to assume about the file, as sentences.
    """

    video_names: tuple[str, ...]
    video: np.ndarray
    segments: np.ndarray
    scores: np.ndarray
    label_names: tuple[str, ...] = ()
    label: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @staticmethod
    def of_video(name: str, segments: np.ndarray, scores: np.ndarray) -> Results:
        """Proposals of one video: segments [n, 2] in seconds, scores [n]."""
        video = np.zeros(len(scores), np.int64)
        return Results((name,), video, np.asarray(segments, np.float64), np.asarray(scores, np.float64))

    @staticmethod
    def from_dict(results: Mapping[str, Any], source: str = "results") -> Results:
        """Build from {video: list of {"segment": [start, end], "score", "label"} or array [n, 3] (start, end, score)}.

        A list may also have entries [start, end, score].

        Either all entries have a label or none has. InputError: names `source`, the video and the entry that has
        another form, a NaN, infinite or huge number, or an end before its start.
        """
        lists = {name: _entries(entries, name, source) for name, entries in results.items()}
        video = np.repeat(np.arange(len(lists)), [len(entries) for entries in lists.values()])
        flat = [entry for entries in lists.values() for entry in entries]
        try:
            segments = np.array([entry["segment"] for entry in flat] or np.empty((0, 2)), dtype=np.float64)
            scores = np.array([entry["score"] for entry in flat], dtype=np.float64)
            if segments.shape != (len(flat), 2) or scores.ndim != 1:
                raise ValueError("a number is a list")
            usable = is_usable(segments).all(1) & is_usable(scores) & (segments[:, 0] <= segments[:, 1])
        except (TypeError, KeyError, ValueError, OverflowError):
            rows = [_usable_row(entry) for entry in flat]
            usable = np.array([row is not None for row in rows])
            segments, scores = np.split(np.array([row or (0.0, 0.0, 0.0) for row in rows]), [2], axis=1)
            scores = scores[:, 0]
        if not usable.all():
            wrong = int(np.argmin(usable))
            raise InputError(
                f"{source}: video {list(lists)[video[wrong]]!r} has the entry {brief(flat[wrong], 120)}, expected a "
                f"finite score and a segment [start, end] of finite numbers up to {LARGEST_FLOAT:g} with start <= end"
            )
        labelled = ["label" in entry for entry in flat]
        if not any(labelled):
            return Results(tuple(lists), video, segments, scores)
        if not all(labelled):
            name = list(lists)[video[labelled.index(False)]]
            raise InputError(
                f"{source}: an entry of video {name!r} has no label, expected labels in all entries or in none"
            )
        odd = next((row for row, entry in enumerate(flat) if not isinstance(entry["label"], str | int | float)), None)
        if odd is not None:
            name = list(lists)[video[odd]]
            raise InputError(
                f"{source}: video {name!r} has the label {brief(flat[odd]['label'])}, expected text or a number"
            )
        codes: dict[str, int] = {}
        label = np.array([codes.setdefault(str(entry["label"]), len(codes)) for entry in flat])
        return Results(tuple(lists), video, segments, scores, tuple(codes), label)

    @staticmethod
    def joined(parts: Sequence[Results]) -> Results:
        """The results of several files, in their order. InputError: some have labels and others have none."""
        filled = [part for part in parts if len(part.scores)] or parts[:1]
        labelled = [part.label is not None for part in filled]
        if any(labelled) and not all(labelled):
            name = filled[labelled.index(False)].video_names[0]
            raise InputError(f"video {name!r} has no labels and others have, expected labels in all files or in none")
        videos = _places(name for part in parts for name in part.video_names)
        labels = _places(name for part in filled for name in part.label_names)
        label = [_renumbered(part.label, part.label_names, labels) for part in filled if part.label is not None]
        return Results(
            tuple(videos),
            np.concatenate([_renumbered(part.video, part.video_names, videos) for part in filled]),
            np.concatenate([part.segments for part in filled]),
            np.concatenate([part.scores for part in filled]),
            tuple(labels),
            np.concatenate(label) if label else None,
            tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        )

    def noted(self, note: str) -> Results:
        """The same results with one more note."""
        return replace(self, notes=(*self.notes, note))

    def without(self, videos: Collection[str]) -> tuple[Results, int]:
        """Leave out some videos; also return how many of them have proposals here."""
        kept = [number for number, name in enumerate(self.video_names) if name not in videos]
        if len(kept) == len(self.video_names):
            return self, 0
        place = np.full(len(self.video_names), -1)
        place[kept] = np.arange(len(kept))
        rows = place[self.video] >= 0
        left = replace(
            self,
            video_names=tuple(self.video_names[number] for number in kept),
            video=place[self.video[rows]],
            segments=self.segments[rows],
            scores=self.scores[rows],
            label=None if self.label is None else self.label[rows],
        )
        return left, len(self.video_names) - len(kept)

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Inverse of `from_dict`: the value of `results` in a submission file."""
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in self.video_names}
        columns = zip(self.video.tolist(), self.segments.tolist(), self.scores.tolist(), strict=True)
        for position, (video, segment, score) in enumerate(columns):
            entry = {"score": score, "segment": segment}
            if self.label is not None:
                entry["label"] = self.label_names[self.label[position]]
            results[self.video_names[video]].append(entry)
        return results


def _places(names: Iterable[str]) -> dict[str, int]:
    """Each name once, in the order of their first occurrence, with its place."""
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def _renumbered(column: np.ndarray, names: Sequence[str], places: Mapping[str, int]) -> np.ndarray:
    """Indices into names, as indices into all names."""
    return np.array([places[name] for name in names], np.int64)[column]


def _entries(entries: Any, name: str, source: str) -> list[Any]:
    if isinstance(entries, np.ndarray):
        if entries.ndim != 2 or entries.shape[1] != 3:
            raise InputError(f"{source}: video {name!r} has an array of shape {list(entries.shape)}, expected [n, 3]")
        return [{"segment": row[:2], "score": row[2]} for row in entries.tolist()]
    if not isinstance(entries, list):
        raise InputError(f"{source}: video {name!r} has {brief(entries)}, expected a list of proposals")
    if entries and all(isinstance(entry, list) and len(entry) == 3 for entry in entries):
        return [{"segment": entry[:2], "score": entry[2]} for entry in entries]
    return entries


def is_usable(values: ArrayLike) -> np.ndarray:
    """Whether each number is finite and not huge."""
    return np.abs(values) <= LARGEST_FLOAT


def _usable_row(entry: Any) -> tuple[float, float, float] | None:
    """Start, end and score of an entry; None if they are not usable."""
    try:
        segment = entry["segment"]
        if isinstance(segment, str | bytes | Mapping):
            return None
        start, end = (float(time) for time in segment)
        score = float(entry["score"])
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return (start, end, score) if is_usable([start, end, score]).all() and start <= end else None
