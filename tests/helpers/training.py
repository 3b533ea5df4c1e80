"""Trainings that tests share: an easy data set, small networks, and the flags that go with them."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from bcnet_fast import train
from bcnet_fast.data.features import open_features
from bcnet_fast.data.synthetic import SyntheticConfig
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.protocols import DEFAULT, RELEASES
from bcnet_fast.training import subsets
from bcnet_fast.training.dataset import TrainingWindows
from bcnet_fast.training.options import resolve_config
from bcnet_fast.training.targets import Targets, window_targets
from bcnet_fast.training.trainer import Trainer

# Few channels with a strong signal, and instances of up to 16 snippets.
EASY = SyntheticConfig(
    instances=(3.0, 6.0),
    instance_s=(1.0, 2.5, 3.5, 5.0),
    gap_s=(1.0, 3.0, 5.0),
    pause_s=(100.0, 100.0),  # no look-alikes
    feature_dim=8,
    classes=2,
    scenes=2,
    signal=9.0,
)
SMALL = ["model.feature_dim=8", "model.window=32", "model.max_duration=16", "data.window_stride=16"]
SIZES = {
    "bcnet": [
        "model.base_channels=16",
        "model.width=16",
        "model.head_dim=8",
        "model.feedforward=32",
        "model.boundary_layers=1",
        "model.clip_channels=4",
        "model.bins=4",
    ],
    "bmn": ["model.base_channels=16", "model.sampled_channels=16", "model.map_channels=16", "model.bins=4"],
    "gtad": [
        "model.base_channels=16",
        "model.block_channels=8",
        "model.block_groups=2",
        "model.sampled_channels=16",
        "model.map_channels=16",
        "model.inner_bins=4",
        "model.context_bins=2",
    ],
}


def arguments(
    data: Path, output: Path, *more: object, model: str = "bcnet", settings: tuple[str, ...] = ()
) -> list[str]:
    """The flags of a short training of a small network on `data`."""
    settings = [*SMALL, *SIZES[model], "train.epochs=2", "train.batch_size=8", *settings]
    flags = ["--preset", "synthetic", "--model", model, "--features", data / "features", "--output", output]
    flags += ["--annotations", data / "annotations.json", "--device", "cpu", *more, "--set", *settings]
    return [str(flag) for flag in flags]


def log_of(folder: Path) -> list[dict[str, float]]:
    """The rows of a training's log, one for each epoch."""
    with open(folder / "log.csv") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def make_trainer(data: Path, *settings: str, model: str = "bcnet") -> tuple[Trainer, TrainingWindows]:
    """A trainer and its windows, as the command makes them from these settings."""
    options = train.parse(arguments(data, Path("unused"), model=model, settings=settings))
    config = resolve_config(options)
    archive = open_features(options.features, feature_dim=8)
    chosen = subsets.select_annotations(options, config)
    training, *_ = subsets.read_subsets(options, config, archive, chosen, DEFAULT.windows, quiet=True)
    windows = TrainingWindows(archive, training.videos, config, DEFAULT)
    return Trainer(config, DEFAULT.losses, torch.device("cpu")), windows


def release_targets(arrays) -> list[Targets]:
    """The three golden windows, of THUMOS14 annotations in video frames."""
    return [
        window_targets(
            arrays[f"gt_{index}"],
            make_anchors(256, 64),
            256,
            first=5.0 * snippet,
            stride=5.0,
            rules=RELEASES["bcnet"].labels,
        )
        for index, snippet in enumerate(arrays["window_start_snippet"])
    ]
