"""Public checkpoints of BCNet, BMN and G-TAD as weights of the networks of this package.

The releases store {'epoch', 'state_dict'}. BCNet has one file for each of its two networks, BPM (boundary prediction)
and ABI (action-background interaction). BMN may also come from mmaction2. No code in the files runs: they are read with
weights_only=True.
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

from ..config import BCNetConfig, BMNConfig, Config, GTADConfig
from ..errors import InputError
from ..presets import PRESETS
from ..storage.checkpoint import check_state, save_checkpoint
from ..storage.files import require_file
from ..storage.foreign import project_of
from ..storage.output import require_apart, require_writable
from ..text import some
from .reference import NETWORKS
from .reference.bcnet import BCNet
from .reference.bmn import sampling_matrix
from .reference.layers import shapes_only

# The released ABI network has a clip-level embedding that its forward pass does not use.
UNUSED = {"abi.query.weight"}
# Prefix of parameter names -> network whose weights the file contains.
KINDS = {
    "x_1d_b.": "BMN",
    "backbone1.": "G-TAD",
    "bpm_base.": "BCNet (BPM)",
    "frame_model.": "BCNet (ABI)",
}
# Why the networks of these names are not the ones of the releases.
DIFFERENCES = {
    "OpenTAD": "its BMN samples half as many channels, its G-TAD other intervals, and both have other layers and swap "
    "the scores"
}
FLAGS = {"BMN": "--bmn", "G-TAD": "--gtad", "BCNet (BPM)": "--bpm", "BCNet (ABI)": "--abi"}
GROUPS = 4  # groups of the first convolution in all releases
# Sum of the bins of a G-TAD cell -> inner and context bins, for the branches master and anet.
GTAD_BINS = {32: (16, 16), 36: (32, 4)}


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `convert`. A field has the meaning of the flag of `python -m bcnet_fast.convert` of that name."""

    output: str
    preset: str
    bpm: str | None = None  # requires abi
    abi: str | None = None
    bmn: str | None = None
    gtad: str | None = None


@dataclass(frozen=True)
class Converted:
    """Result of `convert`."""

    path: Path
    config: Config
    tensors: int
    values: int  # elements of all tensors


def convert(options: ConvertOptions) -> Converted:
    """Write the weights of a public checkpoint, or of both files of BCNet, as one safetensors file.

    InputError: a file cannot be read or has other weights.
    """
    if Path(options.output).suffix != ".safetensors":
        raise InputError(f"--output is {options.output}, expected a name ending in .safetensors")
    require_apart(options.output, "--output", bpm=options.bpm, abi=options.abi, bmn=options.bmn, gtad=options.gtad)
    output = require_writable(options.output)
    if options.bmn is not None:
        state, config = convert_bmn(options.bmn, PRESETS["bmn"][options.preset])
    elif options.gtad is not None:
        state, config = convert_gtad(options.gtad, PRESETS["gtad"][options.preset])
    elif options.bpm is not None and options.abi is not None:
        config = PRESETS["bcnet"][options.preset]
        state = convert_bcnet(options.bpm, options.abi, config)
    else:
        raise InputError("no checkpoint is stated, expected bpm and abi, or bmn, or gtad")
    save_checkpoint(output, state, config)
    return Converted(output, config, len(state), sum(tensor.numel() for tensor in state.values()))


def read_release(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the state dict of a released `.pth.tar` and strip the DataParallel prefix of its keys."""
    path = require_file(path, "a released checkpoint (.pth.tar)")
    expected = "a PyTorch file {'epoch', 'state_dict'} that holds tensors only"
    try:
        with warnings.catch_warnings():
            # PyTorch warns about old pickle protocols, which it reads nevertheless.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        hint = "; mmengine (mmaction2) wrote it, see docs/how_to/convert_weights.md" if "mmengine" in str(error) else ""
        raise InputError(f"{path}: damaged, or holds other objects than tensors; expected {expected}{hint}") from error
    except Exception as error:  # a damaged file can raise almost anything
        raise InputError(f"{path}: damaged or of another format; expected {expected}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        keys = [str(key) for key in content] if isinstance(content, dict) else []
        inside = [str(name) for part in content.values() if isinstance(part, dict) for name in part] if keys else []
        project = project_of(keys + inside)
        looks = f"; the weights look like those of {project}, which is not supported" if project else ""
        holds = f"the keys {some(keys)}" if keys else f"a {type(content).__name__}"
        raise InputError(f"{path} holds {holds}, expected {expected}{looks}")
    state = content["state_dict"]
    foreign = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if foreign:
        raise InputError(f"{path} has other objects than tensors at the state_dict keys {some(foreign)}")
    return {key.removeprefix("module."): value.float() for key, value in state.items()}


def convert_bcnet(bpm: str | os.PathLike, abi: str | os.PathLike, config: Config) -> dict[str, Tensor]:
    """Merge both released state dicts to one of `networks.reference.bcnet.BCNet`, checked key by key.

    Stored positional encodings are kept, cut to the rows in use, because their last bits depend on the machine that
    computed them; missing ones are computed. InputError lists keys that do not fit.
    """
    assert isinstance(config.model, BCNetConfig)
    network = BCNet(config.model)
    state = {}
    for part, path, keys_of_other in (("bpm", bpm, "frame_model."), ("abi", abi, "bpm_base.")):
        module = network.get_submodule(part)
        stored = {key: value for key, value in read_release(path).items() if f"{part}.{key}" not in UNUSED}
        if any(key.startswith(keys_of_other) for key in stored):
            raise InputError(f"{path} is the other network, expected {part.upper()}; swap --bpm and --abi")
        _require_kind(stored, f"BCNet ({part.upper()})", path)
        for key, table in module.state_dict().items():
            if key.endswith(".pe"):
                given = stored[key] if key in stored else table
                stored[key] = given[: len(table)] if given.ndim else given  # check_state rejects a scalar
        check_state(module, stored, str(path))
        state |= {f"{part}.{key}": value for key, value in stored.items()}
    return state


def convert_bmn(path: str | os.PathLike, config: Config) -> tuple[dict[str, Tensor], Config]:
    """State dict of `reference.bmn.BMN` and its configuration, from the public release or mmaction2.

    Channels and bins follow from the weights. `sample_mask`, if present, determines the map layout
    (`geometry.proposal_map`) and the longest proposal; otherwise both are those of `config`. The mask is a constant and
    is dropped. InputError: the mask fits no map layout or has another T than `config`, or keys do not fit.
    """
    state = read_release(path)
    _require_kind(state, "BMN", path)
    mask = state.pop("sample_mask", None)
    model = config.model
    assert isinstance(model, BMNConfig)
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
    """State dict of `networks.reference.gtad.GTAD` and its configuration, from the public release.

    Channels, bins and the kernel size over the map follow from the weights. T and D, on which no weight depends, are
    those of `config`. InputError lists keys that do not fit.
    """
    state = read_release(path)
    _require_kind(state, "G-TAD", path)
    model = config.model
    assert isinstance(model, GTADConfig)
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


def _require_kind(state: Mapping[str, Tensor], kind: str, path: str | os.PathLike) -> None:
    """InputError: parameter names show that the weights are not those of the network `kind`."""
    found = [known for prefix, known in KINDS.items() if any(key.startswith(prefix) for key in state)]
    if kind in found:
        return
    expected = f"expected those of {kind}"
    if found:
        raise InputError(f"{path} has weights of {found[0]}, {expected}; give it to {FLAGS[found[0]]}")
    project = project_of(state)
    if project is None:
        raise InputError(f"{path} has weights of an unknown network ({some(list(state))}), {expected}")
    why = f": {DIFFERENCES[project]}" if project in DIFFERENCES else ""
    raise InputError(f"{path} has weights of {project}, {expected}; {project} is not supported{why}")


def _size(state: Mapping[str, Tensor], name: str, axis: int, otherwise: int) -> int:
    """Size of a weight along an axis, or `otherwise` if it has no such axis, which `_check` reports."""
    shape = state[name].shape if name in state else ()
    return shape[axis] if len(shape) > axis and shape[axis] else otherwise


def _with_map_of(mask: Tensor, config: Config, path: str | os.PathLike) -> Config:
    """Configuration whose map has the dense BMN sampling matrix `mask` [T, bins * cells]."""
    model = config.model
    assert isinstance(model, BMNConfig)
    wanted = f"expected [T, {model.bins} D T] with T = {model.window} of preset {config.preset}"
    size = model.bins * model.window
    if mask.ndim != 2 or mask.shape[0] != model.window or mask.shape[1] % size or not mask.shape[1]:
        raise InputError(f"{path}: sample_mask has shape {list(mask.shape)}, {wanted}; see --preset")
    longest = mask.shape[1] // size
    # A start-end map is square.
    for layout in ("start_end", "duration_start") if longest == model.window else ("duration_start",):
        candidate = replace(model, max_duration=longest, map_layout=layout)
        if torch.allclose(sampling_matrix(candidate).flatten(1), mask, rtol=0, atol=1e-6):
            return replace(config, model=candidate)
    raise InputError(
        f"{path}: sample_mask has other values than a mask with {model.points_per_bin} points per bin and margins of "
        "half a proposal, for cells (start, end) of the BMN release or (duration, start) of mmaction2; " + wanted
    )


def _check(state: Mapping[str, Tensor], config: Config, path: str | os.PathLike) -> None:
    with shapes_only():
        network = NETWORKS[config.model.name](config.model)
    check_state(network, state, str(path))
