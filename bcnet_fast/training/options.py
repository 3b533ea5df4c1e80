"""What a training does: the user's options, and the configuration that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import Config, TrainConfig
from ..data.timing import TimeOptions
from ..errors import InputError
from ..presets import PRESETS
from ..storage.files import read_toml

FEWEST_STEPS = 150  # of a fitted training

Settings = dict[str, dict[str, Any]]  # {section: {name: value}}, as `Config.override` takes them


@dataclass(frozen=True)
class TrainOptions:
    """What a training does; each field is the flag of `python -m bcnet_fast.train` with its name.

    `settings` is what --set states. Without `features`, synthetic videos are made.
    """

    preset: str
    model: str = "bcnet"
    features: str | None = None
    annotations: str | None = None
    val_annotations: str | None = None
    train_subset: str | None = None
    val_subset: str | None = None
    fit: bool = False
    config: str | None = None  # path of a TOML file
    settings: Settings = field(default_factory=dict)
    protocol: str = "default"
    time: TimeOptions = field(default_factory=TimeOptions)
    output: str = "bcnet_train"
    resume: bool = False
    device: str = "auto"
    workers: int = 0


def resolve_config(options: TrainOptions, fitted: Settings | None = None) -> Config:
    """The preset's settings, replaced by those of --fit, then of the TOML file, then of --set."""
    config = PRESETS[options.model][options.preset].override(fitted or {}, "--fit")
    if options.config:
        config = config.override(read_toml(options.config), options.config)
    return config.override(options.settings, "--set")


def stated_feature_dim(options: TrainOptions) -> int | None:
    """Channels C where --set or the TOML file states them."""
    stated: list[Mapping[str, Any]] = [options.settings, read_toml(options.config) if options.config else {}]
    widths = [settings.get("model", {}).get("feature_dim") for settings in stated]
    return next((width for width in widths if width is not None), None)


def fitted_epochs(preset: TrainConfig, batch_size: int, windows: int) -> dict[str, int]:
    """Where the preset's epochs are too few steps: more, with the learning rate lowered at three quarters of them."""
    epochs = math.ceil(FEWEST_STEPS / math.ceil(windows / batch_size))
    if epochs <= preset.epochs:
        return {}
    return {"epochs": epochs, "decay_every": math.ceil(0.75 * epochs)}


def require_covered(config: Config) -> None:
    """InputError where proposals are longer than a window, or windows leave gaps, as after changing just one size."""
    model, stride = config.model, config.data.window_stride
    if model.max_duration > model.window:
        raise InputError(
            f"model.max_duration: expected at most model.window {model.window}, found {model.max_duration}"
        )
    if not config.data.rescale and stride > model.window:
        raise InputError(f"data.window_stride: expected at most model.window {model.window}, found {stride}")
