"""A complete training run: from features and annotations to checkpoints and a log."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from ..config import Config
from ..data.annotations import VideoAnnotation
from ..data.features import FeatureArchive
from ..data.timing import TimeResolver
from ..errors import InputError
from ..inference.model import load
from ..ops import native
from ..ops.devices import resolve_device
from ..presets import PRESETS, SECOND_STAGE_PRESETS
from ..progress import clock
from ..protocols import protocol_for
from ..text import count, failure_line
from .dataset import Subset, TrainingWindows, fitted_sizes
from .distributed import Processes
from .learning_curve import draw_curve
from .options import Settings, TrainOptions, fitted_epochs, require_covered, resolve_config, stated
from .run_folder import Run, locked, require_inputs_apart, require_usable
from .second_stage_run import train_second_stage
from .subsets import (
    open_archive,
    read_subsets,
    require_stride,
    require_width,
    select_annotations,
    with_features,
    with_synthetic_videos,
    with_videos,
)
from .trainer import Trainer
from .validation import SHOWN_AN, validate


def train(options: TrainOptions) -> None:
    """Train a network and write its checkpoints to the output folder, printing progress.

    InputError: a file or option cannot be used.
    """
    if options.model in SECOND_STAGE_PRESETS:
        train_second_stage(options)
        return
    # A wrong option is an error before any file is read and before synthetic videos are generated.
    resolve_config(options)
    require_usable(options.output, resume=options.resume)
    require_inputs_apart(
        options.output,
        features=options.features,
        annotations=options.annotations,
        val_annotations=options.val_annotations,
        config=options.config,
        times=options.time.times,
    )
    device = _device_of_this_process(options.device)
    with Processes.join(device) as processes, locked(options.output) if processes.first else contextlib.nullcontext():
        if options.videos and options.annotations is None:
            raise InputError("--videos requires --annotations")
        if options.videos:
            options = with_videos(options, processes)
        if options.features is None:
            options = with_synthetic_videos(options, processes)
        elif options.annotations is None:
            raise InputError("--features requires --annotations")
        train_with(processes, options, device)


def _device_of_this_process(name: str) -> torch.device:
    device = resolve_device(name)
    if device.type == "cuda" and ":" not in name and "LOCAL_RANK" in os.environ:
        # Set by torchrun: the number of this process on this machine.
        device = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def train_with(processes: Processes, options: TrainOptions, device: torch.device) -> None:
    """Train on existing features and annotations, in processes that have already joined."""
    config = resolve_config(options)
    chosen = select_annotations(options, config)
    fitted = _fitted(options, config, chosen[0]) if options.fits else {}
    config = resolve_config(options, fitted)
    require_covered(config)
    protocol = protocol_for(options.protocol, config)
    archive = open_archive(options, config, config.model.feature_dim)
    require_width(archive, config, chosen[0])
    training, validation, times = read_subsets(
        options, config, archive, chosen, protocol.windows, quiet=not processes.first
    )
    windows = TrainingWindows(archive, training.videos, config, protocol)
    if options.fits:
        preset = PRESETS[options.model][options.preset].train
        epochs = fitted_epochs(preset, config.train.batch_size, len(windows))
        config = resolve_config(options, fitted | {"train": epochs})
    used = [video.annotation.id for video in training.videos]
    config = replace(config, trained_on=times.base_of(used), recipe=times.recipe_of([*used, *validation.truth]))
    trainer = Trainer(config, protocol.losses, device, processes)
    output = Run(options.output, config, {"protocol": options.protocol, "windows": _digest(windows)})
    state = output.begin(resume=options.resume)
    if state is not None:
        trainer.restore(state, str(output.path("state")))
    epochs, done = config.train.epochs, len(output.rows)
    try:
        if processes.first:
            if note := native.missing_note():
                print(f"note: {note}", file=sys.stderr)
            _print_summary(options, config, training, validation, windows, trainer, done)
        _run_epochs(options, trainer, output, windows, archive, validation, times)
    except (KeyboardInterrupt, BrokenPipeError):
        if processes.first:
            print(
                f"{options.output} holds {len(output.rows)} of {count(epochs, 'epoch')}; continue with --resume",
                file=sys.stderr,
            )
        raise
    if processes.first:
        number = max(output.rows, key=lambda row: row["AUC"])["epoch"]
        print(f"{output.path('best')}: epoch {number:g}, validation AUC {output.best:.2f}")
        draw_curve(output.rows, output.folder)


def _run_epochs(
    options: TrainOptions,
    trainer: Trainer,
    output: Run,
    windows: TrainingWindows,
    archive: FeatureArchive,
    validation: Subset,
    times: TimeResolver,
) -> None:
    """Train and validate from the first epoch that is not in the output."""
    processes, device, done, epochs = trainer.processes, trainer.device, len(output.rows), trainer.config.train.epochs
    protocol = protocol_for(options.protocol, trainer.config)
    began = time.perf_counter()
    for epoch in range(done, epochs):
        started = time.perf_counter()
        losses = trainer.epoch(windows, epoch, options.workers)
        if not processes.first:
            continue
        row = {"epoch": epoch + 1, "learning_rate": trainer.learning_rate(epoch), **losses}
        # Validates the file that users get. The network has no name, so that its memory is freed after the call.
        checkpoint = output.save_last(trainer.weights())
        recall, failures = validate(
            load(checkpoint, device=device), archive, validation.truth, times, protocol, options.workers
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        row |= {f"AR@{an}": 100 * recall.at(an) for an in SHOWN_AN} | {"AUC": recall.auc}
        better = output.finish_epoch(row, trainer.weights(), trainer.state())
        numbers = ", ".join(f"{name} {row[name]:.2f}" for name in (*(f"AR@{an}" for an in SHOWN_AN), "AUC"))
        now = time.perf_counter()
        left = (now - began) / (epoch + 1 - done) * (epochs - epoch - 1)
        print(
            f"epoch {epoch + 1}/{epochs}: loss {losses['total']:.4f}, {numbers}{' (best)' if better else ''}, "
            f"{now - started:.0f} s" + (f", {clock(left)} left" if epoch + 1 < epochs else ""),
            flush=True,
        )
        for failure in failures:
            print(failure_line(failure.video, failure.reason), file=sys.stderr)


def _fitted(options: TrainOptions, config: Config, training: Mapping[str, VideoAnnotation]) -> Settings:
    archive = open_archive(options, config, None)
    times = options.time.resolver(config, archive, known=training)
    require_stride(options, times, with_features(archive, "training", training))
    return fitted_sizes(archive, training, times, stated(options, "model", "feature_dim"))


def _digest(windows: TrainingWindows) -> str:
    """SHA-256 of the windows and their instances."""
    digest = hashlib.sha256()
    for number, start in windows.windows:
        video = windows.videos[number]
        digest.update(f"{video.annotation.id} {start}\n".encode())
        digest.update(video.segments.tobytes())
    return digest.hexdigest()


def _print_summary(
    options: TrainOptions,
    config: Config,
    training: Subset,
    validation: Subset,
    windows: TrainingWindows,
    trainer: Trainer,
    done: int,
) -> None:
    lengths = np.concatenate([video.lengths() for video in training.videos])
    model, longer = config.model, int((lengths > config.model.max_duration).sum())
    steps, settings = len(trainer.batches(len(windows), done)), config.train
    decay = f", multiplied by {settings.decay_factor:g} every {count(settings.decay_every, 'epoch')}"
    decay = decay if settings.decay_every < settings.epochs else ""
    size = sum(parameter.numel() for parameter in trainer.parameters.values())
    validated = sum(len(video.annotation.instances) for video in validation.videos)
    constraint = "with" if model.background_constraint else "without"
    lines = [
        f"{model.name}, preset {config.preset}, {constraint} background constraint, protocol {options.protocol}: "
        f"{size / 1e6:.2f} M parameters, {trainer.device}, {count(trainer.processes.count, 'process')}",
        f"training: {count(len(training.videos), 'video')}, {count(len(lengths), 'instance')}, {len(windows)} of "
        f"{windows.considered} windows of {model.window} snippets (those that show an instance), "
        f"{count(steps, 'step')} per epoch",
        f"epochs: {settings.epochs}, learning rate {settings.learning_rate:g}{decay}",
        f"validation: {count(len(validation.videos), 'video')}, {count(validated, 'instance')}",
        f"training instances: half last up to {np.median(lengths):.1f} snippets, 95 % up to "
        f"{np.percentile(lengths, 95):.1f}, all up to {lengths.max():.1f}; {longer} are longer than model.max_duration "
        f"= {model.max_duration}",
    ]
    if done:
        lines.append(f"resumed: {done} of {config.train.epochs} epochs are already done")
    print("\n".join(lines), flush=True)
    for remark in training.remarks + validation.remarks:
        print(f"note: {remark}", file=sys.stderr)
