"""A complete run of the second stage: from proposals and features to a file of labelled detections."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..config import SecondStageConfig
from ..data.annotations import VideoAnnotation, in_subset, read_annotations
from ..data.class_scores import ClassScores, read_class_scores, score_files
from ..data.features import FeatureArchive
from ..data.source import ReadLimits
from ..data.timing import TimeOptions, TimeResolver
from ..errors import InputError
from ..profiling import Profile, record, stage
from ..progress import progress
from ..results.pictures import PictureWriter
from ..results.proposal_videos import FramedProposals, ProposalFile, read_proposals, timed_like
from ..results.view import require_page_name
from ..results.writer import ResultWriter
from ..storage.files import readable
from ..storage.output import require_apart, require_writable
from ..text import count, some
from ..threads import FairShare
from .model import load
from .predict import Failure
from .running import (
    feature_files,
    interruptible,
    require_fresh,
    result_files,
    sha256,
    show,
    shown_files,
    take_up,
)
from .second_stage import Neighbours, Refiner
from .second_stage_model import SecondStageModel
from .streams import class_names, features_of_models, open_streams, read_configs, read_streams


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
    page: str | None = None  # of the results, by `page.make_page`
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
    unknown = [path for path, config in zip(options.checkpoint, configs, strict=True) if config.regression is None]
    if unknown and not options.no_regression:
        raise InputError(
            f"{unknown[0]} has no regression statistics (reg_stats); --no-regression leaves the boundaries as they are"
        )
    first, release = configs[0], options.protocol == "release"
    strip = bool(first.rows.rescaled)
    # MUSES-Net's reader of proposal lists drops proposals of other classes.
    largest = first.model.classes if release and first.model.name == "muses" else None
    stated = options.time.times or options.ground_truth
    videos = read_annotations(stated, strip_prefix=strip) if stated else None
    proposals = read_proposals(options.proposals, strip_prefix=strip, classes=largest, videos=videos)
    streams = open_streams(options.features, configs, options.checkpoint, options.time, options.limits)
    truth = read_annotations(options.ground_truth, strip_prefix=strip) if options.ground_truth else {}
    class_scores = read_class_scores(options.labels, strip_prefix=strip) if options.labels else None
    _require_apart(options, streams, proposals.names)
    resolvers = _resolvers(options, configs, streams, proposals)
    times = resolvers[0]
    names, notes, failures = _select(options, proposals, streams, truth or times.table, release=release)
    weights = _class_weights(options, class_scores, labels)
    pictures = PictureWriter(options.plot, options.plot_format, names, best=options.best, ground_truth=truth)
    if options.srt:
        require_writable(Path(options.srt) / "subtitles.srt")
    if options.page:
        require_page_name(options.page, "--page")
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
        run = _Run(
            options,
            refiner,
            labels=labels,
            class_weights=weights,
            truth=truth,
            writer=writer,
            pictures=pictures,
            proposals=proposals,
            resolvers=resolvers,
        )
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
        *,
        labels: Sequence[str],
        class_weights: Mapping[str, np.ndarray] | None,
        truth: Mapping[str, VideoAnnotation],
        writer: ResultWriter,
        pictures: PictureWriter,
        proposals: ProposalFile,
        resolvers: Sequence[TimeResolver],
    ) -> None:
        self.options, self.refiner, self.truth = options, refiner, truth
        self.labels, self.class_weights = np.array(labels, dtype=object), class_weights
        self.writer, self.pictures = writer, pictures
        self.proposals, self.resolvers = proposals, resolvers
        self.draws = any(model.config.model.name == "pgcn" for model in refiner.models)
        self.neighbours = Neighbours(options.draw, release=options.protocol == "release")
        self.failures: list[Failure] = []
        self.refined = self.left_out = self.zeros = self.empty = 0

    def refine(self, streams: Sequence[FeatureArchive], videos: Sequence[str], left: set[str]) -> None:
        """Refine and store the videos in `left`; failures are collected. Threads are those of `FairShare`."""
        with FairShare() as share:
            self._refine(streams, videos, left, share)

    def _refine(
        self, streams: Sequence[FeatureArchive], videos: Sequence[str], left: set[str], share: FairShare
    ) -> None:
        loaded = read_streams(streams, videos, self.options.workers)
        for name, features in progress(loaded, total=len(videos), what="videos"):
            share.renew()
            try:
                loaded_rows = []
                for found in features:
                    if isinstance(found, InputError):
                        raise found
                    loaded_rows.append(found.features)
                with readable(f"video {name!r}", "features, times and proposals of a video"):
                    self._video(name, loaded_rows, store=name in left)
            except InputError as error:
                self.failures.append(Failure(name, str(error)))

    def _video(self, name: str, features: list[np.ndarray], *, store: bool) -> None:
        for resolver in self.resolvers:
            resolver.require_recipe(name)
        clock = self.proposals.clock(name, self.refiner.models[0].config, self.resolvers[0], len(features[0]))
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
        configs = [model.config for model in self.refiner.models]
        try:
            found = self.refiner(features_of_models(features, configs), framed, neighbours, weights)
        except InputError as error:
            raise InputError(f"video {name!r}: {error}") from error
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
        """Unusual findings, in words."""
        found = (
            (self.left_out, "proposal", "left out: empty, or after the end of the video"),
            (self.empty, "video", "without proposals, so without detections"),
            (self.zeros, "proposal", "whose features are all 0, so without neighbours"),
        )
        return [f"{count(number, what)} {why}" for number, what, why in found if number]


def _select(
    options: RefineOptions,
    proposals: ProposalFile,
    streams: Sequence[FeatureArchive],
    videos: Mapping[str, VideoAnnotation],
    *,
    release: bool,
) -> tuple[list[str], list[str], list[Failure]]:
    """Videos to refine in the order of the proposals, notes about others, and videos without features."""
    chosen, notes = proposals.names, list(proposals.notes)
    if options.subset is not None:
        source = options.ground_truth or options.time.times
        if source is None:
            raise InputError("--subset requires an annotation file with subsets: --times FILE or --ground-truth FILE")
        subset = in_subset(videos, options.subset, source)
        others = sum(name not in subset for name in chosen)
        chosen = [name for name in chosen if name in subset]
        if others:
            notes.append(f"{count(others, 'video')} left out, not in the subset {options.subset!r}")
    if release and proposals.listed:
        # The public P-GCN skips videos without instances.
        idle = [name for name in chosen if not len(proposals.listed[name].instances)]
        if idle:
            notes.append(f"{count(len(idle), 'video')} without instances left out, as in the public code")
        chosen = [name for name in chosen if len(proposals.listed[name].instances)]
    known = [set(archive.ids) for archive in streams]
    names = [name for name in chosen if all(name in ids for ids in known)]
    if not names:
        here = f", such as {chosen[0]!r}" if chosen else ""
        raise InputError(
            f"{options.proposals} has {count(len(chosen), 'video')}{here}, expected some of the "
            f"{len(streams[0].ids)} in {streams[0].path}, such as {streams[0].ids[0]!r}"
        )
    failures = [
        Failure(name, f"{options.proposals} has proposals of video {name!r}, expected its features in {archive.path}")
        for name in chosen
        for archive, ids in zip(streams, known, strict=True)
        if name not in ids
    ]
    listed = set(proposals.names)
    without = [name for name in streams[0].ids if name not in listed]
    if without:
        notes.append(f"{count(len(without), 'video')} with features, but without proposals ({some(without)})")
    if proposals.labelled:
        notes.append(f"{options.proposals} has labels, which are not used: each of its segments counts once")
    return names, notes, failures


def _resolvers(
    options: RefineOptions,
    configs: Sequence[SecondStageConfig],
    streams: Sequence[FeatureArchive],
    proposals: ProposalFile,
) -> list[TimeResolver]:
    """Time resolvers, one for each checkpoint. The first one's times are used.

    InputError: frame rate or stride are unknown, or contradict the training of a checkpoint.
    """
    listed, resolvers = proposals.times(), []
    # Rows side by side in one archive come from the recipes of all checkpoints, not from one of them.
    apart = len(streams) == len(configs)
    for place, (path, config) in enumerate(zip(options.checkpoint, configs, strict=True)):
        timed = dataclasses.replace(timed_like(config), recipe=config.recipe if apart else None)
        try:
            resolvers.append(options.time.resolver(timed, streams[place if apart else 0], known=listed))
        except InputError as error:
            raise InputError(f"{path}: {error}" if config.trained_on else str(error)) from error
    times, rescaled = resolvers[0], bool(configs[0].rows.rescaled)
    if options.time.times:
        times.require_match(proposals.names, options.proposals, options.time.times)
        times.table = {**times.table, **_completed(listed, times.table)}
    if not rescaled and all(times.facts(name).fps is None for name in proposals.names):
        raise InputError("--fps or --times is required: times depend on the frame rate of the videos")
    if not rescaled and configs[0].trained_on is None:
        guessed = [name for name in proposals.names if times.facts(name).row_stride is None]
        if guessed:
            stride = f"{configs[0].rows.stride} video frames between rows, as in preset {configs[0].preset}"
            print(f"note: without --stride, assuming {stride}", file=sys.stderr)
    return resolvers


def _completed(
    listed: Mapping[str, VideoAnnotation], table: Mapping[str, VideoAnnotation]
) -> dict[str, VideoAnnotation]:
    """Times of the videos of a list, where a table does not state them."""
    both = {name: (video, table.get(name, video)) for name, video in listed.items()}
    return {
        name: dataclasses.replace(stated, fps=stated.fps or video.fps, frames=stated.frames or video.frames)
        for name, (video, stated) in both.items()
    }


def _class_weights(
    options: RefineOptions, class_scores: ClassScores | None, labels: Sequence[str]
) -> dict[str, np.ndarray] | None:
    """Scores [K] of the classes for each video; 0 for a class without any."""
    if class_scores is None:
        return None
    column = {label: number for number, label in enumerate(class_scores.labels)}
    missing = [label for label in labels if label not in column]
    if len(missing) == len(labels):
        raise InputError(
            f"{options.labels} has the classes {some(class_scores.labels)}, expected those of "
            f"{options.checkpoint[0]}: {some(labels)}"
        )
    if missing:
        print(
            f"note: {options.labels}: no scores for {count(len(missing), 'class')} ({some(missing)})", file=sys.stderr
        )
    scores = np.full((len(class_scores.videos), len(labels)), -np.inf)
    for number, label in enumerate(labels):
        if label in column:
            scores[:, number] = class_scores.scores[:, column[label]]
    scores = np.where(np.isfinite(scores), scores, 0.0)
    return dict(zip(class_scores.videos, scores, strict=True))


def _require_apart(options: RefineOptions, streams: Sequence[FeatureArchive], names: Sequence[str]) -> None:
    """InputError: a file to write is one of the inputs, or another one to write."""
    results = result_files(options.output)
    require_apart(
        {
            "--output": results,
            "--page": options.page,
            **shown_files(options.plot, options.plot_format, options.srt, names),
        },
        proposals=options.proposals,
        features=feature_files(streams, results),
        checkpoint=options.checkpoint,
        classes=options.classes,
        times=options.time.times,
        labels=score_files(options.labels),
        ground_truth=options.ground_truth,
    )


def _sources(streams: Sequence[FeatureArchive], names: Iterable[str]) -> dict[str, list[Any]]:
    """Versions of the feature files of each video."""
    versions = [archive.versions() for archive in streams]
    return {name: [one for known in versions for one in known[name]] for name in names}


def _settings(options: RefineOptions, configs: Sequence[SecondStageConfig], labels: Sequence[str]) -> dict[str, Any]:
    """Everything that determines the results; an interrupted run is resumed only if it is the same."""
    names = ("stream_weights", "draw", "nms_threshold", "no_regression", "precision", "protocol")
    names += ("subset", "plot", "plot_format", "srt", "best", "features")
    return {
        "version": __version__,
        "checkpoint": [sha256(path) for path in options.checkpoint],
        **{name: sha256(path) for name, path in (("proposals", options.proposals), ("times", options.time.times))},
        "labels": sha256(options.labels),
        "classes": list(labels),
        "every": options.time.every,
        **dataclasses.asdict(options.time.flags),
        **{name: getattr(options, name) for name in names},
        "networks": [config.to_dict() for config in configs],
    }


def _details(options: RefineOptions, configs: Sequence[SecondStageConfig]) -> str:
    """Settings in one line, for the summary and the result file."""
    networks = " + ".join(
        f"{config.model.name} ({Path(path).name})" for config, path in zip(configs, options.checkpoint, strict=True)
    )
    drawn = f"neighbours drawn with seed {options.draw}" if options.draw is not None else None
    parts = [f"bcnet_fast {__version__}", networks, f"proposals {Path(options.proposals).name}", options.precision]
    return ", ".join(filter(None, [*parts, f"protocol {options.protocol}", drawn]))


def _load(path: str, options: RefineOptions) -> SecondStageModel:
    torch.manual_seed(0)
    model = load(path, device=options.device, precision=options.precision, backend=options.backend)
    assert isinstance(model, SecondStageModel)  # `read_configs` has looked
    return model
