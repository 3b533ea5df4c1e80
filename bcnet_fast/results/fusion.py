"""Combine proposals and class scores of videos to detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..data.annotations import VideoAnnotation
from ..data.class_scores import ClassScores
from .ordering import descending
from .reader import Results

MOST_DETECTIONS = 1_000_000  # of a video with several classes
FUSION_RULES = {
    "product": "score x class score",
    "sqrt": "square root of score x class score",
    "bcnet": "2 classes, score x softmax of the raw class scores, best 400 per video",
    "gtad": "best 200 proposals per video, 2 classes, score x raw class score to 6 decimals, times to 0.1 s",
}


def fuse(
    proposals: Results,
    class_scores: ClassScores,
    rule: str = "product",
    *,
    top_k: int = 1,
    videos: Mapping[str, VideoAnnotation] | None = None,
) -> Results:
    """Repeat each proposal for the best classes of its video, with a score that combines both.

    rule: key of FUSION_RULES.
    top_k: classes per video; the public THUMOS14 rules `bcnet` and `gtad` ignore it and use 2.
    videos: durations to which `gtad` cuts segments.

    Proposals of videos without class scores are dropped. Videos keep their order, and their detections stay adjacent.

    ValueError: an argument or score does not suit the rule, or a video has more than MOST_DETECTIONS, which would fill
    the memory, and take minutes to be written.
    """
    if rule not in FUSION_RULES:
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(FUSION_RULES)}")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1")
    if rule == "gtad":
        proposals = _best_of_each_video(proposals, 200)

    known = [name for name in proposals.video_names if name in class_scores]
    given = class_scores.scores[[class_scores.row_of[name] for name in known]]
    labels = descending(given)[:, : 2 if rule in ("bcnet", "gtad") else top_k]
    weights = np.take_along_axis(_softmax(given) if rule == "bcnet" else given, labels, axis=1)

    place = {name: row for row, name in enumerate(known)}
    rows = np.array([place.get(name, -1) for name in proposals.video_names], dtype=np.int64)[proposals.video]
    kept = np.flatnonzero(rows >= 0)
    usable = np.isfinite(weights)
    classes = usable.sum(axis=1)
    _require_possible_count(np.bincount(rows[kept], minlength=len(known)), classes, known)
    number = classes[rows[kept]]
    entry = np.repeat(kept, number)
    first = (classes.cumsum() - classes)[rows[kept]]
    place_in_usable = np.repeat(first - (number.cumsum() - number), number) + np.arange(len(entry))
    label, weight = labels[usable][place_in_usable], weights[usable][place_in_usable].astype(np.float64)

    segments, scores = proposals.segments[entry], proposals.scores[entry] * weight
    if rule == "sqrt":
        if (scores < 0).any():
            raise ValueError("scores has a negative value, expected at least 0 for the rule sqrt")
        scores = np.sqrt(scores)
    if rule == "gtad":
        segments = _cut_to_video(segments, proposals.video[entry], proposals.video_names, videos or {})
        segments, scores = np.round(segments, 1), np.round(scores, 6)
    detections = replace(
        proposals,
        video=proposals.video[entry],
        segments=segments,
        scores=scores,
        label_names=class_scores.labels,
        label=label,
    )
    return _best_of_each_video(detections, 400) if rule == "bcnet" else detections


def _require_possible_count(proposals: np.ndarray, classes: np.ndarray, videos: Sequence[str]) -> None:
    """ValueError: a video has too many detections. proposals, classes: number for each video, [V]."""
    counts = np.where(classes > 1, proposals * classes, 0)
    if len(videos) and counts.max() > MOST_DETECTIONS:
        most = int(counts.argmax())
        raise ValueError(
            f"{videos[most]!r} has {proposals[most]:,} proposals with {classes[most]:,} classes each, expected at most "
            f"{MOST_DETECTIONS:,} detections of a video"
        )


def fuse_video(
    video: str, segments: np.ndarray, scores: np.ndarray, class_scores: ClassScores, rule: str, *, top_k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`fuse` the proposals of one video: segments [n, 2], scores [n] and labels [n] (str) of detections, best first."""
    found = fuse(Results.of_video(video, segments, scores), class_scores, rule, top_k=top_k)
    assert found.label is not None  # fuse labels every entry
    order = np.argsort(-found.scores, kind="stable")
    names = np.array(found.label_names, dtype=object)
    return found.segments[order], found.scores[order], names[found.label[order]]


def _softmax(scores: np.ndarray) -> np.ndarray:
    # No shift by the maximum, and rows contiguous in memory, so that float32 rounds as in the public code.
    if (scores > 80).any():
        raise ValueError(f"a class score is {scores.max()}, expected probabilities for the rule bcnet")
    powers = np.exp(np.ascontiguousarray(scores))
    return np.where(np.isfinite(scores), powers / powers.sum(axis=1, keepdims=True), -np.inf)


def _cut_to_video(
    segments: np.ndarray, video: np.ndarray, names: tuple[str, ...], videos: Mapping[str, VideoAnnotation]
) -> np.ndarray:
    """Clip segments [n, 2] in seconds to the video; in units of frames, to round like the public code."""
    fps, frames = np.ones(len(names)), np.full(len(names), np.inf)
    for index, name in enumerate(names):
        about = videos.get(name)
        if about is not None and about.fps and about.frames:
            fps[index], frames[index] = about.fps, about.frames
        elif about is not None and about.duration:
            frames[index] = about.duration
    return np.clip(segments * fps[video, None], 0.0, frames[video, None]) / fps[video, None]


def _best_of_each_video(results: Results, count: int) -> Results:
    """Keep the `count` best entries of each video, best first."""
    by_video = np.argsort(results.video, kind="stable")
    parts = np.split(by_video, np.flatnonzero(np.diff(results.video[by_video])) + 1)
    kept = np.concatenate([part[descending(results.scores[part])[:count]] for part in parts])
    label = None if results.label is None else results.label[kept]
    return replace(
        results, video=results.video[kept], segments=results.segments[kept], scores=results.scores[kept], label=label
    )
