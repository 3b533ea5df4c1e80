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

import json
import sys
from typing import Any

from .cli import time_flags
from .cli.parser import Parser, command_parser, require_at_least, run
from .errors import InputError
from .presets import PRESET_NAMES, PRESETS
from .protocols import NAMES
from .training.options import FEWEST_STEPS, Settings, TrainOptions
from .training.run import train


def build_parser() -> Parser:
    parser = command_parser("train", __doc__)
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
    system.add_argument("--model", choices=list(PRESETS), default=TrainOptions.model, help="the system")
    system.add_argument("--preset", choices=PRESET_NAMES, required=True, help="all settings to start from")
    system.add_argument(
        "--fit",
        action="store_true",
        help="take feature width, window and longest proposal from the data (95 %% of the instances are covered), and "
        f"where the preset's epochs are fewer than {FEWEST_STEPS} steps, more epochs",
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
    system.add_argument("--protocol", choices=NAMES, default=TrainOptions.protocol, help="see docs/protocols.md")
    time_flags.add_arguments(parser)

    running = parser.add_argument_group("running")
    running.add_argument("--output", metavar="DIR", default=TrainOptions.output, help="folder for checkpoints and log")
    running.add_argument("--resume", action="store_true", help="go on with what is in --output, if anything is")
    running.add_argument(
        "--device", default=TrainOptions.device, help="auto, cpu or cuda; auto takes a GPU where there is one"
    )
    running.add_argument(
        "--workers", type=int, default=TrainOptions.workers, metavar="N", help="processes that read features"
    )
    return parser


def parse(argv: list[str]) -> TrainOptions:
    """The options of a training. InputError for a flag that is missing or out of range."""
    values = vars(build_parser().parse_args(argv))
    settings = _parse_settings(values.pop("set"))
    options = TrainOptions(time=time_flags.take_options(values), settings=settings, **values)
    require_at_least(options, workers=0)
    return options


def _parse_settings(settings: list[str]) -> Settings:
    """["section.name=value"] as {section: {name: value}}; a value is JSON, or a text when it is not."""
    values: Settings = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, name = name.partition(".")
        if not (section and dot and name and equals):
            raise InputError(f"--set: expected SECTION.NAME=VALUE, found {setting!r:.80}")
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError:
            value = text
        values.setdefault(section, {})[name] = value
    return values


def main(argv: list[str] | None = None) -> int:
    train(parse(sys.argv[1:] if argv is None else argv))
    return 0


if __name__ == "__main__":
    run(main)
