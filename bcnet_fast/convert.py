"""Convert the public BCNet release's two checkpoints into one safetensors file.

    python -m bcnet_fast.convert --bpm BPM.pth.tar --abi ABI.pth.tar --output bcnet.safetensors

The release stores {'epoch', 'state_dict'} for each of its two networks, BPM (boundary prediction) and ABI
(action-background interaction). Nothing in them is executed: they are read with weights_only=True.
"""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ._cli import Parser, run
from .checkpoint import check_state, save_checkpoint
from .config import DATA_SETS, PRESETS, Config
from .errors import InputError
from .files import require_file, require_writable
from .reference.bcnet import BCNet

# The release's ABI network holds a clip-level embedding that its forward pass never reads.
UNUSED = {"abi.query.weight"}


def read_release(path: str | os.PathLike) -> dict[str, Tensor]:
    """The state dict of a released `.pth.tar`, without the prefix that DataParallel gave its keys."""
    path = require_file(path, "a released checkpoint (.pth.tar)")
    expected = "a PyTorch file {'epoch', 'state_dict'} that holds tensors only"
    try:
        with warnings.catch_warnings():
            # PyTorch warns of pickle protocols that it reads all the same.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: expected {expected}, found a damaged file or other objects than tensors") from error
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError(f"{path}: expected {expected}, found a damaged or foreign file") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: expected {expected}, found {found}")
    state = content["state_dict"]
    foreign = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if foreign:
        raise InputError(
            f"{path}: expected only named tensors in state_dict, found something else at {', '.join(foreign)}"
        )
    return {key.removeprefix("module."): value.float() for key, value in state.items()}


def convert_bcnet(bpm: str | os.PathLike, abi: str | os.PathLike, config: Config) -> dict[str, Tensor]:
    """Both released state dicts as one state dict of `reference.bcnet.BCNet`, checked key by key.

    The positional encodings in the files are kept, cut to the rows in use, because their last bits depend on the
    machine that made them; files without them get them rebuilt. InputError lists keys that do not fit.
    """
    network = BCNet(config.model)
    state = {}
    for part, path, keys_of_other in (("bpm", bpm, "frame_model."), ("abi", abi, "bpm_base.")):
        module = network.get_submodule(part)
        stored = {key: value for key, value in read_release(path).items() if f"{part}.{key}" not in UNUSED}
        if any(key.startswith(keys_of_other) for key in stored):
            raise InputError(f"{path}: expected the {part.upper()} network, found the other one; swap --bpm and --abi")
        for key, table in module.state_dict().items():
            if key.endswith(".pe"):
                given = stored.get(key, table)
                stored[key] = given[: len(table)] if given.ndim else given  # a number is for check_state to refuse
        check_state(module, stored, str(path))
        state |= {f"{part}.{key}": value for key, value in stored.items()}
    return state


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bcnet_fast.convert", description=__doc__)
    parser.add_argument("--bpm", required=True, metavar="FILE", help="released checkpoint of boundary prediction")
    parser.add_argument("--abi", required=True, metavar="FILE", help="released checkpoint of the interaction module")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--preset", choices=DATA_SETS, default="thumos14", help="sizes that the weights have")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if Path(args.output).suffix != ".safetensors":
        raise InputError(f"--output {args.output}: expected a name that ends in .safetensors")
    output = require_writable(args.output)
    config = PRESETS["bcnet"][args.preset]
    state = convert_bcnet(args.bpm, args.abi, config)
    save_checkpoint(output, state, config)
    print(f"{output}: {len(state)} tensors, {sum(t.numel() for t in state.values()) / 1e6:.1f} M values, {args.preset}")
    return 0


if __name__ == "__main__":
    run(main)
