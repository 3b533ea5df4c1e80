"""Convert public checkpoints of BCNet, BMN, G-TAD, P-GCN and MUSES-Net to one safetensors file.

    python -m bcnet_fast.convert --bpm BPM.pth.tar --abi ABI.pth.tar --output bcnet.safetensors
    python -m bcnet_fast.convert --bmn BMN_best.pth.tar --preset activitynet13 --output bmn.safetensors
    python -m bcnet_fast.convert --gtad GTAD_best.pth.tar --preset thumos14 --output gtad.safetensors
    python -m bcnet_fast.convert --pgcn PGCN_best.pth.tar --output pgcn.safetensors
    python -m bcnet_fast.convert --muses MUSES_best.pth.tar --output muses.safetensors

The releases store {'epoch', 'state_dict'}. BCNet has one file for each of its two networks, BPM (boundary prediction)
and ABI (action-background interaction). BMN may also come from mmaction2. Sizes and the map layout of BMN follow from
the weights; window and post-processing are those of the preset. P-GCN and MUSES-Net keep `reg_stats`. They need no
preset where their number of classes tells it. No code in the files runs: weights_only=True.
"""

from __future__ import annotations

import sys

from .cli.parser import Parser, command_parser, run
from .config import BMNConfig, GTADConfig, ModelConfig, SecondStageConfig
from .geometry.proposal_map import layout_of
from .networks.releases import ConvertOptions, convert
from .presets import DATA_SETS
from .text import count


def build_parser() -> Parser:
    parser = command_parser("convert", __doc__)
    parser.add_argument("--bpm", metavar="FILE", help="BCNet checkpoint of the boundary prediction; requires --abi")
    parser.add_argument("--abi", metavar="FILE", help="BCNet checkpoint of the interaction module; requires --bpm")
    parser.add_argument("--bmn", metavar="FILE", help="BMN checkpoint of the public release or of mmaction2")
    parser.add_argument("--gtad", metavar="FILE", help="G-TAD checkpoint of the public release")
    parser.add_argument("--pgcn", metavar="FILE", help="P-GCN checkpoint of the public release")
    parser.add_argument("--muses", metavar="FILE", help="MUSES-Net checkpoint of the public release")
    parser.add_argument("--output", required=True, metavar="FILE", help=".safetensors file to write")
    parser.add_argument(
        "--preset",
        choices=(*DATA_SETS, "muses"),
        help="data set that it was trained on (default: BCNet thumos14; P-GCN and MUSES-Net by number of classes)",
    )
    return parser


def parse(argv: list[str] | None) -> ConvertOptions:
    """Parse flags to options. InputError: flags are missing or contradict each other."""
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    stated = [flag for flag in ("bpm", "abi", "bmn", "gtad", "pgcn", "muses") if values[flag] is not None]
    if stated not in (["bpm", "abi"], ["bmn"], ["gtad"], ["pgcn"], ["muses"]):
        found = ", ".join(f"--{flag}" for flag in stated) or "none"
        parser.error(f"flags of weights: {found}; expected --bpm and --abi, or --bmn, --gtad, --pgcn or --muses")
    if values["preset"] is None and stated not in (["pgcn"], ["muses"]):
        if stated != ["bpm", "abi"]:
            parser.error(f"--preset is required with --{stated[0]}: {' or '.join(DATA_SETS)}")
        values["preset"] = "thumos14"
    return ConvertOptions(**values)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    converted = convert(options)
    model = converted.config.model
    if isinstance(model, ModelConfig):
        layout = f", map {layout_of(model)}" if isinstance(model, BMNConfig | GTADConfig) else ""
        sizes = f"C = {model.feature_dim}, T = {model.window}{layout}"
    else:
        sizes = f"C = {model.feature_dim}, K = {model.classes}"
    print(
        f"{converted.path}: {count(converted.tensors, 'tensor')}, {converted.values / 1e6:.1f} M values, "
        f"{model.name} for {converted.config.preset}, {sizes}"
    )
    if isinstance(converted.config, SecondStageConfig) and converted.config.regression is None:
        print(
            f"{converted.path}: the checkpoint has no reg_stats, so its regression cannot be applied", file=sys.stderr
        )
    return 0


if __name__ == "__main__":
    run(main)
