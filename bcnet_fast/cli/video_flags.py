"""Flags that choose how features are made of videos, the same in every command that reads videos."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..bounds import MOST_PROCESSES
from ..recipe import FLOWS
from ..video.backbones import SPECS
from ..video.decoding import DECODERS
from ..video.extraction import ReadOptions
from ..video.run import NetworkOptions
from ..video.torchcodec_frames import require_torchcodec
from .parser import require_in_bounds


def add_arguments(parser: argparse.ArgumentParser, *, alone: bool = False) -> None:
    """Add the flags.

    alone: also add --flow, --clip, --stride, --frame-rate and --device. Commands that read features lack them: there
        they have another meaning or exist already.
    """
    network = parser.add_argument_group("recipe and network (docs/how_to/video.md)")
    network.add_argument(
        "--recipe",
        metavar="NAME",
        help="sampling and pixels: a name of `extract --list`, or a .toml file; NAME+NAME puts streams side by side",
    )
    network.add_argument(
        "--backbone",
        action="append",
        default=[],
        metavar="SPEC",
        help=f"network: {SPECS}; with several streams, once for each, in their order",
    )
    network.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="FILE",
        help="weights for the network of a library (.safetensors, .pt, .pth), or random; default: its own",
    )
    network.add_argument(
        "--flow-weights", metavar="FILE", help="weights of RAFT, of a recipe with its flow, or random; default: its own"
    )
    network.add_argument(
        "--trust-backbone", action="store_true", help="run a torchscript or export file, which is a program"
    )
    if alone:
        network.add_argument("--clip", type=int, metavar="N", help="frames of a row, instead of the recipe's")
        network.add_argument("--stride", type=int, metavar="N", help="frames from one row to the next")
        network.add_argument("--flow", choices=FLOWS, help="optical flow, instead of the recipe's: %(choices)s")
        network.add_argument("--frame-rate", type=float, metavar="F", help="frames a second that are sampled")
        network.add_argument(
            "--device", default=NetworkOptions.device, help="auto, cpu or cuda; auto uses a GPU if there is one"
        )
    else:
        network.add_argument(
            "--keep-features", metavar="DIR", help="folder for the features of the videos, to use them again"
        )
    reading = parser.add_argument_group("reading videos")
    reading.add_argument(
        "--clips",
        type=int,
        default=ReadOptions.clips,
        metavar="N",
        help="clips in a call of the network on a GPU; features on the CPU do not depend on it",
    )
    reading.add_argument(
        "--decoder-threads", type=int, default=ReadOptions.decoder_threads, metavar="N", help="0: one for each core"
    )
    reading.add_argument(
        "--decoder", choices=DECODERS, default=ReadOptions.decoder, help="torchcodec: where it fits PyTorch and FFmpeg"
    )
    reading.add_argument(
        "--allow-truncated", action="store_true", help="take what is there of a file that ends before its stated end"
    )


def take_options(values: dict[str, Any], device: str | None = None) -> tuple[NetworkOptions, ReadOptions]:
    """Remove the flags of `add_arguments` from parsed values. InputError: a flag is out of range.

    device: the value of the command's own --device; None: the command has none.
    """
    names = ["recipe", "flow_weights", "trust_backbone"]
    names += [] if device else ["flow", "clip", "stride", "frame_rate", "device"]
    stated: dict[str, Any] = {name: values.pop(name) for name in names}
    stated |= {name: tuple(values.pop(name)) for name in ("backbone", "weights")}
    if device:
        stated["device"] = device
    network = NetworkOptions(**stated)
    read = ReadOptions(**{each.name: values.pop(each.name) for each in dataclasses.fields(ReadOptions)})
    require_in_bounds(network, clip=1, stride=1)
    require_in_bounds(read, clips=1, decoder_threads=(0, MOST_PROCESSES))
    if read.decoder == "torchcodec":
        require_torchcodec()
    return network, read
