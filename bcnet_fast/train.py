"""Train BCNet, BMN, G-TAD, P-GCN or MUSES-Net on your own features: a feature archive and one annotation file.

    python -m bcnet_fast.train --preset small --features PATH --annotations FILE --output DIR
        train a small network on your own features, of any width; its sizes follow from the features and instances

    python -m bcnet_fast.train --preset synthetic --output DIR
        train a small network on generated videos, in minutes on two cores; number, lengths and gaps of their instances
        follow --annotations FILE, or else THUMOS14

    python -m bcnet_fast.train --model bcnet --preset thumos14 --features PATH --annotations FILE --output DIR \\
            --epochs 20 --set model.feature_dim=1024 train.ema=0.999
        start from the network of the paper and override some settings

    python -m bcnet_fast.train --model bmn --preset small --list-settings
        print every setting with its default and meaning

    python -m bcnet_fast.train --preset small --videos DIR --recipe NAME --annotations FILE --output DIR
        the same from videos: docs/how_to/video.md

    python -m bcnet_fast.train --model pgcn --preset small --proposals FILE --features PATH --annotations FILE \\
            --output DIR
        train a second stage, pgcn or muses, that gives proposals classes and better boundaries; FILE is a result of
        infer, a proposal list of the public codes, or the checkpoint of a network that makes the proposals first

    torchrun --nproc-per-node 2 -m bcnet_fast.train ...
        train in several processes, one per GPU; the batch size is the total over all processes

Each epoch ends with inference on the validation subset. DIR then contains best.safetensors, the checkpoint with the
highest AUC (AN 1 to 100, tIoU 0.5:0.05:0.95), of a second stage the highest mAP, last.safetensors, that of the last
epoch, log.csv with all losses and figures, and learning_curve.png. Both checkpoints work with infer, those of a second
stage with infer --refine and refine. To continue after an interruption, add --resume to
the same command. docs/training.md describes every step from features to numbers.

Exit code: 0 success, 2 bad input, 130, 141 or 143 interrupted by Ctrl-C, a closed pipe or SIGTERM.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from .bounds import MOST_PROCESSES
from .cli import read_flags, time_flags, video_flags
from .cli.parser import Parser, command_parser, require_in_bounds, run
from .cli.settings import list_settings
from .config import section_kinds
from .errors import InputError
from .presets import FITTED, PRESET_NAMES, PRESETS, SECOND_STAGE_PRESETS
from .protocols import NAMES
from .settings import setting_names
from .text import alternatives
from .training.options import FEWEST_STEPS, Settings, TrainOptions
from .training.run import train

# Settings of the section train that have a flag of their own.
SHORT = ("epochs", "batch_size", "learning_rate", "seed")


def build_parser() -> Parser:
    parser = command_parser("train", __doc__, ("features", "annotations", "val_annotations", "times"))
    data = parser.add_argument_group("data")
    data.add_argument("--features", metavar="PATH", help="features of all videos; layouts: docs/formats.md")
    data.add_argument(
        "--videos",
        nargs="+",
        default=(),
        metavar="VIDEO",
        help="video files, folders, and .txt lists of them, instead of --features; their features are kept in "
        "--keep-features, or else in --output",
    )
    data.add_argument(
        "--annotations",
        metavar="FILE",
        help="annotated instances with subsets; without --features, the source of statistics for the synthetic videos",
    )
    data.add_argument(
        "--val-annotations", metavar="FILE", help="annotations of the validation videos, if they are in another file"
    )
    data.add_argument(
        "--train-subset",
        metavar="NAME",
        help="subset to train on (default: training, or all videos of a file without subsets)",
    )
    data.add_argument(
        "--val-subset",
        metavar="NAME",
        help="subset to validate on (default: validation, or all videos of a file without subsets)",
    )

    second = parser.add_argument_group("second stage (pgcn and muses)")
    second.add_argument(
        "--proposals",
        metavar="FILE",
        help="proposals of all videos: a result file, a proposal list, or a checkpoint that makes them",
    )
    second.add_argument(
        "--val-proposals", metavar="FILE", help="proposals of the validation videos, if they are in another file"
    )
    second.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes in their order, one a line (default: those of the annotations, sorted)",
    )

    system = parser.add_argument_group("system")
    system.add_argument("--model", choices=[*PRESETS, *SECOND_STAGE_PRESETS], default=TrainOptions.model, help="system")
    system.add_argument(
        "--preset",
        choices=(*PRESET_NAMES, "muses"),
        help="settings to start from: thumos14, activitynet13 and muses are the networks of the papers, small is one "
        "for your own features, synthetic the same one for generated videos",
    )
    system.add_argument(
        "--fit",
        action="store_true",
        help="choose feature width, window and longest proposal from the data, to cover 95 %% of the instances (of a "
        f"second stage: width and classes), and more epochs if those of the preset are fewer than {FEWEST_STEPS} "
        f"steps; --preset {FITTED} always does",
    )
    system.add_argument("--config", metavar="FILE.toml", help="settings that override the preset")
    system.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.NAME=VALUE",
        help="settings that override preset, --fit and file, such as model.window=128 or train.ema=0.999",
    )
    system.add_argument(
        "--list-settings",
        action="store_true",
        help="print every setting of --model and --preset with its default and meaning, and exit",
    )
    system.add_argument(
        "--protocol",
        choices=NAMES,
        default=TrainOptions.protocol,
        help="rules for windows, labels and losses: docs/protocols.md",
    )
    short = parser.add_argument_group("short names of settings (they override preset, --fit and file)")
    short.add_argument("--epochs", type=int, metavar="N", help="train.epochs")
    short.add_argument("--batch-size", type=int, metavar="N", help="train.batch_size: windows, or videos, in a step")
    short.add_argument("--learning-rate", type=float, metavar="R", help="train.learning_rate")
    short.add_argument("--seed", type=int, metavar="N", help="train.seed")
    time_flags.add_arguments(parser)
    read_flags.add_arguments(parser)
    video_flags.add_arguments(parser)

    running = parser.add_argument_group("running")
    running.add_argument("--output", metavar="DIR", default=TrainOptions.output, help="folder for checkpoints and log")
    running.add_argument("--resume", action="store_true", help="continue the training in --output, if there is one")
    running.add_argument(
        "--device", default=TrainOptions.device, help="auto, cpu or cuda; auto uses a GPU if there is one"
    )
    running.add_argument(
        "--workers", type=int, default=TrainOptions.workers, metavar="N", help="processes that read features or videos"
    )
    return parser


def parse(argv: list[str]) -> TrainOptions:
    """Parse flags to options. InputError: a flag is missing, out of range or contradicts another."""
    return _options(vars(build_parser().parse_args(argv)))


def _options(values: dict[str, Any]) -> TrainOptions:
    del values["list_settings"]
    if values["preset"] is None:
        raise InputError(f"--preset is required: {FITTED} for your own features, synthetic for generated videos")
    _require_flags_of_model(values)
    settings = _parse_settings(values.pop("set"), values["model"])
    for name in SHORT:
        value = values.pop(name)
        if value is not None:
            _state(settings, name, value)
    network, read = video_flags.take_options(values, values["device"])
    options = TrainOptions(
        network=network,
        read=read,
        videos=tuple(values.pop("videos")),
        time=time_flags.take_options(values),
        limits=read_flags.take_limits(values),
        settings=settings,
        **values,
    )
    require_in_bounds(options, workers=(0, MOST_PROCESSES))
    return options


def _require_flags_of_model(values: dict[str, Any]) -> None:
    """InputError: a preset or flag is of another system."""
    model, presets = values["model"], _presets(values["model"])
    if values["preset"] not in presets:
        raise InputError(f"--preset is {values['preset']}, expected {alternatives(presets)} with --model {model}")
    for name in ("proposals", "val_proposals", "classes"):
        if values[name] is not None and model not in SECOND_STAGE_PRESETS:
            flag, systems = name.replace("_", "-"), alternatives(SECOND_STAGE_PRESETS)
            raise InputError(f"--{flag} is {values[name]}, expected no value with --model {model}; {systems} reads it")


def _presets(model: str) -> dict[str, Any]:
    return {**PRESETS, **SECOND_STAGE_PRESETS}[model]


def _state(settings: Settings, name: str, value: float) -> None:
    """Add the value of a flag to the settings. InputError: it is out of range, or --set states another one."""
    flag = name.replace("_", "-")
    lowest = 0 if name == "seed" else 1
    if name == "learning_rate":
        if not 0 < value < math.inf:
            raise InputError(f"--{flag} is {value:g}, expected a number above 0")
    elif value < lowest:
        raise InputError(f"--{flag} is {value}, expected at least {lowest}")
    stated = settings.setdefault("train", {}).setdefault(name, value)
    if stated != value:
        raise InputError(f"--{flag} is {value:g}, but --set train.{name}={stated}: expected only one of them")


def _parse_settings(settings: list[str], model: str) -> Settings:
    """Turn ["section.name=value"] into {section: {name: value}}. A value is JSON, or else text."""
    values: Settings = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, name = name.partition(".")
        if not (section and dot and name and equals):
            known = [full for full in setting_names(section_kinds(model)) if full.endswith(f".{section}")]
            hint = f"; did you mean {known[0]}={text}?" if known and equals and not dot else ""
            raise InputError(f"--set is {setting!r:.80}, expected SECTION.NAME=VALUE{hint}")
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError:
            value = text
        except (ValueError, RecursionError) as error:
            raise InputError(f"--set {section}.{name} is {text!r:.80}, expected fewer digits or levels") from error
        values.setdefault(section, {})[name] = value
    return values


def main(argv: list[str] | None = None) -> int:
    values = vars(build_parser().parse_args(sys.argv[1:] if argv is None else argv))
    if values["list_settings"]:
        _require_flags_of_model(values := values | {"preset": values["preset"] or FITTED})
        print(list_settings(_presets(values["model"])[values["preset"]]))
    else:
        train(_options(values))
    return 0


if __name__ == "__main__":
    run(main)
