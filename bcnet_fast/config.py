"""Every number that defines a system, in frozen dataclasses.

A checkpoint carries its configuration in its metadata, so the command line need not repeat it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import InputError

Section = TypeVar("Section")

_LARGEST = 2**31 - 1  # of a size or count
_FROM_0 = ("seed", "rescaled")  # whole numbers that may be 0; all others are at least 1
_NULLABLE = ("max_snippets", "fps", "row_stride", "offset")
_POSITIVE = ("stride", "row_stride", "fps", "sigma", "max_snippets", "learning_rate", "decay_factor")
_NOT_NEGATIVE = ("weight_decay", "gradient_clip", "nms_threshold")
_SHARES = ("dropout", "ema", "graph_dropout", "activity_dropout")
_CHOICES = {"map_layout": ("start_end", "duration_start"), "map_kernel": (1, 3), "precision": ("fp32", "tf32", "bf16")}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes that all three networks have."""

    name: str
    feature_dim: int  # C, channels of a snippet's feature
    window: int  # T, snippets the network sees at once
    max_duration: int  # D, snippets of the longest anchor or boundary pair
    background_constraint: bool  # a background score for every anchor lowers its confidence (paper, section 3.2)


@dataclass(frozen=True)
class BCNetConfig(ModelConfig):
    """The defaults are those of the public BCNet release for THUMOS14 (paper, section 4.2)."""

    name: str = "bcnet"
    feature_dim: int = 2048
    window: int = 256
    max_duration: int = 64  # anchors are shorter, boundary pairs at most this far apart
    background_constraint: bool = True
    base_channels: int = 512  # of the first two convolutions of a backbone
    width: int = 400  # of the frame-level attention layers
    heads: int = 8
    head_dim: int = 64
    feedforward: int = 2048
    boundary_layers: int = 12
    clip_channels: int = 64  # of an anchor's sampled vectors
    bins: int = 32  # N, sampled vectors of an anchor
    points_per_bin: int = 3
    dropout: float = 0.1
    # Ablations of the action-background interaction (paper, Tables 6 and 7). Without the frame level, anchors sample
    # the backbone's sequence with its positions. Without an attention unit, its input goes unchanged to the
    # feed-forward networks after it, at both levels.
    frame_level: bool = True
    self_attention: bool = True
    difference_attention: bool = True


@dataclass(frozen=True)
class BMNConfig(ModelConfig):
    """BMN (Lin et al., ICCV 2019). The defaults are those of the public PyTorch release for ActivityNet-1.3."""

    name: str = "bmn"
    feature_dim: int = 400
    window: int = 100
    max_duration: int = 100
    background_constraint: bool = False
    base_channels: int = 256  # of the sequence
    sampled_channels: int = 512  # of a cell of the map after the projection of its sampled vectors
    map_channels: int = 128  # of a cell in the convolutions over the map
    bins: int = 32  # N, sampled vectors of a cell
    points_per_bin: int = 3
    map_layout: str = "start_end"  # or "duration_start", see `geometry.proposal_map`


@dataclass(frozen=True)
class GTADConfig(ModelConfig):
    """G-TAD (Xu et al., CVPR 2020). The defaults are those of the public release for THUMOS14."""

    name: str = "gtad"
    feature_dim: int = 2048
    window: int = 256
    max_duration: int = 64
    background_constraint: bool = False
    base_channels: int = 256  # of the sequence
    block_channels: int = 128  # inside a graph block
    block_groups: int = 32
    neighbours: int = 3  # of a node in the graph, itself included
    sampled_channels: int = 512  # of a cell of the map after the projection of its sampled vectors
    map_channels: int = 128  # of a cell in the convolutions over the map
    map_kernel: int = 3  # of these convolutions, 1 or 3
    inner_bins: int = 16  # sampled vectors of a cell from the sequence
    context_bins: int = 16  # and from the mean of its neighbours


@dataclass(frozen=True)
class DataConfig:
    """How the rows of a feature file become the windows that the network sees."""

    rescale: bool = False  # the whole video linearly rescaled to `window` snippets, instead of sliding windows
    window_stride: int = 128  # snippets between the starts of neighbouring windows
    stride: float = 5.0  # video frames between neighbouring snippets
    offset: float = 0.0  # video frame of snippet boundary 0
    strip_prefix: bool = False  # ActivityNet's feature files are named v_<id>, its annotations <id>


@dataclass(frozen=True)
class TimeBase:
    """Times of the features that a network was trained on; None where they were unknown or differ between videos."""

    fps: float | None = None  # video frames per second
    row_stride: float | None = None  # video frames between consecutive rows of a feature file
    offset: float | None = None  # video frame at which the first row starts
    every: int = 1  # every N-th row is a snippet

    @property
    def stride(self) -> float | None:
        """Video frames between neighbouring snippets."""
        return None if self.row_stride is None else self.row_stride * self.every


@dataclass(frozen=True)
class ProposalConfig:
    """From scores to a ranked list (paper, section 3.6)."""

    sigma: float = 0.46  # of the Gaussian Soft-NMS
    iou_threshold: tuple[float, float] = (0.0, 0.0)  # decay only above low + (high - low) * width / window
    window_top: int = 120  # proposals kept of a window
    top: int = 1000  # proposals kept of a video
    max_snippets: float | None = 60.0  # proposals of this length and longer are dropped


@dataclass(frozen=True)
class AnchorProposalConfig(ProposalConfig):
    """BCNet: pairs of boundaries, each with the anchor that matches it best."""

    boundary_threshold: float = 0.7
    min_classification: float = 0.9  # alpha1 of Eq. 12
    min_regression: float = 0.8  # alpha2 of Eq. 12


@dataclass(frozen=True)
class MapProposalConfig(ProposalConfig):
    """BMN and G-TAD: the cells of their maps."""

    boundary_peaks: bool = False  # only cells between a likely start and a likely end (BSN's rule)
    boundary_scores: bool = True  # the confidence has the probabilities of start and end as factors


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained, with Adam. The defaults are those of BCNet (paper, section 4.2)."""

    epochs: int = 10  # as in the release
    batch_size: int = 16  # windows in a step, of all processes together
    shift_windows: bool = False  # move windows anew in each epoch, by up to half a `window_stride`
    learning_rate: float = 1e-4  # of the first epochs
    decay_every: int = 10  # epochs after which the learning rate becomes `decay_factor` of itself
    decay_factor: float = 0.1
    weight_decay: float = 1e-4
    gradient_clip: float = 0.0  # largest norm of all gradients together; 0 is no limit
    ema: float = 0.0  # decay of the running mean of the weights, which then is the result; 0 is no mean
    # "bf16": products in bfloat16 (autocast), weights and losses in float32; "tf32": float32 in TF32, on a GPU
    precision: str = "fp32"
    seed: int = 0  # initial weights, order of windows, dropout and sampling


SYSTEMS: dict[str, tuple[type[ModelConfig], type[ProposalConfig]]] = {
    "bcnet": (BCNetConfig, AnchorProposalConfig),
    "bmn": (BMNConfig, MapProposalConfig),
    "gtad": (GTADConfig, MapProposalConfig),
}


@dataclass(frozen=True)
class Config:
    """A whole system: `Config.from_dict(config.to_dict()) == config`."""

    preset: str
    model: ModelConfig = field(default_factory=BCNetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    proposals: ProposalConfig = field(default_factory=AnchorProposalConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    trained_on: TimeBase | None = None  # None: not trained by this package, so that `data` is all that is known

    def __post_init__(self) -> None:
        for section, wanted in zip((self.model, self.proposals), SYSTEMS[self.model.name], strict=True):
            if type(section) is not wanted:
                raise TypeError(f"{self.model.name}: expected {wanted.__name__}, got {type(section).__name__}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any], source: str = "configuration") -> Config:
        """Build from nested dicts; InputError names `source` and any unknown key, wrong type or impossible value."""
        _require_object(values, source)
        sections = tuple(f.name for f in dataclasses.fields(Config) if f.name not in ("preset", "trained_on"))
        unknown = set(values) - {"preset", "trained_on", *sections}
        if unknown or "preset" not in values:
            raise InputError(f"{source}: expected the keys preset, {', '.join(sections)}; found {sorted(values)}")
        model = values.get("model", {})
        _require_object(model, f"{source}: model")
        name = model.get("name", "bcnet")
        if name not in SYSTEMS:
            raise InputError(f"{source}: model.name: expected one of {', '.join(SYSTEMS)}, found {name!r:.80}")
        classes = zip(sections, (SYSTEMS[name][0], DataConfig, SYSTEMS[name][1], TrainConfig), strict=True)
        built = {key: _build(cls, values.get(key, {}), f"{source}: {key}") for key, cls in classes}
        base = values.get("trained_on")
        trained_on = None if base is None else _build(TimeBase, base, f"{source}: trained_on")
        return Config(preset=str(values["preset"]), **built, trained_on=trained_on)

    def override(self, values: dict[str, Any], source: str) -> Config:
        """A copy with some settings replaced: {section: {setting: value}}. Raises InputError as `from_dict` does."""
        _require_object(values, source)
        merged = self.to_dict()
        sections = [name for name in merged if name not in ("preset", "trained_on")]
        unknown = [name for name in values if name not in sections]
        if unknown:
            raise InputError(f"{source}: expected settings of {', '.join(sections)}; found {', '.join(unknown)}")
        for section, settings in values.items():
            _require_object(settings, f"{source}: {section}")
            merged[section] |= settings
        if merged["model"]["name"] != self.model.name:
            found = merged["model"]["name"]
            raise InputError(f"{source}: model.name: expected {self.model.name!r}, found {found!r:.80}")
        return Config.from_dict(merged, source)


@dataclass(frozen=True)
class PGCNConfig:
    """P-GCN (Zeng et al., ICCV 2019). The defaults are those of the public release for THUMOS14."""

    name: str = "pgcn"
    classes: int = 20  # K
    feature_dim: int = 1024  # C, channels of a row; a completeness feature has three times as many
    hidden: int = 512  # of both graph networks
    graph_dropout: float = 0.7  # after the first layer of both graph networks
    activity_dropout: float = 0.8  # before the activity scores


@dataclass(frozen=True)
class MUSESConfig:
    """MUSES-Net (Liu et al., CVPR 2021). The defaults are those of the public release for THUMOS14."""

    name: str = "muses"
    classes: int = 20  # K
    feature_dim: int = 1024  # C, channels of a row
    channels: tuple[int, int] = (384, 512)  # of the two temporal aggregation layers
    head_width: int = 384
    activity_dropout: float = 0.8  # before the activity scores


@dataclass(frozen=True)
class FeatureRows:
    """How rows of features lie in a video, for P-GCN; the columns of MUSES-Net's features are always 8 frames apart."""

    stride: int = 8  # row i covers the frames from stride * i to stride * i + clip
    clip: int = 64
    rescaled: int = 0  # with a number, so many rows cover every video, whatever its length


@dataclass(frozen=True)
class SamplePools:
    """Which proposals a second-stage network is trained on."""

    foreground_iou: float = 0.7  # above it
    incomplete_iou: float = 0.3  # below it, and
    incomplete_overlap: float = 0.01  # more of the proposal than this lies in the instance
    background_iou: float = 0.01  # below it, and
    background_coverage: float = 0.02  # more of the video than this is covered
    passes: int = 20  # over the list in an epoch


@dataclass(frozen=True)
class DetectionConfig:
    """From scores of proposals to detections."""

    top: int = 2000  # pairs of proposal and class kept of a video
    nms_threshold: float = 0.35  # of one stream; detections of a class overlap by at most this IoU


@dataclass(frozen=True)
class RegressionStats:
    """Mean and standard deviation of the regression targets (location, log size) that a network was trained on."""

    mean: tuple[float, float] = (0.0, 0.0)
    std: tuple[float, float] = (1.0, 1.0)


SECOND_STAGE_SYSTEMS: dict[str, type[PGCNConfig] | type[MUSESConfig]] = {"pgcn": PGCNConfig, "muses": MUSESConfig}


@dataclass(frozen=True)
class SecondStageConfig:
    """A whole second-stage system: `SecondStageConfig.from_dict(config.to_dict()) == config`."""

    preset: str
    model: PGCNConfig | MUSESConfig = field(default_factory=PGCNConfig)
    rows: FeatureRows = field(default_factory=FeatureRows)
    pools: SamplePools = field(default_factory=SamplePools)
    detections: DetectionConfig = field(default_factory=DetectionConfig)
    regression: RegressionStats | None = None  # None: unknown, so that regression cannot be applied

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any], source: str = "configuration") -> SecondStageConfig:
        """Build from nested dicts; InputError names `source` and any unknown key, wrong type or impossible value."""
        _require_object(values, source)
        names = [f.name for f in dataclasses.fields(SecondStageConfig)]
        if set(values) - set(names) or "preset" not in values:
            raise InputError(f"{source}: expected the keys {', '.join(names)}; found {sorted(values)}")
        model = values.get("model", {})
        _require_object(model, f"{source}: model")
        name = model.get("name", "pgcn")
        if name not in SECOND_STAGE_SYSTEMS:
            raise InputError(
                f"{source}: model.name: expected one of {', '.join(SECOND_STAGE_SYSTEMS)}, found {name!r:.80}"
            )
        classes = {
            "model": SECOND_STAGE_SYSTEMS[name],
            "rows": FeatureRows,
            "pools": SamplePools,
            "detections": DetectionConfig,
        }
        built = {key: _build(cls, values.get(key, {}), f"{source}: {key}") for key, cls in classes.items()}
        stats = values.get("regression")
        regression = None if stats is None else _build(RegressionStats, stats, f"{source}: regression")
        return SecondStageConfig(preset=str(values["preset"]), **built, regression=regression)


def is_second_stage(values: Any) -> bool:
    """Whether nested dicts, as read from a file, are a `SecondStageConfig` rather than a `Config`."""
    model = values.get("model") if isinstance(values, dict) else None
    return isinstance(model, dict) and model.get("name") in SECOND_STAGE_SYSTEMS


def require_section(section: object, *kinds: type[Section]) -> Section:
    """The section of a configuration for code of one system only. TypeError: it is of another system."""
    if not isinstance(section, kinds):
        raise TypeError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, got {type(section).__name__}")
    return section


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
        default = fields[name].default
        try:
            if value is None and name in _NULLABLE:
                clean[name] = None
            else:
                clean[name] = _converted(name, value, 0.0 if default is None else default)
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
    low = 0 if name in _FROM_0 else 1
    if type(value) is int and not low <= value <= _LARGEST:
        raise ValueError(f"int from {low} to {_LARGEST}")
    if type(value) is float and not math.isfinite(value):
        raise ValueError("a finite number")
    if name in _POSITIVE and value <= 0:
        raise ValueError("a number above 0")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"one of {', '.join(map(str, _CHOICES[name]))}")
    if name in _NOT_NEGATIVE and value < 0:
        raise ValueError("a number of at least 0")
    if name in _SHARES and not 0 <= value < 1:
        raise ValueError("a share from 0 to below 1")
    return value
