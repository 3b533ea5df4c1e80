"""Public checkpoints of all networks as weights of the networks of this package.

The releases store {'epoch', 'state_dict'}. BCNet has one file for each of its two networks, BPM (boundary prediction)
and ABI (action-background interaction). BMN may also come from mmaction2. P-GCN and MUSES-Net store `reg_stats`, units
of the regression. No code in the files runs: they are read with weights_only=True.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import (
    BCNetConfig,
    BMNConfig,
    Config,
    GTADConfig,
    MUSESConfig,
    PGCNConfig,
    RegressionStats,
    SecondStageConfig,
)
from ..errors import InputError
from ..presets import DATA_SETS, FITTED, PRESETS, SECOND_STAGE_PRESETS
from ..storage.checkpoint import check_state, save_checkpoint
from ..storage.files import readable, require_file, require_possible_count
from ..storage.foreign import project_of
from ..storage.output import require_apart, require_writable
from ..storage.pickles import bytes_of, is_plain, load_tensors
from ..text import alternatives, brief, some
from .reference import NETWORKS, SECOND_STAGE
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
    "Act_GCN.": "P-GCN",
    "backbone.layers.": "MUSES-Net",
}
_LARGEST = 4 << 30  # bytes of a file's tensors
# Why the networks of these names are not the ones of the releases.
DIFFERENCES = {
    "OpenTAD": "its BMN samples half as many channels, its G-TAD other intervals, and both have other layers and swap "
    "the scores"
}
FLAGS = {
    "BMN": "--bmn", "G-TAD": "--gtad", "BCNet (BPM)": "--bpm", "BCNet (ABI)": "--abi", "P-GCN": "--pgcn",
    "MUSES-Net": "--muses",
}  # fmt: skip
GROUPS = 4  # groups of the first convolution in all releases
# Sum of the bins of a G-TAD cell -> inner and context bins, for the branches master and anet.
GTAD_BINS = {32: (16, 16), 36: (32, 4)}


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `convert`. A field has the meaning of the flag of `python -m bcnet_fast.convert` of that name."""

    output: str
    preset: str | None  # None: of P-GCN and MUSES-Net, the preset with as many classes
    bpm: str | None = None  # requires abi
    abi: str | None = None
    bmn: str | None = None
    gtad: str | None = None
    pgcn: str | None = None
    muses: str | None = None


@dataclass(frozen=True)
class Converted:
    """Result of `convert`."""

    path: Path
    config: Config | SecondStageConfig
    tensors: int
    values: int  # elements of all tensors


def convert(options: ConvertOptions) -> Converted:
    """Write the weights of a public checkpoint, or of both files of BCNet, as one safetensors file.

    InputError: a file cannot be read or has other weights.
    """
    if Path(options.output).suffix != ".safetensors":
        raise InputError(f"--output is {options.output}, expected a name ending in .safetensors")
    inputs = {name: getattr(options, name) for name in ("bpm", "abi", "bmn", "gtad", "pgcn", "muses")}
    require_apart({"--output": options.output}, **inputs)
    output = require_writable(options.output)
    if options.bmn is not None:
        state, config = convert_bmn(options.bmn, _preset("bmn", options.preset))
    elif options.gtad is not None:
        state, config = convert_gtad(options.gtad, _preset("gtad", options.preset))
    elif options.bpm is not None and options.abi is not None:
        config = _preset("bcnet", options.preset)
        state = convert_bcnet(options.bpm, options.abi, config)
    elif options.pgcn is not None:
        state, config = convert_pgcn(options.pgcn, options.preset)
    elif options.muses is not None:
        state, config = convert_muses(options.muses, options.preset)
    else:
        raise InputError("no checkpoint is stated, expected bpm and abi, or bmn, gtad, pgcn or muses")
    save_checkpoint(output, state, config)
    return Converted(output, config, len(state), sum(tensor.numel() for tensor in state.values()))


def _preset(system: str, name: str | None) -> Config:
    if name not in PRESETS[system]:
        raise InputError(f"--preset is {name}, expected {alternatives(DATA_SETS)} for {system}")
    return PRESETS[system][name]


def read_release(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the state dict of a released `.pth.tar` and strip the DataParallel prefix of its keys."""
    return _read(path)[0]


def _read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """`read_release`, and all that the file holds."""
    path = require_file(path, "a released checkpoint (.pth.tar)")
    expected = "a PyTorch file {'epoch', 'state_dict'} that holds tensors only"
    with readable(path, expected):
        content = load_tensors(path, _LARGEST)
        if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
            keys = [_named(key) for key in content] if isinstance(content, dict) else []
            inside = (
                [_named(name) for part in content.values() if isinstance(part, dict) for name in part] if keys else []
            )
            project = project_of(keys + inside)
            looks = f"; the weights look like those of {project}, which is not supported" if project else ""
            holds = f"the keys {some(keys)}" if keys else f"a {type(content).__name__}"
            raise InputError(f"{path} holds {holds}, expected {expected}{looks}")
        state = content["state_dict"]
        require_possible_count(len(state), path)  # tensors may share a record
        foreign = [_named(key) for key, value in state.items() if not (isinstance(key, str) and is_plain(value))]
        if foreign:
            raise InputError(f"{path} has other objects than tensors at the state_dict keys {some(foreign)}")
        spread = [_named(key) for key, value in state.items() if value.untyped_storage().nbytes() < bytes_of(value)]
        if spread:
            raise InputError(f"{path} stores fewer values than the shape has at the state_dict keys {some(spread)}")
        size = sum(value.numel() * max(4, value.element_size()) for value in state.values())
        if size > _LARGEST:
            raise InputError(f"{path} has {size / 2**30:.3g} GiB of tensors, expected at most {_LARGEST >> 30} GiB")
        odd = [f"{key} ({value.dtype})" for key, value in state.items() if value.dtype.is_complex]
        if odd:
            raise InputError(f"{path} has no real numbers at the state_dict keys {some(odd)}")
        weights = {key.removeprefix("module."): value.detach().resolve_neg().float() for key, value in state.items()}
    return weights, content


def _named(key: object) -> str:
    return key if isinstance(key, str) else brief(key)


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


def convert_pgcn(path: str | os.PathLike, preset: str | None) -> tuple[dict[str, Tensor], SecondStageConfig]:
    """State dict of `networks.reference.pgcn.PGCN` and its configuration, from the public release.

    Channels and classes follow from the weights. preset: None takes the preset with as many classes. InputError: keys
    do not fit, no preset has as many classes, or `reg_stats` is something else than two means and deviations.
    """
    state, content = _read(path)
    _require_kind(state, "P-GCN", path)
    model = PGCNConfig()
    model = replace(
        model,
        classes=_size(state, "completeness_fc.weight", 0, model.classes),
        feature_dim=_size(state, "Act_GCN.gc1.weight", 0, model.feature_dim),
        hidden=_size(state, "Act_GCN.gc1.weight", 1, model.hidden),
    )
    return state, _second_stage(state, content, model, preset, path)


def convert_muses(path: str | os.PathLike, preset: str | None) -> tuple[dict[str, Tensor], SecondStageConfig]:
    """State dict of `networks.reference.muses.MUSES` and its configuration, as `convert_pgcn`."""
    state, content = _read(path)
    _require_kind(state, "MUSES-Net", path)
    model = MUSESConfig()
    inner, outer = (
        _size(state, f"backbone.layers.{layer}.branches.0.weight", 0, default)
        for layer, default in zip((0, 2), model.channels, strict=True)
    )
    model = replace(
        model,
        classes=_size(state, "roi_head.completeness_fc.weight", 0, model.classes),
        feature_dim=_size(state, "backbone.layers.0.branches.0.weight", 1, model.feature_dim),
        channels=(inner, outer),
        head_width=_size(state, "roi_head.Act_MLP.0.weight", 0, model.head_width),
    )
    return state, _second_stage(state, content, model, preset, path)


def _second_stage(
    state: Mapping[str, Tensor],
    content: Mapping[str, Any],
    model: PGCNConfig | MUSESConfig,
    preset: str | None,
    path: str | os.PathLike,
) -> SecondStageConfig:
    presets = {name: config for name, config in SECOND_STAGE_PRESETS[model.name].items() if name != FITTED}
    if preset is None:
        fitting = [name for name, config in presets.items() if config.model.classes == model.classes]
        if not fitting:
            raise InputError(f"{path} scores {model.classes} classes, expected --preset with {alternatives(presets)}")
        preset = fitting[0]
    if preset not in presets:
        raise InputError(f"--preset is {preset}, expected {alternatives(presets)} for {model.name}")
    with shapes_only():
        network = SECOND_STAGE[model.name](model)
    check_state(network, state, str(path))
    return replace(presets[preset], model=model, regression=_regression_stats(content.get("reg_stats"), path))


def _regression_stats(stored: Any, path: str | os.PathLike) -> RegressionStats | None:
    if stored is None:
        return None
    is_real = is_plain(stored) and not stored.dtype.is_complex
    if not is_real or stored.shape != (2, 2) or not stored.isfinite().all():
        found = (
            f"a tensor {list(stored.shape)}"
            if is_real
            else f"no plain tensor of real numbers ({type(stored).__name__})"
        )
        raise InputError(f"{path}: reg_stats is {found}, expected finite means and deviations [2, 2]")
    (centre, size), (centre_std, size_std) = stored.double().tolist()
    return RegressionStats((centre, size), (centre_std, size_std))


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
    if longest > model.window:
        raise InputError(f"{path}: sample_mask has proposals of {longest} snippets, {wanted}; see --preset")
    replace(config, model=replace(model, max_duration=longest)).require_possible(str(path))
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
    config.require_possible(str(path))
    with readable(path, "weights of a network that can be built"), shapes_only():
        network = NETWORKS[config.model.name](config.model)
    check_state(network, state, str(path))
