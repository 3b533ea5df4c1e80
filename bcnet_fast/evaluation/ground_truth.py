"""The instances of the ground truth in columns, and its cleaned form."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.annotations import VideoAnnotation
from ..results.reader import Results

AMBIGUOUS = "Ambiguous"  # label of THUMOS14


def without_duplicates(
    ground_truth: Mapping[str, VideoAnnotation], tolerance_s: float = 1e-3
) -> dict[str, VideoAnnotation]:
    """Ground truth as OpenTAD and ActionFormer clean it: no instance without length, none twice in the same class.

    Both ends of two instances may differ by `tolerance_s` seconds; the first one stays.
    """
    cleaned, side = {}, max(tolerance_s, 1e-6)
    for name, video in ground_truth.items():
        kept: list[Any] = []
        cells: dict[tuple[str, int, int], list[Any]] = {}  # those kept, by label and by both ends in steps of `side`
        for instance in video.instances:
            start, end = (math.floor(time / side) for time in (instance.start, instance.end))
            near = itertools.product((start - 1, start, start + 1), (end - 1, end, end + 1))
            repeats = any(
                abs(other.start - instance.start) <= tolerance_s and abs(other.end - instance.end) <= tolerance_s
                for place in near
                for other in cells.get((instance.label, *place), ())
            )
            if instance.end > instance.start and not repeats:
                kept.append(instance)
                cells.setdefault((instance.label, start, end), []).append(instance)
        cleaned[name] = dataclasses.replace(video, instances=tuple(kept))
    return cleaned


def with_ambiguous(ground_truth: Mapping[str, VideoAnnotation]) -> dict[str, VideoAnnotation]:
    """Ground truth whose instances labelled `Ambiguous`, as JSON may have them, are ambiguous intervals."""
    videos = {}
    for name, video in ground_truth.items():
        ambiguous = tuple((one.start, one.end) for one in video.instances if one.label == AMBIGUOUS)
        kept = tuple(one for one in video.instances if one.label != AMBIGUOUS)
        videos[name] = dataclasses.replace(video, instances=kept, ambiguous=video.ambiguous + ambiguous)
    return videos


@dataclass(frozen=True)
class Truth:
    """The instances of all videos in columns; videos without instances are left out."""

    video_names: tuple[str, ...]
    video: np.ndarray  # [G]
    segments: np.ndarray  # [G, 2]
    label_names: tuple[str, ...]
    label: np.ndarray  # [G]

    @staticmethod
    def of(ground_truth: Mapping[str, VideoAnnotation]) -> Truth:
        videos = {name: video.instances for name, video in ground_truth.items() if video.instances}
        instances = [instance for of_video in videos.values() for instance in of_video]
        if not instances:
            raise ValueError("ground_truth has no annotated instance, expected at least one")
        codes: dict[str, int] = {}
        return Truth(
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


def missing_videos(results: Results, truth: Truth) -> tuple[str, ...]:
    present = {results.video_names[video] for video in np.unique(results.video)}
    return tuple(name for name in truth.video_names if name not in present)


def unknown_videos(results: Results, truth: Truth) -> tuple[str, ...]:
    annotated = set(truth.video_names)
    present = (results.video_names[video] for video in np.unique(results.video))
    return tuple(name for name in present if name not in annotated)
