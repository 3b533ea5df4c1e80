"""Train BCNet, BMN or G-TAD on your own features: an archive of features and one annotation file, no code.

    python -m bcnet_fast.train --preset synthetic --output DIR
        a small network on synthetic videos that are made now, in minutes on two cores; with --annotations FILE they
        have number, lengths and gaps of instances from there, else from THUMOS14

    python -m bcnet_fast.train --model bcnet --preset thumos14 --features PATH --annotations FILE --output DIR \\
            --set model.feature_dim=1024 train.epochs=20
        the sizes of a preset, with some settings replaced

    python -m bcnet_fast.train --model bmn --preset synthetic --fit --features PATH --annotations FILE --output DIR
        a small network, its sizes by the length of your features and instances

    torchrun --nproc-per-node 2 -m bcnet_fast.train ...
        in several processes, one for each GPU; train.batch_size is that of all of them together

After every epoch the videos of the validation subset are run through inference. best.safetensors in DIR is the
checkpoint with the highest AUC (AN 1 to 100, tIoU 0.5:0.05:0.95), last.safetensors that of the last epoch; both are
what infer takes. log.csv has all losses and recalls. After an interruption the same command with --resume goes on.
docs/training.md has the whole way from features to numbers.

Exit code: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .cli import time_flags
from .cli.parser import Parser, run
from .config import Config, TrainConfig
from .data.annotations import VideoAnnotation, in_subset, read_annotations
from .data.features import FeatureArchive, iterate, open_features
from .data.synthetic import SyntheticConfig, make_videos, statistics_of, write_dataset
from .data.timing import TimeResolver
from .errors import InputError
from .inference.model import load, resolve_device
from .presets import PRESET_NAMES, PRESETS
from .progress import progress
from .protocols import NAMES, WindowRules, protocol_for
from .storage.files import read_toml, require_writable
from .training.dataset import Subset, TrainingWindows, check_subset, fitted_sizes
from .training.distributed import Processes
from .training.run_folder import Run, require_new
from .training.trainer import Trainer
from .training.validation import SHOWN_AN, validate

_KEPT_BYTES = 2 << 30  # of training features in memory; what does not fit is read anew for every window
_FEWEST_STEPS = 150  # of a fitted training
_SYNTHETIC_VIDEOS = {"training": 120, "validation": 40}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bcnet_fast.train", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--features", metavar="PATH", help="features of all videos; docs/formats.md has the layouts")
    data.add_argument(
        "--annotations",
        metavar="FILE",
        help="annotated instances, with subsets; without --features, those whose statistics the synthetic videos take",
    )
    data.add_argument(
        "--val-annotations", metavar="FILE", help="those of the validation videos, where they are in another file"
    )
    data.add_argument(
        "--train-subset", metavar="NAME", help="subset to train on (default: training; all of a file without subsets)"
    )
    data.add_argument("--val-subset", metavar="NAME", help="subset to validate on (default: validation, likewise)")

    system = parser.add_argument_group("system")
    system.add_argument("--model", choices=list(PRESETS), default="bcnet", help="the system")
    system.add_argument("--preset", choices=PRESET_NAMES, required=True, help="all settings to start from")
    system.add_argument(
        "--fit",
        action="store_true",
        help="take feature width, window and longest proposal from the data (95 %% of the instances are covered), and "
        f"where the preset's epochs are fewer than {_FEWEST_STEPS} steps, more epochs",
    )
    system.add_argument("--config", metavar="FILE.toml", help="settings that replace those of the preset")
    system.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.NAME=VALUE",
        help="settings that replace those of preset and file, such as model.window=128 or train.ema=0.999",
    )
    system.add_argument("--protocol", choices=NAMES, default="default", help="see docs/protocols.md")
    time_flags.add_arguments(parser)

    running = parser.add_argument_group("running")
    running.add_argument("--output", metavar="DIR", default="bcnet_train", help="folder for checkpoints and log")
    running.add_argument("--resume", action="store_true", help="go on with what is in --output, if anything is")
    running.add_argument("--device", default="auto", help="auto, cpu or cuda; auto takes a GPU where there is one")
    running.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read features")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.workers < 0:
        raise InputError(f"--workers: expected at least 0, found {args.workers}")
    config = resolve_config(args)
    device = _device_of_this_process(args.device)
    with Processes.join(device) as processes:
        if args.features is None:
            _make_synthetic(args, processes)
        elif args.annotations is None:
            raise InputError("--annotations: expected it beside --features, found none")
        return train(args, config, device, processes)


def resolve_config(args: argparse.Namespace, fitted: dict[str, Any] | None = None) -> Config:
    """The preset's settings, replaced by those of --fit, then of the TOML file, then of --set."""
    config = PRESETS[args.model][args.preset].override(fitted or {}, "--fit")
    if args.config:
        config = config.override(read_toml(args.config), args.config)
    return config.override(parse_settings(args.set), "--set")


def _require_covered(config: Config) -> None:
    """InputError where proposals are longer than a window, or windows leave gaps, as after changing just one size."""
    model, stride = config.model, config.data.window_stride
    if model.max_duration > model.window:
        raise InputError(
            f"model.max_duration: expected at most model.window {model.window}, found {model.max_duration}"
        )
    if not config.data.rescale and stride > model.window:
        raise InputError(f"data.window_stride: expected at most model.window {model.window}, found {stride}")


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """["section.name=value"] as {section: {name: value}}; a value is JSON, or a text when it is not."""
    values: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, name = name.partition(".")
        if not (section and dot and name and equals):
            raise InputError(f"--set: expected SECTION.NAME=VALUE, found {setting!r:.80}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        values.setdefault(section, {})[name] = value
    return values


def _device_of_this_process(name: str) -> torch.device:
    device = resolve_device(name)
    if device.type == "cuda" and ":" not in name and "LOCAL_RANK" in os.environ:
        # torchrun's number of this process on this machine.
        device = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _make_synthetic(args: argparse.Namespace, processes: Processes) -> None:
    """Write the synthetic data set below the output folder, as if the user had given it."""
    if args.preset != "synthetic":
        raise InputError("--features: expected a path, found none; only --preset synthetic makes its own videos")
    for flag in ("--val-annotations", "--val-subset"):
        if getattr(args, flag[2:].replace("-", "_")) is not None:
            raise InputError(f"{flag}: expected it beside --features, found none")
    if args.train_subset is not None and args.annotations is None:
        raise InputError("--train-subset: expected it beside --annotations, found none")
    if not args.resume:
        require_new(args.output)  # before the videos of a training that is there are replaced
    kind, like = SyntheticConfig(), "THUMOS14"
    if args.annotations is not None:
        real, like = read_annotations(args.annotations), args.annotations
        if args.train_subset is not None:
            real = in_subset(real, args.train_subset, args.annotations)
        kind = SyntheticConfig(**statistics_of(real.values(), args.annotations))
    args.train_subset = None
    folder = Path(args.output) / "data"
    args.features, args.annotations = str(folder / "features"), str(folder / "annotations.json")
    # A training that goes on has its videos already, and other ones must not take their place.
    if processes.first and not (args.resume and Path(args.annotations).exists()):
        require_writable(args.annotations)
        print(f"no --features: synthetic videos with the statistics of {like}", flush=True)
        videos = (make_videos(count, seed=0, subset=name, config=kind) for name, count in _SYNTHETIC_VIDEOS.items())
        total = sum(_SYNTHETIC_VIDEOS.values())
        write_dataset(folder, progress(itertools.chain(*videos), total, "videos made"))
    if processes.count > 1:
        dist.barrier()


def train(args: argparse.Namespace, config: Config, device: torch.device, processes: Processes) -> int:
    """The whole training; returns the exit code."""
    chosen = select_annotations(args, config)
    fitted = _fitted(args, config, chosen[0]) if args.fit else {}
    config = resolve_config(args, fitted)
    _require_covered(config)
    protocol = protocol_for(args.protocol, config)
    archive = _open(args, config, config.model.feature_dim)
    _require_width(archive, config, chosen[0])
    training, validation, times = read_subsets(
        args, config, archive, chosen, protocol.windows, quiet=not processes.first
    )
    windows = TrainingWindows(archive, training.videos, config, protocol)
    if args.fit:
        preset = PRESETS[args.model][args.preset].train
        config = resolve_config(args, fitted | {"train": fitted_epochs(preset, config.train.batch_size, len(windows))})
    trainer = Trainer(config, protocol.losses, device, processes)
    output = Run(args.output, config, {"protocol": args.protocol, "windows": _digest(windows)})
    state = output.begin(resume=args.resume)
    if state is not None:
        trainer.restore(state)
    epochs, done = config.train.epochs, len(output.rows)
    if processes.first:
        output.require_writable()
        _print_summary(args, config, training, validation, windows, trainer, done)
    for epoch in range(done, epochs):
        started = time.perf_counter()
        losses = trainer.epoch(windows, epoch, args.workers)
        if not processes.first:
            continue
        row = {"epoch": epoch + 1, "learning_rate": trainer.learning_rate(epoch), **losses}
        # What is validated is the very file that a user gets. No name holds the network, so that it ends with the call.
        checkpoint = output.save_last(trainer.weights())
        recall, failures = validate(
            load(checkpoint, device=device), archive, validation.truth, times, protocol, args.workers
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        row |= {f"AR@{an}": 100 * recall.at(an) for an in SHOWN_AN} | {"AUC": recall.auc}
        better = output.finish_epoch(row, trainer.weights(), trainer.state())
        shown = ", ".join(f"{name} {row[name]:.2f}" for name in (*(f"AR@{an}" for an in SHOWN_AN), "AUC"))
        print(
            f"epoch {epoch + 1}/{epochs}: loss {losses['total']:.4f}, {shown}{' (best)' if better else ''}, "
            f"{time.perf_counter() - started:.0f} s",
            flush=True,
        )
        for failure in failures:
            print(f"failed: {failure.video}: {failure.reason}", file=sys.stderr)
    if processes.first:
        number = max(output.rows, key=lambda row: row["AUC"])["epoch"]
        print(f"{output.path('best')}: epoch {number:g}, validation AUC {output.best:.2f}")
    return 0


def select_annotations(args: argparse.Namespace, config: Config) -> list[Mapping[str, VideoAnnotation]]:
    """Those of the training and of the validation videos."""
    paths = args.annotations, args.val_annotations or args.annotations
    prefix = config.data.strip_prefix
    files = {path: read_annotations(path, strip_prefix=prefix) for path in dict.fromkeys(paths)}
    return [
        _select(files[path], path, flag, wanted, name, alone=len(files) == 1)
        for path, flag, wanted, name in (
            (paths[0], "--train-subset", args.train_subset, "training"),
            (paths[1], "--val-subset", args.val_subset, "validation"),
        )
    ]


def _open(args: argparse.Namespace, config: Config, feature_dim: int | None) -> FeatureArchive:
    return open_features(
        args.features, feature_dim=feature_dim, every=args.every, strip_prefix=config.data.strip_prefix
    )


def _times(
    args: argparse.Namespace, config: Config, archive: FeatureArchive, known: Mapping[str, VideoAnnotation]
) -> TimeResolver:
    """When snippets happen: what --times says, else the annotations."""
    times = time_flags.time_resolver(args, config, archive)
    if not args.times:
        times.table = known
    return times


def _fitted(args: argparse.Namespace, config: Config, training: Mapping[str, VideoAnnotation]) -> dict[str, Any]:
    archive = _open(args, config, None)
    stated = [parse_settings(args.set), read_toml(args.config) if args.config else {}]
    widths = [settings.get("model", {}).get("feature_dim") for settings in stated]
    feature_dim = next((width for width in widths if width is not None), None)
    return fitted_sizes(archive, training, _times(args, config, archive, training), feature_dim)


def fitted_epochs(preset: TrainConfig, batch_size: int, windows: int) -> dict[str, int]:
    """Where the preset's epochs are too few steps: more, with the learning rate lowered at three quarters of them."""
    epochs = math.ceil(_FEWEST_STEPS / math.ceil(windows / batch_size))
    if epochs <= preset.epochs:
        return {}
    return {"epochs": epochs, "decay_every": math.ceil(0.75 * epochs)}


def _require_width(archive: FeatureArchive, config: Config, training: Mapping[str, VideoAnnotation]) -> None:
    """InputError, with the way out, when the first video has features of another width."""
    first = next((video for video in archive.ids if video in training), None)
    if first is None:
        return
    stored = archive.stored(first)
    if config.model.feature_dim not in stored.shape:
        raise InputError(
            f"{stored.path}: expected {config.model.feature_dim} channels, found shape {list(stored.shape)}; "
            "give --set model.feature_dim=C, or --fit"
        )


def read_subsets(
    args: argparse.Namespace,
    config: Config,
    archive: FeatureArchive,
    chosen: Sequence[Mapping[str, VideoAnnotation]],
    rules: WindowRules,
    *,
    quiet: bool,
) -> tuple[Subset, Subset, TimeResolver]:
    """Both subsets with every video looked at, and when their snippets happen."""
    times = _times(args, config, archive, {**chosen[1], **chosen[0]})
    subsets = []
    for name, videos, kept in zip(("training", "validation"), chosen, (_KEPT_BYTES, 0), strict=True):
        here = [video for video in archive.ids if video in videos]
        if not here:
            raise InputError(
                f"{args.features}: expected {name} videos, such as {next(iter(videos))!r}, "
                f"found {len(archive.ids)} others, such as {archive.ids[0]!r}"
            )
        loaded = progress(iterate(archive, here, workers=args.workers), len(here), f"{name} videos read", hidden=quiet)
        subsets.append(check_subset(name, videos, loaded, times, rules, kept_bytes=kept))
    ids = [video for subset in subsets for video in subset.truth]
    if not quiet and not config.data.rescale and any(times.facts(video).row_stride is None for video in ids):
        stride = f"{config.data.stride:g} video frames apart, as {config.preset} has it"
        print(f"note: nothing states --stride; rows are taken to be {stride}", file=sys.stderr)
    return *subsets, times


def _select(
    annotations: Mapping[str, VideoAnnotation], path: str, flag: str, wanted: str | None, usual: str, *, alone: bool
) -> Mapping[str, VideoAnnotation]:
    """The videos of a subset; of a file without subsets all, unless it would serve for training and validation both."""
    if wanted is None and not alone and not any(video.subset for video in annotations.values()):
        return annotations
    try:
        return in_subset(annotations, wanted or usual, path)
    except InputError as error:
        raise InputError(f"{error} (choose with {flag}, or give --val-annotations)") from error


def _digest(windows: TrainingWindows) -> str:
    """Of which windows there are and what their instances are."""
    digest = hashlib.sha256()
    for number, start in windows.windows:
        video = windows.videos[number]
        digest.update(f"{video.annotation.id} {start}\n".encode())
        digest.update(video.segments.tobytes())
    return digest.hexdigest()


def _print_summary(
    args: argparse.Namespace,
    config: Config,
    training: Subset,
    validation: Subset,
    windows: TrainingWindows,
    trainer: Trainer,
    done: int,
) -> None:
    lengths = np.concatenate([video.lengths() for video in training.videos])
    model, longer = config.model, int((lengths > config.model.max_duration).sum())
    steps = len(trainer.batches(len(windows), done))
    size = sum(parameter.numel() for parameter in trainer.parameters.values())
    constraint = "with" if model.background_constraint else "without"
    lines = [
        f"{model.name}, preset {config.preset}, {constraint} background constraint, protocol {args.protocol}: "
        f"{size / 1e6:.2f} M parameters, {trainer.device}, {trainer.processes.count} processes",
        f"training: {len(training.videos)} videos, {len(lengths)} instances, {len(windows)} of {windows.considered} "
        f"windows of {model.window} snippets (those that show an instance), {steps} steps an epoch",
        f"validation: {len(validation.videos)} videos, "
        f"{sum(len(video.annotation.instances) for video in validation.videos)} instances",
        f"instances of the training: half last up to {np.median(lengths):.1f} snippets, 95 % up to "
        f"{np.percentile(lengths, 95):.1f}, all up to {lengths.max():.1f}; {longer} are longer than model.max_duration "
        f"= {model.max_duration}",
    ]
    if done:
        lines.append(f"resumed: {done} of {config.train.epochs} epochs are done already")
    print("\n".join(lines), flush=True)
    for remark in training.remarks + validation.remarks:
        print(f"note: {remark}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
