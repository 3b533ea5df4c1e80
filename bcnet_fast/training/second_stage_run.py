"""A complete training run of P-GCN or MUSES-Net: from proposals, features and annotations to checkpoints and a log."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import SecondStageConfig
from ..data.annotations import THUMOS14_CLASSES, Instance, VideoAnnotation
from ..data.features import FeatureArchive, iterate, open_features
from ..data.proposal_list import ProposalVideo
from ..data.timing import TimeResolver
from ..errors import InputError
from ..evaluation import METRICS, mean_average_precision
from ..inference.model import load
from ..inference.options import InferOptions
from ..inference.run import infer
from ..inference.second_stage import Neighbours, Refiner
from ..inference.streams import read_classes
from ..ops.devices import resolve_device
from ..presets import DATA_SETS, SECOND_STAGE_PRESETS
from ..progress import clock as remaining
from ..progress import progress
from ..results.proposal_videos import (
    Clock,
    FramedProposals,
    ProposalFile,
    annotated,
    read_proposals,
    reframed,
    timed_like,
)
from ..results.writer import entries
from ..storage.checkpoint import read_config
from ..text import count, failure_line, some
from .dataset import fitted_sizes
from .distributed import Processes
from .learning_curve import draw_curve
from .options import FEWEST_STEPS, Settings, TrainOptions, resolve_second_stage, stated
from .run_folder import Run, locked, require_inputs_apart, require_usable
from .second_stage_data import SecondStageSamples, SecondStageVideo, VideoSet, read_videos
from .second_stage_samples import regression_stats
from .second_stage_trainer import SecondStageTrainer
from .subsets import KEPT_BYTES, select_videos, with_videos


@dataclass(frozen=True)
class _Source:
    """Sources of a subset's videos: proposals, and annotations of the videos that belong to it.

    annotations: None if a proposal list has the instances; then all its videos belong to the subset
    """

    name: str
    proposals: ProposalFile
    annotations: Mapping[str, VideoAnnotation] | None

    def videos(self, archive: FeatureArchive) -> list[str]:
        """Videos with proposals, annotations and features. InputError: there are none."""
        known = self.proposals.names if self.annotations is None else list(self.annotations)
        listed, stored = set(self.proposals.names), set(archive.ids)
        here = [name for name in known if name in listed and name in stored]
        if not here:
            raise InputError(
                f"{self.proposals.path} has {count(len(listed), 'video')}, such as {next(iter(listed))!r}, expected "
                f"{self.name} videos with features in {archive.path}, such as {archive.ids[0]!r}"
            )
        return here

    def labels(self) -> list[str]:
        """Names of all classes, in alphabetical order."""
        return sorted({i.label for video in (self.annotations or {}).values() for i in video.instances})


def train_second_stage(options: TrainOptions) -> None:
    """Train P-GCN or MUSES-Net and write its checkpoints to the output folder, printing progress.

    InputError: a file or option cannot be used.
    """
    config = resolve_second_stage(options)
    require_usable(options.output, resume=options.resume)
    inputs = ("features", "annotations", "val_annotations", "proposals", "val_proposals", "classes", "config")
    require_inputs_apart(options.output, times=options.time.times, **{name: getattr(options, name) for name in inputs})
    if options.proposals is None or (options.features is None and not options.videos):
        missing = "--proposals" if options.proposals is None else "--features or --videos"
        raise InputError(f"{missing} is required with --model {options.model}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"--model {options.model} trains in one process, expected no torchrun")
    device = resolve_device(options.device)
    first_stage = options.proposals.endswith(".safetensors")
    with locked(options.output):
        if options.videos:
            known = read_config(options.proposals).recipe if first_stage else None
            options = with_videos(options, Processes(), known)
        if first_stage:
            options = replace(options, proposals=_propose(options))
        _train(options, config, device)


def _propose(options: TrainOptions) -> str:
    """Make the proposals of all videos with the checkpoint `options.proposals`; a resumed run keeps its own.

    InputError: neither flags nor annotations state the times.
    """
    assert options.features is not None and options.proposals is not None
    path = Path(options.output) / "proposals.json"
    print(f"{path}: proposals of {options.proposals}", flush=True)
    times = replace(options.time, times=options.time.times or options.annotations)
    report = infer(
        InferOptions(
            features=options.features,
            output=str(path),
            checkpoint=options.proposals,
            time=times,
            limits=options.limits,
            device=options.device,
            workers=options.workers,
            protocol=options.protocol,
            resume=True,
        )
    )
    for failure in report.failures:
        print(failure_line(failure.video, failure.reason), file=sys.stderr)
    return str(path)


def _train(options: TrainOptions, config: SecondStageConfig, device: torch.device) -> None:
    strip = bool(config.rows.rescaled)
    assert options.features is not None and options.proposals is not None  # `train_second_stage` requires them
    sources = _sources(options, strip)
    every = options.time.every_for(timed_like(config))
    archive = open_features(options.features, feature_dim=None, every=every, strip_prefix=strip, limits=options.limits)
    labels = _labels(options, sources, config)
    times = _times(options, config, archive, sources)
    chosen = [source.videos(archive) for source in sources]
    fitted = _fitted(options, config, archive, chosen[0], times, len(labels)) if options.fits else {}
    config = resolve_second_stage(options, fitted)
    _require_stride(options, config, times, [*chosen[0], *chosen[1]])
    archive.feature_dim = config.model.feature_dim
    config = replace(config, labels=tuple(labels) if len(labels) == config.model.classes else None)
    if config.labels is None:
        expected = f"{config.model.classes} (model.classes); --fit takes the number from the data"
        source = options.classes or options.annotations or options.proposals
        raise InputError(f"{source} has {count(len(labels), 'class')}, expected {expected}")
    subsets = [
        _read(options, source, names, archive, config, times, labels)
        for source, names in zip(sources, chosen, strict=True)
    ]
    _say_unusable(sources, subsets)
    try:
        stats = regression_stats([video.video for video in subsets[0].videos], config.pools)
    except ValueError as error:
        raise InputError(f"{options.proposals}: training videos: {error}") from error
    # A single foreground proposal has no deviation.
    stats = replace(stats, std=(stats.std[0] or 1.0, stats.std[1] or 1.0))
    if options.fits:
        usable = sum(len(video.video.instances) > 0 for video in subsets[0].videos)
        more = {"train": _fitted_epochs(options, config, usable)}
        config = replace(config, train=resolve_second_stage(options, more).train)
    used, validated = ([video.name for video in subset.videos] for subset in subsets)
    config = replace(
        config, regression=stats, trained_on=times.base_of(used), recipe=times.recipe_of([*used, *validated])
    )
    samples = SecondStageSamples(archive, subsets[0].videos, config)
    trainer = SecondStageTrainer(config, device, release=options.protocol == "release")
    facts = {"protocol": options.protocol, "proposals": samples.digest()}
    output = Run(options.output, config, facts, figure="mAP")
    state = output.begin(resume=options.resume)
    if state is not None:
        trainer.restore(state, str(output.path("state")))
    validation = Validation(archive, subsets[1].videos, _truth(sources[1], subsets[1].videos, labels), config)
    _print_summary(options, trainer, samples, validation, len(output.rows))
    try:
        _run_epochs(options, trainer, output, samples, validation)
    except (KeyboardInterrupt, BrokenPipeError):
        done, epochs = len(output.rows), config.train.epochs
        print(f"{options.output} holds {done} of {count(epochs, 'epoch')}; continue with --resume", file=sys.stderr)
        raise
    number = max(output.rows, key=lambda row: row["mAP"])["epoch"]
    print(f"{output.path('best')}: epoch {number:g}, validation mAP {output.best:.2f}")
    draw_curve(output.rows, output.folder)


def _run_epochs(
    options: TrainOptions, trainer: SecondStageTrainer, output: Run, samples: SecondStageSamples, validation: Validation
) -> None:
    """Train and validate from the first epoch that is not in the output."""
    done, epochs = len(output.rows), trainer.config.train.epochs
    began = time.perf_counter()
    for epoch in range(done, epochs):
        started = time.perf_counter()
        losses = trainer.epoch(samples, epoch, options.workers)
        row = {"epoch": epoch + 1, "learning_rate": trainer.learning_rate(epoch), **losses}
        # Validates the file that users get.
        checkpoint = output.save_last(trainer.weights())
        row |= validation.measure(load(checkpoint, device=trainer.device))
        better = output.finish_epoch(row, trainer.weights(), trainer.state())
        now = time.perf_counter()
        left = (now - began) / (epoch + 1 - done) * (epochs - epoch - 1)
        print(
            f"epoch {epoch + 1}/{epochs}: loss {losses['total']:.4f}, mAP {row['mAP']:.2f}"
            f"{' (best)' if better else ''}, {now - started:.0f} s"
            + (f", {remaining(left)} left" if epoch + 1 < epochs else ""),
            flush=True,
        )


class Validation:
    """mAP of a network on the validation videos."""

    def __init__(
        self,
        archive: FeatureArchive,
        videos: Sequence[SecondStageVideo],
        truth: Mapping[str, VideoAnnotation],
        config: SecondStageConfig,
    ) -> None:
        self.archive, self.videos, self.truth = archive, list(videos), truth
        metric = METRICS["activitynet13" if config.rows.rescaled else "thumos14"]
        self.thresholds = metric.map_thresholds
        self.labels = np.array(config.labels, dtype=object)
        neighbours = Neighbours()
        draws = config.model.name == "pgcn"
        self.neighbours = [neighbours.of(v.name, v.video.proposals) if draws else None for v in self.videos]

    def measure(self, model: Any) -> dict[str, float]:
        """mAP in percent at each threshold, and the mean of these."""
        refiner, results = Refiner([model]), {}
        # In a log file, a line for every epoch is enough.
        shown_videos = progress(
            zip(self.videos, self.neighbours, strict=True),
            len(self.videos),
            "videos validated",
            hidden=not sys.stderr.isatty(),
        )
        for video, neighbours in shown_videos:
            features = self.archive.load(video.name).features if video.features is None else video.features
            found = refiner([features], FramedProposals(video.video.proposals, video.clock, 0), neighbours)
            results[video.name] = entries(found.segments, found.scores, self.labels[found.classes])
        precision = mean_average_precision(self.truth, results, tiou_thresholds=self.thresholds)
        named = zip(self.thresholds, precision.mean.tolist(), strict=True)
        return {f"mAP@{tiou:.2g}": 100 * value for tiou, value in named} | {"mAP": 100 * precision.average}


def _sources(options: TrainOptions, strip: bool) -> list[_Source]:
    """Proposals and annotations of training and validation videos. InputError: instances or subsets are missing."""
    assert options.proposals is not None
    files = {
        path: read_proposals(path, strip_prefix=strip) for path in {options.proposals, options.val_proposals} if path
    }
    training, validation = files[options.proposals], files[options.val_proposals or options.proposals]
    if options.annotations is not None:
        chosen = select_videos(options, strip_prefix=strip)
        return [_Source("training", training, chosen[0]), _Source("validation", validation, chosen[1])]
    if not training.listed:
        raise InputError("--annotations is required, unless --proposals is a proposal list, which has the instances")
    if options.val_proposals is None or not validation.listed:
        raise InputError("--val-proposals is required without --annotations: a proposal list of the validation videos")
    return [_Source("training", training, None), _Source("validation", validation, None)]


def _labels(options: TrainOptions, sources: Sequence[_Source], config: SecondStageConfig) -> list[str]:
    """Names of the classes."""
    if options.classes is not None:
        labels = read_classes(options.classes)
    elif sources[0].annotations is not None:
        labels = sources[0].labels()
    else:
        most = max((int(v.instance_labels.max(initial=0)) for v in sources[0].proposals.listed.values()), default=0)
        number = most if options.fits else max(most, config.model.classes)
        labels = list(THUMOS14_CLASSES) if number == len(THUMOS14_CLASSES) else [str(n + 1) for n in range(number)]
    if not labels:
        raise InputError(
            f"{options.annotations or options.proposals}: training videos: no instance, expected at least one"
        )
    return labels


def _times(
    options: TrainOptions, config: SecondStageConfig, archive: FeatureArchive, sources: Sequence[_Source]
) -> TimeResolver:
    known: dict[str, VideoAnnotation] = {}
    for source in reversed(sources):
        known |= source.proposals.times()
        known |= dict(source.annotations or {})
    return options.time.resolver(timed_like(config), archive, known=known)


def _fitted(
    options: TrainOptions,
    config: SecondStageConfig,
    archive: FeatureArchive,
    training: Sequence[str],
    times: TimeResolver,
    classes: int,
) -> Settings:
    """The width of the features and the number of classes; a row covers the distance to the next one."""
    untimed = replace(times.config, data=replace(times.config.data, rescale=True))  # widths need no times
    videos = {name: VideoAnnotation(name) for name in training}
    width = fitted_sizes(
        archive, videos, TimeResolver(untimed, sidecar=archive.sidecar), stated(options, "model", "feature_dim")
    )
    fitted: Settings = {"model": {"feature_dim": width["model"]["feature_dim"], "classes": classes}}
    if not config.rows.rescaled:
        fitted["rows"] = {"clip": config.rows.stride}
    return fitted


def _fitted_epochs(options: TrainOptions, config: SecondStageConfig, videos: int) -> dict[str, Any]:
    """More epochs if the preset's are too few steps; the learning rate drops after the same shares of them."""
    preset = SECOND_STAGE_PRESETS[options.model][options.preset].train
    epochs = math.ceil(FEWEST_STEPS / math.ceil(videos * config.pools.passes / config.train.batch_size))
    if epochs <= preset.epochs:
        return {}
    return {"epochs": epochs, "decay_at": [math.ceil(at * epochs / preset.epochs) for at in preset.decay_at]}


def _require_stride(
    options: TrainOptions, config: SecondStageConfig, times: TimeResolver, videos: Sequence[str]
) -> None:
    """InputError: the stride of some videos is unknown, and the preset is not one of public features."""
    if config.rows.rescaled or (options.preset in (*DATA_SETS, "muses") and not options.fit):
        return
    unknown = [video for video in videos if times.facts(video).row_stride is None]
    if unknown:
        table = options.time.times or options.annotations or options.proposals
        raise InputError(
            f"--stride is required: {table} does not state the video frames between the feature rows of "
            f"{count(len(unknown), 'video')} ({some(unknown)})"
        )


def _read(
    options: TrainOptions,
    source: _Source,
    names: Sequence[str],
    archive: FeatureArchive,
    config: SecondStageConfig,
    times: TimeResolver,
    labels: Sequence[str],
) -> VideoSet:
    loaded = progress(iterate(archive, names, workers=options.workers), len(names), f"{source.name} videos read")
    return read_videos(loaded, _framing(source, config, times, labels), kept_bytes=KEPT_BYTES)


def _framing(
    source: _Source, config: SecondStageConfig, times: TimeResolver, labels: Sequence[str]
) -> Callable[[str, int], tuple[ProposalVideo, Clock]]:
    """A function (name, rows of features) -> a video as a proposal list would state it, and its clock."""

    def framed(name: str, rows: int) -> tuple[ProposalVideo, Clock]:
        clock = source.proposals.clock(name, config, times, rows)
        if source.annotations is None:
            return reframed(source.proposals.listed[name], clock), clock
        segments = source.proposals.framed(name, clock).segments
        return annotated(name, segments, source.annotations[name].instances, labels, clock), clock

    return framed


def _truth(source: _Source, videos: Iterable[SecondStageVideo], labels: Sequence[str]) -> dict[str, VideoAnnotation]:
    """Instances of the validation videos in seconds. InputError: there is none."""
    truth = {}
    for one in videos:
        if source.annotations is not None:
            truth[one.name] = source.annotations[one.name]
            continue
        seconds = one.clock.seconds(one.video.instances).tolist()
        codes: list[int] = one.video.instance_labels.tolist()
        named = zip(seconds, codes, strict=True)
        instances = tuple(Instance(start, end, labels[int(code) - 1]) for (start, end), code in named)
        truth[one.name] = VideoAnnotation(one.name, instances=instances)
    if not any(video.instances for video in truth.values()):
        raise InputError(f"{source.proposals.path}: validation videos: no instance, expected at least one")
    return truth


def _say_unusable(sources: Sequence[_Source], subsets: Sequence[VideoSet]) -> None:
    """Say which videos are left out and why. InputError: all of a subset."""
    for source, subset in zip(sources, subsets, strict=True):
        if not subset.videos:
            raise InputError(next(iter(subset.failures.values())))
        used = {video.name for video in subset.videos} | set(subset.failures)
        known = source.proposals.names if source.annotations is None else list(source.annotations)
        listed = set(source.proposals.names)
        idle = [video.name for video in subset.videos if not len(video.video.instances)]
        left_out = (
            ("without proposals", [name for name in known if name not in listed]),
            ("without features", [name for name in known if name in listed and name not in used]),
            ("without instances", idle),
        )
        for why, names in left_out:
            if names:
                print(f"note: {source.name}: {count(len(names), 'video')} {why} ({some(names)})", file=sys.stderr)
        for reason in subset.failures.values():
            print(f"note: {source.name}: left out: {reason}", file=sys.stderr)


def _print_summary(
    options: TrainOptions,
    trainer: SecondStageTrainer,
    samples: SecondStageSamples,
    validation: Validation,
    done: int,
) -> None:
    config, settings = trainer.config, trainer.config.train
    size = sum(parameter.numel() for parameter in trainer.network.parameters())
    pools = np.array([pool.counts for pool in samples.pools]).sum(axis=0).tolist()
    steps = len(trainer.batches(len(samples), done))
    validated = sum(len(video.instances) for video in validation.truth.values())
    lines = [
        f"{config.model.name}, preset {config.preset}, protocol {options.protocol}: {size / 1e6:.2f} M parameters, "
        f"C = {config.model.feature_dim}, {count(config.model.classes, 'class')}, {trainer.device}",
        f"training: {count(len(samples), 'video')}; proposals: {pools[0]} foreground (instances included), "
        f"{pools[1]} incomplete, {pools[2]} background; {count(steps, 'step')} per epoch",
        f"epochs: {settings.epochs}, learning rate {settings.learning_rate:g}",
        f"validation: {count(len(validation.videos), 'video')}, {count(validated, 'instance')}",
    ]
    if done:
        lines.append(f"resumed: {done} of {settings.epochs} epochs are already done")
    print("\n".join(lines), flush=True)
