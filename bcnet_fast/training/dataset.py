"""Training data: the usable videos of an archive, their windows and the labels of each window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from ..config import BCNetConfig, Config
from ..data.annotations import Instance, VideoAnnotation
from ..data.features import FeatureArchive, FeatureSequence
from ..data.timing import RescaledTime, TimeResolver, VideoTime
from ..data.windows import cut, rescale, window_starts
from ..errors import InputError
from ..geometry.anchors import make_anchors
from ..geometry.proposal_map import proposal_map
from ..protocols import Protocol, WindowRules
from ..text import count, some
from .targets import WindowTargets, map_targets, window_targets

VISIBLE = 0.9  # a training window shows more than this part of some instance, as in the public releases
_COVERED = 95  # percent of the instances that fit the longest proposal under --fit: 64 snippets on THUMOS14
_NAMED = 3  # shapes in an error
# Snippets. Instances farther from a window than this do not change its labels, which look 3 snippets away.
_MARGIN = 4


@dataclass(frozen=True, eq=False)
class Video:
    """One usable video. `annotation` has no instance without extent."""

    annotation: VideoAnnotation
    snippets: int  # as the network counts them: of a rescaled video those of the window
    segments: np.ndarray  # [G, 2] float64, instances within the features, in units from boundary 0
    stride: float  # units per snippet; a unit is a video frame, or a snippet where the video is rescaled
    features: np.ndarray | None  # [snippets, C]; None where they are read again for each window
    largest: float  # magnitude of a feature

    def lengths(self) -> np.ndarray:
        """Lengths of the instances in snippets, [G]."""
        return (self.segments[:, 1] - self.segments[:, 0]) / self.stride


@dataclass(frozen=True)
class Subset:
    """The usable videos of a subset, and one remark for each kind of thing left out."""

    name: str
    videos: list[Video]
    remarks: list[str]

    @property
    def truth(self) -> dict[str, VideoAnnotation]:
        return {video.annotation.id: video.annotation for video in self.videos}


def check_subset(
    name: str,
    annotations: Mapping[str, VideoAnnotation],
    loaded: Iterable[tuple[str, FeatureSequence | InputError]],
    times: TimeResolver,
    rules: WindowRules,
    *,
    kept_bytes: int = 0,
) -> Subset:
    """Read and check every video once, so that no bad file stops the training later.

    loaded: id and features of the annotated videos, from `features.iterate`.
    kept_bytes: memory for features, spent on the first videos.

    Raises InputError when no video is usable, or none has an instance.
    """
    videos: list[Video] = []
    failures: dict[str, str] = {}
    seen = set()
    empty = outside = 0
    for identity, found in loaded:
        seen.add(identity)
        try:
            if isinstance(found, InputError):
                raise found
            time = times.resolve(identity, len(found.features), whole_snippets=rules.whole_snippets)
        except InputError as error:
            failures[identity] = str(error)
            continue
        features = as_seen(found.features, times.config)
        annotation = annotations[identity]
        instances = tuple(i for i in annotation.instances if i.end > i.start)
        empty += len(annotation.instances) - len(instances)
        segments, stride = _place(instances, time)
        reached = (segments[:, 1] > 0) & (segments[:, 0] < len(features) * stride)
        outside += int((~reached).sum())
        kept_bytes -= features.nbytes
        kept = features if kept_bytes >= 0 else None
        annotation, largest = replace(annotation, instances=instances), float(np.abs(features).max())
        videos.append(Video(annotation, len(features), segments[reached], stride, kept, largest))

    if not videos and failures:
        more = f" (and {count(len(failures) - 1, 'other video')} failed)" if len(failures) > 1 else ""
        raise InputError(f"{next(iter(failures.values()))}{more}")
    if not any(len(video.segments) for video in videos):
        without = f"the {count(len(videos), 'video')} with features have no annotated instance"
        raise InputError(f"{name}: {without}, expected at least one")
    idle = [video.annotation.id for video in videos if not len(video.segments)]
    remarks = [
        _remark("without features", [identity for identity in annotations if identity not in seen]),
        _remark("without instances", idle),
        *(f"left out: {reason}" for reason in failures.values()),
        f"dropped {count(empty, 'instance')} without extent" if empty else "",
        f"dropped {count(outside, 'instance')} outside of the features" if outside else "",
    ]
    return Subset(name, videos, [f"{name}: {remark}" for remark in remarks if remark])


def fitted_sizes(
    archive: FeatureArchive,
    annotations: Mapping[str, VideoAnnotation],
    times: TimeResolver,
    feature_dim: int | None = None,
) -> dict[str, dict[str, int]]:
    """Sizes that follow from the data, in the form of `Config.override`.

    feature_dim: unless stated, the width that the sidecars of all arrays state, or the length of the axis that all
    share. With sliding windows, max_duration covers 95 % of the instances, rounded up to a multiple of 8 snippets; a
    window is 4 times as long, and windows start half a window apart. On THUMOS14 these are the numbers of the paper.

    Raises InputError when the arrays share no axis length, or more than one, and feature_dim is not stated.
    """
    shapes: list[tuple[int, ...]] = []
    lengths: list[float] = []
    widths: set[int | None] = set()
    for identity in archive.ids:
        if identity not in annotations:
            continue
        side = times.sidecar(identity)
        widths.add(side.recipe.width if side else None)
        try:
            shapes.append(archive.stored(identity).shape)
            if not times.config.data.rescale:
                segments, stride = _place(annotations[identity].instances, times.resolve(identity, 0))
                lengths += ((segments[:, 1] - segments[:, 0]) / stride).tolist()
        except InputError:
            continue  # `check_subset` reports it
    if feature_dim is None and len(widths) == 1:
        feature_dim = widths.pop()
    common = set.intersection(*map(set, shapes)) - {1} if shapes else set()
    if feature_dim is None and len(common) != 1:
        expected = "expected exactly one axis of the same length in all"
        if shapes:
            found = f"has arrays of the shapes {', '.join(str(list(shape)) for shape in shapes[:_NAMED])}"
        else:
            found = f"has no readable array of the {count(len(annotations), 'training video')}"
        raise InputError(f"{archive.path} {found}, {expected}; state the width by --set model.feature_dim=C")
    fitted = {"model": {"feature_dim": common.pop() if feature_dim is None else feature_dim}}
    if lengths:
        longest = max(8, 8 * math.ceil(np.percentile(lengths, _COVERED) / 8))
        fitted["model"] |= {"max_duration": longest, "window": 4 * longest}
        fitted["data"] = {"window_stride": 2 * longest}
    return fitted


def _remark(what: str, names: Sequence[str]) -> str:
    return f"{count(len(names), 'video')} {what} ({some(names)})" if names else ""


def as_seen(features: np.ndarray, config: Config) -> np.ndarray:
    """Features [T, C], rescaled to one window where the configuration asks for it."""
    return rescale(features, config.model.window).T if config.data.rescale else features


def _place(instances: Sequence[Instance], time: VideoTime) -> tuple[np.ndarray, float]:
    """Segments [G, 2] and a snippet's length in the unit of the window: video frames, as the release's labels need."""
    seconds = np.array([(i.start, i.end) for i in instances], dtype=np.float64).reshape(-1, 2)
    if isinstance(time, RescaledTime):
        return seconds / time.duration * time.snippets, 1.0
    return seconds * time.fps - time.offset, time.stride


class TrainingWindows(Dataset):
    """Windows with their targets: item i is (features [C, T] float32, `Targets` or `MapTargets`).

    These are the windows of inference that show more than 90 % of some instance.

    considered: windows before that choice.
    starts: first snippet of each window, which `shift` moves.

    Instances can be pickled; each worker process opens the files for itself.
    """

    def __init__(self, archive: FeatureArchive, videos: Sequence[Video], config: Config, protocol: Protocol) -> None:
        """Raises InputError when no window shows enough of any instance."""
        self.archive, self.videos, self.config, self.rules = archive, list(videos), config, protocol.labels
        self.windows: list[tuple[int, int]] = []  # number of the video, first snippet
        self.considered = 0
        window, data = config.model.window, config.data
        for number, video in enumerate(self.videos):
            starts = [0]
            if not data.rescale:
                keep_tail = not protocol.windows.skip_short_tail
                starts = window_starts(video.snippets, window, data.window_stride, keep_tail=keep_tail)
            self.considered += len(starts)
            self.windows += [(number, start) for start in starts if _shows_an_instance(video, start, window)]
        if not self.windows:
            raise InputError(
                f"none of {count(self.considered, 'window')} of {window} snippets shows more than {VISIBLE:.0%} of an "
                "instance, expected a longer model.window"
            )
        self.starts = [start for _, start in self.windows]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, WindowTargets]:
        video, start = self.videos[self.windows[index][0]], self.starts[index]
        features = video.features
        if features is None:
            features = as_seen(self.archive.load(video.annotation.id).features, self.config)
        return cut(features, [start], self.config.model.window)[0], self.targets(video, start)

    def shift(self, rng: np.random.Generator) -> None:
        """Move each window by up to half a window stride, within its video.

        A window that would no longer show enough of an instance returns to its first place. Requires sliding windows:
        the single window of a rescaled video cannot move.
        """
        window, half = self.config.model.window, self.config.data.window_stride // 2
        moves = rng.integers(-half, half + 1, size=len(self.windows)).tolist()
        for index, ((number, start), move) in enumerate(zip(self.windows, moves, strict=True)):
            video = self.videos[number]
            moved = min(max(start + move, 0), max(video.snippets - window, 0))
            self.starts[index] = moved if _shows_an_instance(video, moved, window) else start

    def targets(self, video: Video, start: int) -> WindowTargets:
        """Targets of the window that begins with snippet `start`."""
        model, stride = self.config.model, video.stride
        first = start * stride
        near = video.segments[:, 1] > first - _MARGIN * stride
        near &= video.segments[:, 0] < first + (model.window + _MARGIN) * stride
        place = {"first": first, "stride": stride, "rules": self.rules}
        if isinstance(model, BCNetConfig):
            anchors = make_anchors(model.window, model.max_duration)
            return window_targets(video.segments[near], anchors, model.window, **place)
        return map_targets(video.segments[near], proposal_map(model), model.window, **place)


def _shows_an_instance(video: Video, start: int, window: int) -> bool:
    first, last = start * video.stride, min(start + window, video.snippets) * video.stride
    begin, end = video.segments.T
    shown = np.minimum(end, last) - np.maximum(begin, first)
    return bool((shown > VISIBLE * (end - begin)).any())
