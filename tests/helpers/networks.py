"""Small networks that tests share: their sizes, weights and checkpoints, and the outputs to compare with."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate

import bcnet_fast
from bcnet_fast.config import BCNetConfig, BMNConfig, Config, GTADConfig, MapProposalConfig, ModelConfig
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import proposal_map
from bcnet_fast.networks.engine.rewrites import REWRITES, Rewrites
from bcnet_fast.networks.outputs import Output
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.training.losses import bcnet_loss, map_loss
from bcnet_fast.training.targets import map_targets, window_targets

SMALL = BCNetConfig(
    feature_dim=10,
    window=24,
    base_channels=16,
    width=12,
    heads=2,
    head_dim=8,
    feedforward=20,
    boundary_layers=2,
    clip_channels=4,
    bins=5,
    max_duration=16,
)
SWITCHES = ("frame_level", "self_attention", "difference_attention")
# More anchors than snippets, so that sampled features are projected first, and weights of whole panels.
MANY = BCNetConfig(
    feature_dim=20,
    window=53,
    base_channels=16,
    width=24,
    heads=2,
    head_dim=32,
    feedforward=70,
    boundary_layers=3,
    clip_channels=24,
    bins=4,
    max_duration=41,
)
CONFIGS = {"small": Config("small", model=SMALL), "many": Config("many", model=MANY)}
BMN = BMNConfig(
    feature_dim=12, window=19, max_duration=19, base_channels=8, sampled_channels=37, map_channels=5, bins=4,
    points_per_bin=2,
)  # fmt: skip
GTAD = GTADConfig(
    feature_dim=8, window=23, max_duration=11, base_channels=12, block_channels=8, block_groups=4, sampled_channels=33,
    map_channels=6, inner_bins=3, context_bins=2,
)  # fmt: skip
MAP_MODELS = {
    "bmn": BMN,
    "bmn, background": dataclasses.replace(BMN, background_constraint=True),
    "bmn, many channels": dataclasses.replace(BMN, sampled_channels=2 * 256 + 37),
    "bmn, short": dataclasses.replace(BMN, max_duration=6),
    "bmn, durations": dataclasses.replace(BMN, map_layout="duration_start", max_duration=7),
    "bmn, one snippet": dataclasses.replace(BMN, window=1, max_duration=1),
    "bmn, long durations": dataclasses.replace(BMN, map_layout="duration_start", window=5, max_duration=9),
    "bmn, anchors of one snippet": dataclasses.replace(BMN, map_layout="duration_start", max_duration=1),
    "gtad": GTAD,
    "gtad, background": dataclasses.replace(GTAD, background_constraint=True),
    "gtad, many channels": dataclasses.replace(GTAD, map_kernel=1, sampled_channels=600),
    "gtad, points": dataclasses.replace(GTAD, map_kernel=1, inner_bins=4, context_bins=1, max_duration=23),
    "gtad, small": dataclasses.replace(GTAD, window=3, max_duration=3),
}
# float64: sums in another order. float32: the same, in a network that enlarges rounding errors some hundred times.
TOLERANCES = {"fp64": 1e-11, "fp32": 2e-3, "int8": 0.5}
NO_REWRITES = Rewrites(**dict.fromkeys(REWRITES["bcnet"], False))


def ablated(config: BCNetConfig) -> dict[str, BCNetConfig]:
    """The network with every combination of the switches, by its missing parts; the whole network is the first."""
    made = {}
    for values in itertools.product((True, False), repeat=len(SWITCHES)):
        chosen = dict(zip(SWITCHES, values, strict=True))
        name = ", ".join(switch for switch, on in chosen.items() if not on)
        made[f"without {name}" if name else "whole"] = dataclasses.replace(config, **chosen)
    return made


def map_config(name: str) -> Config:
    """The configuration of one of `MAP_MODELS`."""
    return Config(name, MAP_MODELS[name], proposals=MapProposalConfig())


def difference(one: Output, other: Output) -> float:
    """Largest difference of two scores; NaN where one is NaN, so that no bound holds."""
    pairs = zip(one.columns().values(), other.columns().values(), strict=True)
    return float(torch.stack([(a.double() - b.double()).abs().max() for a, b in pairs]).max())


def random_state(config: BCNetConfig) -> dict[str, torch.Tensor]:
    """Weights without two equal parts, positional encodings included."""
    return {name: 0.3 * torch.randn(t.shape) for name, t in BCNet(config).state_dict().items()}


def written(tmp_path, config: Config, state: dict[str, torch.Tensor]):
    """A checkpoint, features for three windows, and the reference's scores in float64."""
    path = tmp_path / "network.safetensors"
    bcnet_fast.storage.checkpoint.save_checkpoint(path, state, config)
    features = torch.randn(3, config.model.feature_dim, config.model.window)
    return path, features, bcnet_fast.load(path, device="cpu", precision="fp64", backend="reference")(features)


def golden_fields(golden: Path) -> dict[str, np.ndarray]:
    """The release's outputs by name, for `seeded.network_input(101)`."""
    stored = np.load(golden / "bcnet" / "model.npz")
    actionness, start, end = stored["bpm"].T
    regression, classification = stored["confidence_a"].T
    return {
        "start": start,
        "end": end,
        "actionness": actionness,
        "frame_action": stored["frame_cls_a"],
        "frame_background": stored["frame_cls_b"],
        "regression": regression,
        "classification": classification,
        "background": stored["confidence_b"],
    }


def objective(config: ModelConfig, segments: list[list[list[float]]]):
    """The loss of an output for windows with these instances."""
    if config.name == "bcnet":
        anchors = make_anchors(config.window, config.max_duration)
        targets = default_collate([window_targets(of_one, anchors, config.window) for of_one in segments])
        return lambda output: bcnet_loss(output, targets)["total"]
    cells = proposal_map(config)
    targets = default_collate([map_targets(of_one, cells, config.window) for of_one in segments])
    valid = torch.from_numpy(cells.valid)
    return lambda output: map_loss(output, targets, valid)["total"]


class CountedOperations(TorchDispatchMode):
    """Counts the launches on a GPU: all operations but those that only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__ if hasattr(function, "__name__") else str(function)
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        if not views and not name.startswith(("empty", "detach")):
            self.counts[name] += 1
        return function(*(args or ()), **(kwargs or {}))
