"""Public checkpoints of BCNet, BMN and G-TAD as weights of the networks here.

The releases store {'epoch', 'state_dict'}; BCNet's has a file for each of its two networks, BPM (boundary prediction)
and ABI (action-background interaction). BMN is also read from mmaction2's checkpoints. Nothing in the files is
executed: they are read with weights_only=True.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from ..errors import InputError
from ..presets import PRESETS
from ..storage.checkpoint import check_state, save_checkpoint
from ..storage.files import require_file, require_writable
from .reference import NETWORKS
from .reference.bcnet import BCNet
from .reference.bmn import sampling_matrix
from .reference.layers import shapes_only

# The release's ABI network holds a clip-level embedding that its forward pass never reads.
UNUSED = {"abi.query.weight"}
OPENTAD = "OpenTAD"
# By what the names of some parameters begin with, whose weights a file has.
KINDS = {
    "x_1d_b.": "BMN",
    "backbone1.": "G-TAD",
    "bpm_base.": "BCNet (BPM)",
    "frame_model.": "BCNet (ABI)",
    "roi_head.proposal_roi_extractor.": OPENTAD,
}
FLAGS = {"BMN": "--bmn", "G-TAD": "--gtad", "BCNet (BPM)": "--bpm", "BCNet (ABI)": "--abi"}
GROUPS = 4  # of the first convolution in all releases
# G-TAD's bins of a cell, inner and context, by their sum: of the branch master, and of the branch anet.
GTAD_BINS = {32: (16, 16), 36: (32, 4)}


@dataclass(frozen=True)
class ConvertOptions:
    """What is converted; each field is the flag of `python -m bcnet_fast.convert` with its name."""

    output: str
    preset: str
    bpm: str | None = None  # with abi
    abi: str | None = None
    bmn: str | None = None
    gtad: str | None = None


@dataclass(frozen=True)
class Converted:
    """A checkpoint that was written."""

    path: Path
    config: Config
    tensors: int
    values: int  # numbers in them


def convert(options: ConvertOptions) -> Converted:
    """Write the weights of a public checkpoint, or of BCNet's two, as one safetensors file.

    InputError: a file cannot be read, or holds other weights.
    """
    if Path(options.output).suffix != ".safetensors":
        raise InputError(f"--output {options.output}: expected a name that ends in .safetensors")
    output = require_writable(options.output)
    if options.bmn is not None:
        state, config = convert_bmn(options.bmn, PRESETS["bmn"][options.preset])
    elif options.gtad is not None:
        state, config = convert_gtad(options.gtad, PRESETS["gtad"][options.preset])
    else:
        config = PRESETS["bcnet"][options.preset]
        state = convert_bcnet(options.bpm, options.abi, config)
    save_checkpoint(output, state, config)
    return Converted(output, config, len(state), sum(tensor.numel() for tensor in state.values()))


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
    """Both released state dicts as one state dict of `networks.reference.bcnet.BCNet`, checked key by key.

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


def convert_bmn(path: str | os.PathLike, config: Config) -> tuple[dict[str, Tensor], Config]:
    """A state dict of `reference.bmn.BMN` and its configuration, from the public release or from mmaction2.

    Channels and bins are those of the file. Its `sample_mask`, if there is one, says which map the network has
    (`maps.ProposalMap`) and how long its longest proposals are; else both are those of `config`. The mask is a constant
    and is not kept. InputError when it fits neither map or has another T than `config`, and for keys that do not fit.
    """
    state = _read_only(path, "BMN")
    mask = state.pop("sample_mask", None)
    model = config.model
    model = replace(
        model,
        feature_dim=GROUPS * _size(state, "x_1d_b.0.weight", 1, model.feature_dim // GROUPS),
        base_channels=_size(state, "x_1d_b.0.weight", 0, model.base_channels),
        sampled_channels=_size(state, "x_3d_p.0.weight", 0, model.sampled_channels),
        map_channels=_size(state, "x_2d_p.0.weight", 0, model.map_channels),
        bins=_size(state, "x_3d_p.0.weight", 2, model.bins),
    )
    config = replace(config, model=model)
    if mask is not None:
        config = _with_map_of(mask, config, path)
    _check(state, config, path)
    return state, config


def convert_gtad(path: str | os.PathLike, config: Config) -> tuple[dict[str, Tensor], Config]:
    """A state dict of `networks.reference.gtad.GTAD` from the public release, and the configuration that fits it.

    Channels, bins and the size of the convolutions over the map are those of the file; T and D, which no weight depends
    on, are those of `config`. InputError lists keys that do not fit.
    """
    state = _read_only(path, "G-TAD")
    model = config.model
    base_channels = _size(state, "backbone1.0.weight", 0, model.base_channels)
    block_channels = _size(state, "backbone1.2.tconvs.0.weight", 0, model.block_channels)
    bins = _size(state, "localization.0.weight", 1, 0) // base_channels
    inner_bins, context_bins = GTAD_BINS.get(bins, (model.inner_bins, model.context_bins))
    kernel = _size(state, "localization.4.weight", 2, model.map_kernel)
    model = replace(
        model,
        feature_dim=GROUPS * _size(state, "backbone1.0.weight", 1, model.feature_dim // GROUPS),
        base_channels=base_channels,
        block_channels=block_channels,
        block_groups=block_channels // _size(state, "backbone1.2.tconvs.2.weight", 1, 1) or 1,
        sampled_channels=_size(state, "localization.0.weight", 0, model.sampled_channels),
        map_channels=_size(state, "localization.2.weight", 0, model.map_channels),
        map_kernel=kernel if kernel in (1, 3) else model.map_kernel,
        inner_bins=inner_bins,
        context_bins=context_bins,
    )
    config = replace(config, model=model)
    _check(state, config, path)
    return state, config


def _read_only(path: str | os.PathLike, kind: str) -> dict[str, Tensor]:
    """`read_release` of a file that does not hold another network's weights, going by their names."""
    state = read_release(path)
    found = next((known for prefix, known in KINDS.items() if any(key.startswith(prefix) for key in state)), kind)
    if found == OPENTAD:
        raise InputError(
            f"{path}: expected weights of {kind}, found OpenTAD's, which are not supported: its BMN samples half as "
            "many channels, its G-TAD other intervals, and both have other layers and the other order of scores"
        )
    if found != kind:
        raise InputError(f"{path}: expected weights of {kind}, found those of {found}, which {FLAGS[found]} takes")
    return state


def _size(state: Mapping[str, Tensor], name: str, axis: int, otherwise: int) -> int:
    """The size of a weight along an axis, or `otherwise` where it has none: `_check` then says what is wrong."""
    shape = state[name].shape if name in state else ()
    return shape[axis] if len(shape) > axis and shape[axis] else otherwise


def _with_map_of(mask: Tensor, config: Config, path: str | os.PathLike) -> Config:
    """The configuration with the map that BMN's dense sampling matrix [T, bins * cells] was made for."""
    model = config.model
    wanted = f"{path}: sample_mask: expected [T, {model.bins} D T] for T = {model.window} of preset {config.preset}"
    size = model.bins * model.window
    if mask.ndim != 2 or mask.shape[0] != model.window or mask.shape[1] % size or not mask.shape[1]:
        raise InputError(f"{wanted}, found {list(mask.shape)}; see --preset")
    longest = mask.shape[1] // size
    # A map of starts and ends is square.
    for layout in ("start_end", "duration_start") if longest == model.window else ("duration_start",):
        candidate = replace(model, max_duration=longest, map_layout=layout)
        if torch.allclose(sampling_matrix(candidate).flatten(1), mask, rtol=0, atol=1e-6):
            return replace(config, model=candidate)
    raise InputError(
        f"{wanted}, {model.points_per_bin} points in a bin and half of a proposal's length on both sides, for cells "
        "(start, end) as in BMN's public release or (duration, start) as in mmaction2; found other values"
    )


def _check(state: Mapping[str, Tensor], config: Config, path: str | os.PathLike) -> None:
    with shapes_only():
        network = NETWORKS[config.model.name](config.model)
    check_state(network, state, str(path))
