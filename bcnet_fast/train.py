"""Train BCNet, BMN or G-TAD on your own features: a feature archive and one annotation file.

    python -m bcnet_fast.train --preset synthetic --output DIR
        train a small network on generated videos, in minutes on two cores; number, lengths and gaps of their instances
        follow --annotations FILE, or else THUMOS14

    python -m bcnet_fast.train --model bcnet --preset thumos14 --features PATH --annotations FILE --output DIR \\
            --set model.feature_dim=1024 train.epochs=20
        start from a preset and override some settings

    python -m bcnet_fast.train --model bmn --preset synthetic --fit --features PATH --annotations FILE --output DIR
        train a small network whose sizes follow from your features and instances

    torchrun --nproc-per-node 2 -m bcnet_fast.train ...
        train in several processes, one per GPU; train.batch_size is the total over all processes

Each epoch ends with inference on the validation subset. DIR then contains best.safetensors, the checkpoint with the
highest AUC (AN 1 to 100, tIoU 0.5:0.05:0.95), last.safetensors, that of the last epoch, and log.csv with all losses and
recalls. Both checkpoints work with infer. To continue after an interruption, add --resume to the same command.
docs/training.md describes every step from features to numbers.

Exit code: 0 success, 2 bad input.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from .cli import read_flags, time_flags
from .cli.parser import Parser, command_parser, require_at_least, run
from .errors import InputError
from .presets import PRESET_NAMES, PRESETS
from .protocols import NAMES
from .training.options import FEWEST_STEPS, Settings, TrainOptions
from .training.run import train


def build_parser() -> Parser:
    parser = command_parser("train", __doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--features", metavar="PATH", help="features of all videos; layouts: docs/formats.md")
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

    system = parser.add_argument_group("system")
    system.add_argument("--model", choices=list(PRESETS), default=TrainOptions.model, help="system")
    system.add_argument("--preset", choices=PRESET_NAMES, required=True, help="settings to start from")
    system.add_argument(
        "--fit",
        action="store_true",
        help="choose feature width, window and longest proposal from the data, to cover 95 %% of the instances, and "
        f"more epochs if those of the preset are fewer than {FEWEST_STEPS} steps",
    )
    system.add_argument("--config", metavar="FILE.toml", help="settings that override the preset")
    system.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.NAME=VALUE",
        help="settings that override preset and file, such as model.window=128 or train.ema=0.999",
    )
    system.add_argument(
        "--protocol",
        choices=NAMES,
        default=TrainOptions.protocol,
        help="rules for windows, labels and losses: docs/protocols.md",
    )
    time_flags.add_arguments(parser)
    read_flags.add_arguments(parser)

    running = parser.add_argument_group("running")
    running.add_argument("--output", metavar="DIR", default=TrainOptions.output, help="folder for checkpoints and log")
    running.add_argument("--resume", action="store_true", help="continue the training in --output, if there is one")
    running.add_argument(
        "--device", default=TrainOptions.device, help="auto, cpu or cuda; auto uses a GPU if there is one"
    )
    running.add_argument(
        "--workers", type=int, default=TrainOptions.workers, metavar="N", help="processes that read features"
    )
    return parser


def parse(argv: list[str]) -> TrainOptions:
    """Parse flags to options. InputError: a flag is missing or out of range."""
    values = vars(build_parser().parse_args(argv))
    settings = _parse_settings(values.pop("set"))
    options = TrainOptions(
        time=time_flags.take_options(values), limits=read_flags.take_limits(values), settings=settings, **values
    )
    require_at_least(options, workers=0)
    return options


def _parse_settings(settings: list[str]) -> Settings:
    """Turn ["section.name=value"] into {section: {name: value}}. A value is JSON, or else text."""
    values: Settings = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, name = name.partition(".")
        if not (section and dot and name and equals):
            raise InputError(f"--set is {setting!r:.80}, expected SECTION.NAME=VALUE")
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError:
            value = text
        except (ValueError, RecursionError) as error:
            raise InputError(f"--set {section}.{name} is {text!r:.80}, expected fewer digits or levels") from error
        values.setdefault(section, {})[name] = value
    return values


def main(argv: list[str] | None = None) -> int:
    train(parse(sys.argv[1:] if argv is None else argv))
    return 0


if __name__ == "__main__":
    run(main)
