"""Every number that defines a system, in three frozen dataclasses and named presets.

A checkpoint carries its configuration in its metadata, so that nothing has to be repeated on the command line.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from .errors import InputError

_LARGEST = 2**31 - 1  # of a size or count
_POSITIVE = ("stride", "sigma", "max_snippets")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network. The defaults are those of the public BCNet release for THUMOS14 (paper, section 4.2)."""

    name: str = "bcnet"
    feature_dim: int = 2048  # C, channels of a snippet's feature
    window: int = 256  # T, snippets the network sees at once
    base_channels: int = 512  # of the first two convolutions of a backbone
    width: int = 400  # of the frame-level attention layers
    heads: int = 8
    head_dim: int = 64
    feedforward: int = 2048
    boundary_layers: int = 12
    clip_channels: int = 64  # of an anchor's sampled vectors
    bins: int = 32  # N, sampled vectors of an anchor
    points_per_bin: int = 3
    max_duration: int = 64  # snippets; anchors are shorter, boundary pairs at most this far apart
    dropout: float = 0.1


@dataclass(frozen=True)
class DataConfig:
    """How the rows of a feature file become the windows that the network sees."""

    rescale: bool = False  # the whole video linearly rescaled to `window` snippets, instead of sliding windows
    window_stride: int = 128  # snippets between the starts of neighbouring windows
    stride: float = 5.0  # video frames between neighbouring snippets
    offset: float = 0.0  # video frame of snippet boundary 0
    strip_prefix: bool = False  # ActivityNet's feature files are named v_<id>, its annotations <id>


@dataclass(frozen=True)
class ProposalConfig:
    """From boundary probabilities and anchor scores to a ranked list (paper, section 3.6)."""

    boundary_threshold: float = 0.7
    min_classification: float = 0.9  # alpha1 of Eq. 12
    min_regression: float = 0.8  # alpha2 of Eq. 12
    sigma: float = 0.46  # of the Gaussian Soft-NMS
    iou_threshold: tuple[float, float] = (0.0, 0.0)  # decay only above low + (high - low) * width / window
    window_top: int = 120  # proposals kept of a window
    top: int = 1000  # proposals kept of a video
    max_snippets: float | None = 60.0  # proposals of this length and longer are dropped


@dataclass(frozen=True)
class Config:
    """A whole system: `Config.from_dict(config.to_dict()) == config`."""

    preset: str
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    proposals: ProposalConfig = field(default_factory=ProposalConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any], source: str = "configuration") -> Config:
        """Build from nested dicts; InputError names `source` and any unknown key, wrong type or impossible value."""
        _require_object(values, source)
        sections = {"model": ModelConfig, "data": DataConfig, "proposals": ProposalConfig}
        unknown = set(values) - {"preset", *sections}
        if unknown or "preset" not in values:
            raise InputError(f"{source}: expected the keys preset, {', '.join(sections)}; found {sorted(values)}")
        built = {key: _build(cls, values.get(key, {}), f"{source}: {key}") for key, cls in sections.items()}
        return Config(preset=str(values["preset"]), **built)


def _require_object(values: Any, source: str) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected an object with settings, found {values!r:.80}")


def _build(cls: type, values: Any, source: str) -> Any:
    _require_object(values, source)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"{source}: unknown {', '.join(unknown)}; expected some of {', '.join(fields)}")
    clean = {}
    for name, value in values.items():
        nullable = name == "max_snippets" and value is None
        try:
            clean[name] = None if nullable else _converted(name, value, fields[name].default)
        except ValueError as error:
            raise InputError(f"{source}.{name}: expected {error}, found {value!r:.80}") from None
    return cls(**clean)


def _converted(name: str, value: Any, default: Any) -> Any:
    """`value` in the type of `default`; ValueError says what the setting `name` must be."""
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(default):
            raise ValueError(f"{len(default)} numbers")
        return tuple(_converted(name, one, of_default) for one, of_default in zip(value, default, strict=True))
    if isinstance(default, float) and type(value) is int and abs(value) <= _LARGEST:
        value = float(value)
    if type(value) is not type(default):
        raise ValueError(type(default).__name__)
    if type(value) is int and not 1 <= value <= _LARGEST:
        raise ValueError(f"int from 1 to {_LARGEST}")
    if type(value) is float and not math.isfinite(value):
        raise ValueError("a finite number")
    if name in _POSITIVE and value <= 0:
        raise ValueError("a number above 0")
    if name == "dropout" and not 0 <= value < 1:
        raise ValueError("a share from 0 to below 1")
    return value


PRESETS: dict[str, Config] = {
    "thumos14": Config(preset="thumos14"),
    # The paper gives T = 100, 16 frames a snippet and C = 400 (section 4.2); the public release has no ActivityNet
    # code, so the Soft-NMS settings are those of BMN, which the paper follows, and the anchors reach the whole video.
    "activitynet13": Config(
        preset="activitynet13",
        model=ModelConfig(feature_dim=400, window=100, max_duration=100),
        data=DataConfig(rescale=True, window_stride=100, stride=16.0, strip_prefix=True),
        proposals=ProposalConfig(sigma=0.4, iou_threshold=(0.5, 0.9), window_top=100, top=100, max_snippets=None),
    ),
}
