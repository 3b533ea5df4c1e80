"""Proposals of videos from any file, in the frames that a second-stage network counts.

The public networks read features with a row every 8 video frames, and count these frames. Here a frame is an eighth of
the distance between two rows, whatever that is, so that networks and geometry are the same for all features. With a row
every 8 video frames, it is a video frame.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import BCNetConfig, Config, DataConfig, MUSESConfig, SecondStageConfig
from ..data.annotations import Instance, VideoAnnotation, strip_activitynet_prefix
from ..data.proposal_list import ProposalVideo, read_proposal_list
from ..data.timing import RescaledTime, TimeFacts, TimeResolver, VideoTime
from ..storage.files import first_bytes
from .columns import Results
from .reader import read_results

EXPECTED = "proposals: a result file, such as infer writes it, or a proposal list"
_MUSES_STRIDE = 8  # frames between the columns of MUSES-Net, whatever its settings
_ROW_FRAMES = 64  # frames per row if a whole video is rescaled and nothing else is known


def timed_like(config: SecondStageConfig) -> Config:
    """A configuration with the times of a second-stage network, for `TimeResolver`."""
    rows = config.rows
    data = DataConfig(rescale=bool(rows.rescaled), stride=float(rows.stride), strip_prefix=bool(rows.rescaled))
    window = BCNetConfig(window=rows.rescaled) if rows.rescaled else BCNetConfig()
    return Config(config.preset, window, data, trained_on=config.trained_on)


@dataclass(frozen=True)
class Clock:
    """Frames of one video, as a second-stage network counts them.

    frames: length of the video
    fps: video frames a second
    stride: video frames per frame of the clock
    offset: video frame at which frame 0 begins
    """

    frames: int
    fps: float
    stride: float = 1.0
    offset: float = 0.0

    @property
    def duration(self) -> float:
        """Seconds until the last frame ends."""
        return (self.frames * self.stride + self.offset) / self.fps

    def seconds(self, frames: np.ndarray) -> np.ndarray:
        return (frames * self.stride + self.offset) / self.fps

    def nearest(self, seconds: np.ndarray) -> np.ndarray:
        """The nearest frames to times in seconds, int64."""
        return self.of_video_frames(np.asarray(seconds, np.float64) * self.fps)

    def of_video_frames(self, video_frames: np.ndarray) -> np.ndarray:
        """The nearest frames to video frames, int64."""
        return np.rint((video_frames - self.offset) / self.stride).astype(np.int64)

    @staticmethod
    def of(config: SecondStageConfig, time: VideoTime, facts: TimeFacts, rows: int, listed: int | None = None) -> Clock:
        """The clock of a video with `rows` rows of features in use.

        listed: video frames according to a proposal list; otherwise the stated length counts, or that of the features
        """
        layout = config.rows
        if isinstance(time, RescaledTime):
            known = listed or facts.frames or round(time.duration * (facts.fps or 0)) or layout.rescaled * _ROW_FRAMES
            return Clock(known, known / time.duration)
        own_stride = _MUSES_STRIDE if isinstance(config.model, MUSESConfig) else layout.stride
        stride = time.stride / own_stride
        length = listed or facts.frames or (time.duration and time.duration * time.fps)
        if length:
            # A length in seconds times a frame rate may be a hair below the whole number that it stands for.
            frames = int((length - time.offset) / stride + 1e-6)
        else:
            frames = (rows - 1) * own_stride + layout.clip
        return Clock(max(frames, 1), time.fps, stride, time.offset)


@dataclass(frozen=True)
class FramedProposals:
    """Proposals of one video: segments [N, 2] int64 in frames of the clock, and how many were left out."""

    segments: np.ndarray
    clock: Clock
    left_out: int


@dataclass(frozen=True)
class ProposalFile:
    """Proposals of videos by name, in the order of the file.

    listed: videos of a proposal list, else empty
    seconds: segments [N, 2] of a result file, else empty
    labelled: whether a result file has detections; repeated segments then count once
    """

    path: str
    listed: Mapping[str, ProposalVideo]
    seconds: Mapping[str, np.ndarray]
    labelled: bool = False
    notes: tuple[str, ...] = ()  # assumptions about the file

    @property
    def names(self) -> list[str]:
        return list(self.listed or self.seconds)

    def times(self) -> dict[str, VideoAnnotation]:
        """Frame rate and length according to a proposal list. A rate of 1 means that the length is in frames."""
        return {
            name: VideoAnnotation(name, fps=video.rate if video.rate not in (0, 1) else None, frames=video.frames)
            for name, video in self.listed.items()
        }

    def clock(self, name: str, config: SecondStageConfig, times: TimeResolver, rows: int) -> Clock:
        """InputError: the times of the video are unknown."""
        listed = self.listed[name].frames if self.listed else None
        return Clock.of(config, times.resolve(name, rows), times.facts(name), rows, listed)

    def framed(self, name: str, clock: Clock) -> FramedProposals:
        """The proposals of a video in frames, without those that are empty or begin after its end."""
        if self.listed:
            segments, before = clock.of_video_frames(self.listed[name].proposals), self.listed[name].left_out
        else:
            segments, before = clock.nearest(self.seconds[name]), 0
        segments, kept = inside(segments, clock.frames)
        return FramedProposals(segments, clock, before + int((~kept).sum()))


def inside(segments: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments [N, 2] cut to the video, without those that are empty or outside, and which of them those are."""
    start, end = np.maximum(segments[:, 0], 0), np.minimum(segments[:, 1], frames)
    kept = end > start
    return np.stack([start, end], axis=1)[kept], kept


def read_proposals(
    path: str | os.PathLike,
    *,
    strip_prefix: bool = False,
    classes: int | None = None,
    videos: Mapping[str, VideoAnnotation] | None = None,
) -> ProposalFile:
    """Read a proposal list, or results of any other format that `read_results` knows; the content decides.

    strip_prefix: remove the ActivityNet prefix `v_` of the names
    classes: see `read_proposal_list`
    videos: see `read_results`

    InputError: names the file and what is not as expected.
    """
    if _is_list(path):
        listed = {video.name: video for video in read_proposal_list(path, classes=classes)}
        if strip_prefix:
            listed = strip_activitynet_prefix(listed, str(path))
        return ProposalFile(str(path), listed, {})
    results = read_results(path, videos)
    seconds = _segments(results)
    if strip_prefix:
        seconds = strip_activitynet_prefix(seconds, str(path))
    return ProposalFile(str(path), {}, seconds, results.label is not None, results.notes)


def _is_list(path: str | os.PathLike) -> bool:
    if os.path.isdir(path):
        return False
    return first_bytes(path, EXPECTED).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"#")


def _segments(results: Results) -> dict[str, np.ndarray]:
    order = np.argsort(results.video, kind="stable")
    ends = np.searchsorted(results.video[order], np.arange(1, len(results.video_names)))
    parts = dict(zip(results.video_names, np.split(results.segments[order], ends), strict=True))
    if results.label is None:
        return parts
    # The same segment, once for each of its labels.
    return {name: part[np.sort(np.unique(part, axis=0, return_index=True)[1])] for name, part in parts.items()}


def annotated(
    name: str, segments: np.ndarray, instances: Sequence[Instance], labels: Sequence[str], clock: Clock
) -> ProposalVideo:
    """Proposals and instances as a proposal list would state them, for training.

    segments: [N, 2] int64 in frames, inside of the video
    labels: names of the classes; instances of others are left out

    best_iou is the largest IoU with an instance, and the proposal has the label of that instance: 0 for an IoU of 0.
    """
    code = {label: number for number, label in enumerate(labels, start=1)}
    known = [instance for instance in instances if instance.label in code]
    times = np.array([(instance.start, instance.end) for instance in known], np.float64).reshape(-1, 2)
    truth, kept = inside(clock.nearest(times), clock.frames)
    codes = np.array([code[instance.label] for instance in known], np.int64)[kept]
    return listed_video(name, segments, truth, codes, clock.frames)


def listed_video(
    name: str, segments: np.ndarray, instances: np.ndarray, codes: np.ndarray, frames: int
) -> ProposalVideo:
    """A `ProposalVideo` of proposals [N, 2] and instances [g, 2] with class numbers [g], all in frames."""
    length = segments[:, 1] - segments[:, 0]
    best_iou, overlap_self = np.zeros((2, len(segments)))
    best_code = np.zeros(len(segments), np.int64)
    if len(instances):
        overlap = np.minimum(segments[:, 1:], instances[:, 1]) - np.maximum(segments[:, :1], instances[:, 0])
        overlap = np.maximum(overlap, 0)
        iou = overlap / (length[:, None] + instances[:, 1] - instances[:, 0] - overlap)
        best, rows = iou.argmax(axis=1), np.arange(len(segments))
        best_iou, overlap_self = iou[rows, best], overlap[rows, best] / length
        best_code = np.where(best_iou > 0, codes[best], 0)
    return ProposalVideo(
        name, frames, codes, instances, best_code, best_iou, overlap_self, segments, length / max(frames, 1)
    )


def reframed(video: ProposalVideo, clock: Clock) -> ProposalVideo:
    """A video of a proposal list in frames of a clock; the same where both count alike."""
    instances, kept = inside(clock.of_video_frames(video.instances), clock.frames)
    proposals, left = inside(clock.of_video_frames(video.proposals), clock.frames)
    columns = {name: getattr(video, name)[left] for name in ("labels", "best_iou", "overlap_self", "coverage")}
    return replace(
        video,
        frames=clock.frames,
        instance_labels=video.instance_labels[kept],
        instances=instances,
        proposals=proposals,
        **columns,
    )
