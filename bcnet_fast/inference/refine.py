"""A complete run of the second stage: from proposals and features to a file of labelled detections."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..config import SecondStageConfig
from ..data.annotations import THUMOS14_CLASSES, VideoAnnotation, in_subset, read_annotations
from ..data.class_scores import ClassScores, read_class_scores
from ..data.features import FeatureArchive, FeatureSequence, iterate, open_features
from ..data.source import ReadLimits
from ..data.timing import TimeOptions, TimeResolver
from ..errors import InputError
from ..profiling import Profile, record, stage
from ..progress import progress
from ..results.pictures import PictureWriter
from ..results.proposal_videos import FramedProposals, ProposalFile, read_proposals, timed_like
from ..results.writer import ResultWriter
from ..storage.checkpoint import read_any_config
from ..storage.files import read_text, readable
from ..storage.output import require_apart, require_writable
from ..text import count, some
from .model import load
from .predict import Failure
from .running import interruptible, require_fresh, sha256, show, take_up
from .second_stage import Neighbours, Refiner
from .second_stage_model import SecondStageModel


@dataclass(frozen=True)
class RefineOptions:
    """Options of `refine`. A field has the meaning of the flag of `python -m bcnet_fast.refine` with the same name."""

    proposals: str
    features: tuple[str, ...]
    checkpoint: tuple[str, ...]
    output: str
    stream_weights: tuple[float, ...] | None = None
    subset: str | None = None  # of the videos in the file of --times or --ground-truth
    draw: int | None = None
    nms_threshold: float | None = None
    no_regression: bool = False
    classes: str | None = None
    precision: str = "fp32"
    device: str = "auto"
    backend: str = "auto"
    protocol: str = "default"
    time: TimeOptions = field(default_factory=TimeOptions)
    limits: ReadLimits = field(default_factory=ReadLimits)
    labels: str | None = None
    plot: str | None = None
    plot_format: str | None = None
    srt: str | None = None
    best: int | None = None
    ground_truth: str | None = None
    workers: int = 0
    profile: bool = False
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class RefineReport:
    """Result of `refine`."""

    output: str
    videos: int
    proposals: int
    detections: int
    seconds: float
    details: str
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    profile: Profile | None
    drawing_seconds: float = 0.0

    def summary(self) -> str:
        """One line: output file, counts, speed (pictures not counted) and settings."""
        computing = self.seconds - self.drawing_seconds
        drawing = f" and {self.drawing_seconds:.1f} s for pictures" if self.drawing_seconds else ""
        return (
            f"{self.output}: {count(self.videos, 'video')}, {count(self.proposals, 'proposal')} refined, "
            f"{count(self.detections, 'detection')}; {computing:.1f} s{drawing}; {self.details}"
        )


def refine(options: RefineOptions) -> RefineReport:
    """Write labelled detections for every video that has proposals. Notes go to stderr as they arise.

    InputError: a file or option cannot be used, or every video failed.
    """
    started = time.perf_counter()
    require_fresh(options.output, resume=options.resume, overwrite=options.overwrite)
    configs = read_configs(options.checkpoint)
    labels = class_names(configs, options.checkpoint, options.classes)
    first, release = configs[0], options.protocol == "release"
    strip = bool(first.rows.rescaled)
    # MUSES-Net's reader of proposal lists drops proposals of other classes.
    largest = first.model.classes if release and first.model.name == "muses" else None
    proposals = read_proposals(options.proposals, strip_prefix=strip, classes=largest)
    streams = open_streams(options.features, configs, options.checkpoint, options.time, options.limits)
    truth = read_annotations(options.ground_truth, strip_prefix=strip) if options.ground_truth else {}
    class_scores = read_class_scores(options.labels, strip_prefix=strip) if options.labels else None
    _require_apart(options, streams)
    times = _resolve_times(options, configs, streams, proposals)
    names, notes, failures = _select(options, proposals, streams, truth or times.table, release=release)
    weights = _class_weights(options, class_scores, labels)
    pictures = PictureWriter(options.plot, options.plot_format, names, best=options.best, ground_truth=truth)
    if options.srt:
        require_writable(Path(options.srt) / "subtitles.srt")
    models = [_load(path, options) for path in options.checkpoint]
    refiner = Refiner(
        models,
        weights=options.stream_weights,
        nms_threshold=options.nms_threshold,
        regress=not options.no_regression,
        keep_empty=release,
    )
    writer = ResultWriter(
        options.output,
        _settings(options, configs, labels),
        sources=_sources(streams, names),
        resume=options.resume,
        overwrite=options.overwrite,
    )
    with contextlib.closing(writer):
        left = take_up(writer, names, ", ".join(options.features), resume=options.resume)
        details = _details(options, configs)
        if writer.finished is not None and not left:
            writer.close(discard=True)
            seconds = time.perf_counter() - started
            counts = len(names), 0, writer.finished
            return RefineReport(options.output, *counts, seconds, details, tuple(failures), tuple(notes), None)
        run = _Run(options, refiner, labels, weights, truth, writer, pictures, proposals, times)
        # The public draw goes on from video to video, so that finished ones must be counted too.
        visited = names if release and run.draws else left
        with interruptible(writer), record() if options.profile else contextlib.nullcontext() as profile:
            run.refine(streams, visited, set(left))
        failures += run.failures
        if not writer.done:
            writer.close(discard=True)
            others = f" (and {count(len(failures) - 1, 'other video')} failed)" if len(failures) > 1 else ""
            raise InputError(f"{failures[0].reason}{others}")
        detections = writer.finish("THUMOS14" if first.preset == "thumos14" else "VERSION 1.3", details)
    notes += run.notes()
    seconds = time.perf_counter() - started
    counts = len(writer.done), run.refined, detections
    return RefineReport(
        options.output, *counts, seconds, details, tuple(failures), tuple(notes), profile, pictures.seconds
    )


class _Run:
    """Refines, draws and stores the videos of a run one by one."""

    def __init__(
        self,
        options: RefineOptions,
        refiner: Refiner,
        labels: Sequence[str],
        class_weights: Mapping[str, np.ndarray] | None,
        truth: Mapping[str, VideoAnnotation],
        writer: ResultWriter,
        pictures: PictureWriter,
        proposals: ProposalFile,
        times: TimeResolver,
    ) -> None:
        self.options, self.refiner, self.truth = options, refiner, truth
        self.labels, self.class_weights = np.array(labels, dtype=object), class_weights
        self.writer, self.pictures = writer, pictures
        self.proposals, self.times = proposals, times
        self.draws = any(model.config.model.name == "pgcn" for model in refiner.models)
        self.neighbours = Neighbours(options.draw, release=options.protocol == "release")
        self.failures: list[Failure] = []
        self.refined = self.left_out = self.zeros = self.empty = 0

    def refine(self, streams: Sequence[FeatureArchive], videos: Sequence[str], left: set[str]) -> None:
        """Refine and store the videos in `left`; failures are collected."""
        loaded = _read(streams, videos, self.options.workers)
        for name, features in progress(loaded, total=len(videos), what="videos"):
            try:
                for found in features:
                    if isinstance(found, InputError):
                        raise found
                with readable(f"video {name!r}", "features, times and proposals of a video"):
                    self._video(name, [found.features for found in features], store=name in left)
            except InputError as error:
                self.failures.append(Failure(name, str(error)))

    def _video(self, name: str, features: list[np.ndarray], *, store: bool) -> None:
        clock = self.proposals.clock(name, self.refiner.models[0].config, self.times, len(features[0]))
        framed = self.proposals.framed(name, clock)
        with stage("neighbours"):
            neighbours = self.neighbours.of(name, framed.segments) if self.draws else None
        if not store:
            return
        weights = None
        if self.class_weights is not None:
            weights = self.class_weights.get(name)
            if weights is None:
                raise InputError(f"{self.options.labels}: no class scores for video {name!r}")
        found = self.refiner(features, framed, neighbours, weights)
        labels = self.labels[found.classes]
        options, columns = self.options, (found.segments, found.scores, labels)
        with stage("pictures and subtitles"):
            annotation = self.truth.get(name)
            show(name, clock.duration, None, columns, self.pictures, options.srt, annotation, options.best)
        with stage("writing"):
            self.writer.add(name, *columns)
        self._count(framed, found.zeros)

    def _count(self, framed: FramedProposals, zeros: int) -> None:
        self.refined += len(framed.segments)
        self.left_out += framed.left_out
        self.zeros += zeros
        self.empty += not len(framed.segments)

    def notes(self) -> list[str]:
        """What was unusual, in words."""
        found = (
            (self.left_out, "proposal", "left out: empty, or after the end of the video"),
            (self.empty, "video", "without proposals, so without detections"),
            (self.zeros, "proposal", "whose features are all 0, so without neighbours"),
        )
        return [f"{count(number, what)} {why}" for number, what, why in found if number]


def read_configs(checkpoints: Sequence[str]) -> list[SecondStageConfig]:
    """Configurations of the streams. InputError: one is of a proposal network, or they have other classes."""
    configs = []
    for path in checkpoints:
        config = read_any_config(path)
        if not isinstance(config, SecondStageConfig):
            raise InputError(f"{path} has weights of {config.model.name}, which makes proposals; expected pgcn or muses")
        configs.append(config)
    first = configs[0]
    for path, config in zip(checkpoints, configs, strict=True):
        if config.model.classes != first.model.classes:
            found = f"{config.model.classes} classes, expected {first.model.classes}"
            raise InputError(f"{path} has {found} as {checkpoints[0]}")
        if config.labels and first.labels and config.labels != first.labels:
            found = f"the classes {some(config.labels)}, expected {some(first.labels)}"
            raise InputError(f"{path} has {found} in this order, as {checkpoints[0]}")
        if config.rows.rescaled != first.rows.rescaled:
            raise InputError(
                f"{path} and {checkpoints[0]}: expected that both or none read videos rescaled to a number of rows"
            )
    return configs


def class_names(configs: Sequence[SecondStageConfig], checkpoints: Sequence[str], classes: str | None) -> list[str]:
    """Names of the classes, in the order of the networks. InputError: they are unknown, or not as many."""
    number = configs[0].model.classes
    known = next((list(config.labels) for config in configs if config.labels), None)
    if classes is not None:
        names = read_classes(classes)
        if len(names) != number:
            raise InputError(f"{classes} has {count(len(names), 'class')}, expected {number} to fit {checkpoints[0]}")
        if known and names != known:
            raise InputError(
                f"{classes} has the classes {some(names)}, expected {some(known)} in the order of {checkpoints[0]}"
            )
        return names
    if known:
        return known
    if number == len(THUMOS14_CLASSES):
        return list(THUMOS14_CLASSES)
    raise InputError(f"--classes is required: {checkpoints[0]} does not know the names of its {number} classes")


def read_classes(path: str) -> list[str]:
    """Names of classes from a text file, one a line, or in alphabetical order from annotations."""
    text = read_text(path, "names of classes, one a line, or annotations")
    if text.lstrip()[:1] == "{" or "," in text.partition("\n")[0]:
        videos = read_annotations(path).values()
        return sorted({instance.label for video in videos for instance in video.instances})
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or len(set(names)) != len(names):
        raise InputError(f"{path} has {count(len(names), 'name')}, {len(set(names))} of them different, expected all")
    return names


def open_streams(
    features: Sequence[str],
    configs: Sequence[SecondStageConfig],
    checkpoints: Sequence[str],
    time_options: TimeOptions,
    limits: ReadLimits,
) -> list[FeatureArchive]:
    """An archive for each path of --features, of the width that is read from it.

    One archive may hold all streams side by side, in the order of the checkpoints, or be read by each of them.
    InputError: paths and widths do not fit the checkpoints.
    """
    widths = [config.model.feature_dim for config in configs]
    if len(features) not in (1, len(configs)):
        raise InputError(f"--features has {count(len(features), 'path')}, expected 1 or one for each of {len(configs)}")
    archives = []
    for path, config in zip(features, configs, strict=False):
        every = time_options.every_for(timed_like(config))
        strip = bool(config.rows.rescaled)
        archive = open_features(path, feature_dim=None, every=every, strip_prefix=strip, limits=limits)
        archives.append(archive)
    if len(archives) == len(configs):
        for archive, width in zip(archives, widths, strict=True):
            archive.feature_dim = width
        return archives
    (archive,) = archives
    shape = _shape_of_any(archive)
    if sum(widths) in shape:
        archive.feature_dim = sum(widths)
    elif set(widths) == {widths[0]} and widths[0] in shape:
        archive.feature_dim = widths[0]
        print(f"note: {archive.path}: all {len(configs)} checkpoints read the same features", file=sys.stderr)
    else:
        wanted = f"{sum(widths)} ({' + '.join(map(str, widths))}) channels to fit {', '.join(checkpoints)}"
        raise InputError(f"{archive.path} has arrays of shape {list(shape)}, expected {wanted}")
    return archives


def _shape_of_any(archive: FeatureArchive) -> tuple[int, ...]:
    """That of the first readable array."""
    error = None
    for video in archive.ids:
        try:
            return archive.stored(video).shape
        except InputError as found:
            error = error or found
    raise error or InputError(f"{archive.path} has no video")


def _read(
    archives: Sequence[FeatureArchive], videos: Sequence[str], workers: int
) -> Iterator[tuple[str, list[FeatureSequence | InputError]]]:
    """Features of all archives, video by video."""
    readers = [iterate(archive, videos, workers=workers) for archive in archives]
    for found in zip(*readers, strict=True):
        yield found[0][0], [loaded for _, loaded in found]
