"""Convert public checkpoints of BCNet, BMN and G-TAD into one safetensors file.

    python -m bcnet_fast.convert --bpm BPM.pth.tar --abi ABI.pth.tar --output bcnet.safetensors
    python -m bcnet_fast.convert --bmn BMN_best.pth.tar --preset activitynet13 --output bmn.safetensors
    python -m bcnet_fast.convert --gtad GTAD_best.pth.tar --preset thumos14 --output gtad.safetensors

The releases store {'epoch', 'state_dict'}; BCNet's has a file for each of its two networks, BPM (boundary prediction)
and ABI (action-background interaction). BMN is also read from mmaction2's checkpoints. Sizes, and which of the two maps
a BMN has, are told from the weights; window and post-processing are those of the preset. Nothing in the files is
executed: they are read with weights_only=True.
"""

from __future__ import annotations

from .cli.parser import Parser, command_parser, run
from .geometry.proposal_map import layout_of
from .networks.releases import ConvertOptions, convert
from .presets import DATA_SETS


def build_parser() -> Parser:
    parser = command_parser("convert", __doc__)
    parser.add_argument("--bpm", metavar="FILE", help="BCNet's checkpoint of boundary prediction; with --abi")
    parser.add_argument("--abi", metavar="FILE", help="BCNet's checkpoint of the interaction module; with --bpm")
    parser.add_argument("--bmn", metavar="FILE", help="checkpoint of BMN, of its public release or of mmaction2")
    parser.add_argument("--gtad", metavar="FILE", help="checkpoint of G-TAD's public release")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument(
        "--preset", choices=DATA_SETS, help="what the network was trained for; thumos14 for BCNet if not given"
    )
    return parser


def parse(argv: list[str] | None) -> ConvertOptions:
    """The options of a conversion. InputError for flags that do not go together."""
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    given = [flag for flag in ("bpm", "abi", "bmn", "gtad") if values[flag] is not None]
    if given not in (["bpm", "abi"], ["bmn"], ["gtad"]):
        found = ", ".join(f"--{flag}" for flag in given) or "none of them"
        parser.error(f"expected --bpm with --abi, or --bmn, or --gtad; found {found}")
    if values["preset"] is None:
        if given != ["bpm", "abi"]:
            parser.error(f"--preset: expected one of {', '.join(DATA_SETS)} with --{given[0]}, found none")
        values["preset"] = "thumos14"
    return ConvertOptions(**values)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    converted = convert(options)
    model = converted.config.model
    layout = "" if model.name == "bcnet" else f", map {layout_of(model)}"
    print(
        f"{converted.path}: {converted.tensors} tensors, {converted.values / 1e6:.1f} M values, {model.name} for "
        f"{options.preset}, C = {model.feature_dim}, T = {model.window}{layout}"
    )
    return 0


if __name__ == "__main__":
    run(main)
