"""Inputs and calls that the tests of `infer` share: small networks, and the command with its flags."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from helpers.networks import SMALL

from bcnet_fast import infer
from bcnet_fast.config import BMNConfig, Config, DataConfig, GTADConfig, MapProposalConfig
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.storage.checkpoint import save_checkpoint

LENGTHS = {"a": 60, "b": 24, "c": 7, "d": 31}  # snippets; the window of the small network has 24
CONFIG = Config("small", model=SMALL, data=DataConfig(window_stride=12))
MAP_SIZES = {"feature_dim": 10, "window": 24, "max_duration": 16, "base_channels": 8, "map_channels": 4}
MAP_MODELS = {
    "bmn": BMNConfig(**MAP_SIZES, sampled_channels=8, bins=4, map_layout="duration_start"),
    "gtad": GTADConfig(**MAP_SIZES, sampled_channels=8, block_channels=8, block_groups=4, inner_bins=3, context_bins=2),
}


def map_config(system: str, **data) -> Config:
    data = DataConfig(window_stride=12, **data)
    return Config("small", model=MAP_MODELS[system], data=data, proposals=MapProposalConfig(window_top=20, top=50))


def map_checkpoint(folder: Path, config: Config) -> Path:
    torch.manual_seed(0)
    path = folder / f"{config.model.name}.safetensors"
    save_checkpoint(path, NETWORKS[config.model.name](config.model).state_dict(), config)
    return path


def run(checkpoint: Path, features: Path, *more: object, output: Path | None = None) -> tuple[int, Path]:
    """Run infer, replacing the output of an earlier run of the test."""
    output = output or features.parent / "out.json"
    if "--resume" not in more:
        more = (*more, "--overwrite")
    return infer.main(flags(checkpoint, features, *more, output=output)), output


def flags(checkpoint: Path, features: Path, *more: object, output: Path | None = None) -> list[str]:
    output = output or features.parent / "out.json"
    arguments = ["--checkpoint", checkpoint, "--features", features, "--output", output, "--fps", 25, *more]
    return [str(argument) for argument in arguments]


def columns(proposals: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p["segment"] for p in proposals]).reshape(-1, 2), np.array([p["score"] for p in proposals])


def results_of(path: Path) -> dict[str, list]:
    return json.loads(path.read_text())["results"]
