"""Options of a training run, and the configuration that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..config import Config, SecondStageConfig, TrainConfig
from ..data.source import ReadLimits
from ..data.timing import TimeOptions
from ..errors import InputError
from ..presets import FITTED, PRESETS, SECOND_STAGE_PRESETS
from ..storage.files import read_toml
from ..video.extraction import ReadOptions
from ..video.run import NetworkOptions

FEWEST_STEPS = 150  # optimizer steps of a training with --fit

Settings = dict[str, dict[str, Any]]  # {section: {name: value}}, as `Config.override` takes them


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`. A field has the meaning of the flag of `python -m bcnet_fast.train` with the same name.

    `settings` holds the values of --set and of its short names such as --epochs. Without `features`, synthetic videos
    are generated.
    """

    preset: str
    model: str = "bcnet"
    features: str | None = None
    annotations: str | None = None
    val_annotations: str | None = None
    proposals: str | None = None  # of P-GCN and MUSES-Net: a file, or a checkpoint that makes them
    val_proposals: str | None = None
    classes: str | None = None
    train_subset: str | None = None
    val_subset: str | None = None
    fit: bool = False
    config: str | None = None  # path of a TOML file
    settings: Settings = field(default_factory=dict)
    protocol: str = "default"
    time: TimeOptions = field(default_factory=TimeOptions)
    limits: ReadLimits = field(default_factory=ReadLimits)
    # Videos instead of features, and how features are made of them.
    videos: tuple[str, ...] = ()
    network: NetworkOptions = field(default_factory=NetworkOptions)
    read: ReadOptions = field(default_factory=ReadOptions)
    keep_features: str | None = None
    output: str = "bcnet_train"
    resume: bool = False
    device: str = "auto"
    workers: int = 0

    @property
    def fits(self) -> bool:
        """Whether sizes and epochs follow from the data, as they always do with the preset `small`."""
        return self.fit or self.preset == FITTED


def resolve_config(options: TrainOptions, fitted: Settings | None = None) -> Config:
    """Settings of the preset, overridden by --fit, then by the TOML file, then by --set and its short names."""
    config = PRESETS[options.model][options.preset].override(fitted or {}, "--fit")
    if options.config:
        config = config.override(read_toml(options.config), options.config)
    return config.override(options.settings, "--set")


def resolve_second_stage(options: TrainOptions, fitted: Settings | None = None) -> SecondStageConfig:
    """`resolve_config` for P-GCN and MUSES-Net."""
    config = SECOND_STAGE_PRESETS[options.model][options.preset].override(fitted or {}, "--fit")
    if options.config:
        config = config.override(read_toml(options.config), options.config)
    return config.override(options.settings, "--set")


def stated(options: TrainOptions, section: str, name: str) -> Any:
    """The value of a setting in --set, its short names or the TOML file; None: only the preset has one."""
    files = [options.settings, read_toml(options.config) if options.config else {}]
    values = [settings.get(section, {}).get(name) for settings in files]
    return next((value for value in values if value is not None), None)


def fitted_epochs(preset: TrainConfig, batch_size: int, windows: int) -> dict[str, int]:
    """More epochs if those of the preset are too few steps; the learning rate then drops after three quarters."""
    epochs = math.ceil(FEWEST_STEPS / math.ceil(windows / batch_size))
    if epochs <= preset.epochs:
        return {}
    return {"epochs": epochs, "decay_every": math.ceil(0.75 * epochs)}


def require_covered(config: Config) -> None:
    """Raise InputError if proposals are longer than a window, or windows leave gaps."""
    model, stride = config.model, config.data.window_stride
    if model.max_duration > model.window:
        raise InputError(f"model.max_duration is {model.max_duration}, expected at most model.window = {model.window}")
    if not config.data.rescale and stride > model.window:
        raise InputError(f"data.window_stride is {stride}, expected at most model.window = {model.window}")
