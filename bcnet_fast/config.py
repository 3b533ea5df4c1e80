"""Every number that defines a system, in frozen dataclasses.

A checkpoint carries its configuration in its metadata, so the command line need not repeat it. The annotation of a
field is its meaning in one line, which `train --list-settings` and the documentation show.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

from . import bounds
from .errors import InputError
from .recipe import Recipe
from .settings import build_section, require_object
from .text import alternatives, brief, did_you_mean

Section = TypeVar("Section")

_NOT_SETTINGS = ("preset", "trained_on", "recipe")  # parts of a configuration that --set cannot change


@dataclass(frozen=True)
class ModelConfig:
    """Sizes that all three networks have."""

    name: Annotated[str, "the system: bcnet, bmn or gtad"]
    feature_dim: Annotated[int, "C, channels of a snippet's feature"]
    window: Annotated[int, "T, snippets that the network sees at once"]
    max_duration: Annotated[int, "D, snippets of the longest anchor or boundary pair"]
    background_constraint: Annotated[bool, "a background score of every anchor lowers its confidence (paper, 3.2)"]


@dataclass(frozen=True)
class BCNetConfig(ModelConfig):
    """The defaults are those of the public BCNet release for THUMOS14 (paper, section 4.2)."""

    name: str = "bcnet"
    feature_dim: int = 2048
    window: int = 256
    max_duration: Annotated[int, "D, snippets: anchors are shorter, boundary pairs at most this far apart"] = 64
    background_constraint: bool = True
    base_channels: Annotated[int, "channels of the first two convolutions of a backbone"] = 512
    width: Annotated[int, "channels of the frame-level attention layers"] = 400
    heads: Annotated[int, "attention heads"] = 8
    head_dim: Annotated[int, "channels of an attention head"] = 64
    feedforward: Annotated[int, "hidden channels of the feed-forward networks"] = 2048
    boundary_layers: Annotated[int, "attention layers of the boundary prediction"] = 12
    clip_channels: Annotated[int, "channels of an anchor's sampled vectors"] = 64
    bins: Annotated[int, "N, sampled vectors of an anchor"] = 32
    points_per_bin: Annotated[int, "sampling points behind one sampled vector"] = 3
    dropout: Annotated[float, "dropout after the position encodings, in training"] = 0.1
    # Ablations of the action-background interaction (paper, Tables 6 and 7). Without an attention unit, its input goes
    # unchanged to the feed-forward networks after it, at both levels.
    frame_level: Annotated[bool, "frame-level interaction; without it, anchors sample the backbone's sequence"] = True
    self_attention: Annotated[bool, "self-attention units of both levels"] = True
    difference_attention: Annotated[bool, "difference-attention units of both levels"] = True


@dataclass(frozen=True)
class BMNConfig(ModelConfig):
    """BMN (Lin et al., ICCV 2019). The defaults are those of the public PyTorch release for ActivityNet-1.3."""

    name: str = "bmn"
    feature_dim: int = 400
    window: int = 100
    max_duration: int = 100
    background_constraint: bool = False
    base_channels: Annotated[int, "channels of the sequence"] = 256
    sampled_channels: Annotated[int, "channels of a map cell after the projection of its sampled vectors"] = 512
    map_channels: Annotated[int, "channels of a map cell in the convolutions over the map"] = 128
    bins: Annotated[int, "N, sampled vectors of a map cell"] = 32
    points_per_bin: Annotated[int, "sampling points behind one sampled vector"] = 3
    map_layout: Annotated[str, "what row and column of the map stand for: start_end or duration_start"] = "start_end"


@dataclass(frozen=True)
class GTADConfig(ModelConfig):
    """G-TAD (Xu et al., CVPR 2020). The defaults are those of the public release for THUMOS14."""

    name: str = "gtad"
    feature_dim: int = 2048
    window: int = 256
    max_duration: int = 64
    background_constraint: bool = False
    base_channels: Annotated[int, "channels of the sequence"] = 256
    block_channels: Annotated[int, "channels inside a graph block"] = 128
    block_groups: Annotated[int, "groups of the grouped convolutions in a graph block"] = 32
    neighbours: Annotated[int, "neighbours of a node in the graph, itself included"] = 3
    sampled_channels: Annotated[int, "channels of a map cell after the projection of its sampled vectors"] = 512
    map_channels: Annotated[int, "channels of a map cell in the convolutions over the map"] = 128
    map_kernel: Annotated[int, "kernel size of the convolutions over the map, 1 or 3"] = 3
    inner_bins: Annotated[int, "vectors of a map cell sampled from the sequence"] = 16
    context_bins: Annotated[int, "vectors of a map cell sampled from the mean of its neighbours"] = 16


@dataclass(frozen=True)
class DataConfig:
    """How the rows of a feature file become the windows that the network sees."""

    rescale: Annotated[bool, "rescale the whole video to one window, instead of sliding windows"] = False
    window_stride: Annotated[int, "snippets between the starts of neighbouring windows"] = 128
    stride: Annotated[float, "video frames between neighbouring snippets, where nothing else states them"] = 5.0
    offset: Annotated[float, "video frame of snippet boundary 0, where nothing else states it"] = 0.0
    # ActivityNet's feature files are named v_<id>, its annotations <id>.
    strip_prefix: Annotated[bool, "remove the prefix v_ of video names, as ActivityNet needs it"] = False


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

    sigma: Annotated[float, "width of the Gaussian Soft-NMS"] = 0.46
    # For a proposal that fills a share of the window: low + (high - low) * share.
    iou_threshold: Annotated[tuple[float, float], "tIoU from which scores decay: low, high"] = (0.0, 0.0)
    window_top: Annotated[int, "proposals kept of a window"] = 120
    top: Annotated[int, "proposals kept of a video"] = 1000
    max_snippets: Annotated[float | None, "drop proposals of this length and longer; null keeps all"] = 60.0


@dataclass(frozen=True)
class AnchorProposalConfig(ProposalConfig):
    """BCNet: pairs of boundaries, each with the anchor that matches it best."""

    boundary_threshold: Annotated[float, "least probability of a boundary; local maxima need none"] = 0.7
    min_classification: Annotated[float, "alpha1 of Eq. 12: above both, the anchor refines the boundary pair"] = 0.9
    min_regression: Annotated[float, "alpha2 of Eq. 12, for the other score of the anchor"] = 0.8


@dataclass(frozen=True)
class MapProposalConfig(ProposalConfig):
    """BMN and G-TAD: the cells of their maps."""

    boundary_peaks: Annotated[bool, "keep only cells between a likely start and a likely end (BSN's rule)"] = False
    boundary_scores: Annotated[bool, "multiply the confidence by the probabilities of start and end"] = True


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained, with Adam. The defaults are those of BCNet (paper, section 4.2)."""

    epochs: Annotated[int, "passes over the training windows"] = 10
    batch_size: Annotated[int, "windows in a step, of all processes together"] = 16
    shift_windows: Annotated[bool, "move windows anew in each epoch, by up to half a window_stride"] = False
    learning_rate: Annotated[float, "Adam's learning rate in the first epochs"] = 1e-4
    decay_every: Annotated[int, "epochs between two multiplications of the learning rate by decay_factor"] = 10
    decay_factor: Annotated[float, "factor of the learning rate after each decay_every epochs"] = 0.1
    weight_decay: Annotated[float, "Adam's weight decay"] = 1e-4
    gradient_clip: Annotated[float, "largest norm of all gradients together; 0: no limit"] = 0.0
    ema: Annotated[float, "decay of a running mean of the weights, which then is the result; 0: none"] = 0.0
    # Weights and losses are float32 throughout.
    precision: Annotated[str, "fp32; on a GPU also tf32 (float32 products in TF32) and bf16 (autocast)"] = "fp32"
    seed: Annotated[int, "first weights, order and shifts of windows, dropout and sampling"] = 0


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
    recipe: Recipe | None = None  # recipe of the training features; None: `extract` did not make them

    def __post_init__(self) -> None:
        for name, wanted in zip(("model", "proposals"), SYSTEMS[self.model.name], strict=True):
            section = getattr(self, name)
            if type(section) is not wanted:
                found, system = type(section).__name__, self.model.name
                raise TypeError(f"{name} is {found}, expected {wanted.__name__} for {system}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any], source: str = "configuration") -> Config:
        """Build from nested dicts; InputError names `source` and any unknown key, wrong type or impossible value."""
        require_object(values, source)
        sections = tuple(f.name for f in dataclasses.fields(Config) if f.name not in _NOT_SETTINGS)
        unknown = set(values) - {*_NOT_SETTINGS, *sections}
        if unknown or "preset" not in values:
            raise InputError(f"{source} has the keys {sorted(values)}, expected preset, {', '.join(sections)}")
        model = values.get("model", {})
        require_object(model, f"{source}: model")
        name = model.get("name", "bcnet")
        if not isinstance(name, str) or name not in SYSTEMS:
            raise InputError(f"{source}: model.name is {brief(name)}, expected {alternatives(SYSTEMS)}")
        kinds = section_kinds(name)
        built = {section: build_section(kinds, section, values.get(section, {}), source) for section in kinds}
        base = values.get("trained_on")
        trained_on = None if base is None else build_section({"trained_on": TimeBase}, "trained_on", base, source)
        preset = _preset_name(values["preset"], source)
        recipe = None if values.get("recipe") is None else Recipe.from_dict(values["recipe"], source)
        config = Config(preset=preset, **built, trained_on=trained_on, recipe=recipe)
        config.require_possible(source)
        return config

    def require_possible(self, source: str) -> None:
        """Raise InputError if sizes contradict each other, or a network of these sizes would fill the memory."""
        model = self.model
        for name, wrong, expected in _contradictions(model):
            if wrong:
                raise InputError(f"{source}: model.{name} is {getattr(model, name)}, expected {expected}")

    def override(self, values: dict[str, Any], source: str) -> Config:
        """A copy with some settings replaced: {section: {setting: value}}. Raises InputError as `from_dict` does."""
        return Config.from_dict(_overridden(self, values, source), source)


@dataclass(frozen=True)
class PGCNConfig:
    """P-GCN (Zeng et al., ICCV 2019). The defaults are those of the public release for THUMOS14."""

    name: Annotated[str, "the system"] = "pgcn"
    classes: Annotated[int, "K, classes of the detections"] = 20
    feature_dim: Annotated[int, "C, channels of a row; a completeness feature has three times as many"] = 1024
    hidden: Annotated[int, "hidden channels of both graph networks"] = 512
    graph_dropout: Annotated[float, "dropout after the first layer of both graph networks, in training"] = 0.7
    activity_dropout: Annotated[float, "dropout before the activity scores, in training"] = 0.8


@dataclass(frozen=True)
class MUSESConfig:
    """MUSES-Net (Liu et al., CVPR 2021). The defaults are those of the public release for THUMOS14."""

    name: Annotated[str, "the system"] = "muses"
    classes: Annotated[int, "K, classes of the detections"] = 20
    feature_dim: Annotated[int, "C, channels of a row"] = 1024
    channels: Annotated[tuple[int, int], "channels of the two temporal aggregation layers"] = (384, 512)
    head_width: Annotated[int, "hidden channels of the heads"] = 384
    activity_dropout: Annotated[float, "dropout before the activity scores, in training"] = 0.8


@dataclass(frozen=True)
class FeatureRows:
    """How rows of features lie in a video, for P-GCN; the columns of MUSES-Net's features are always 8 frames apart."""

    stride: Annotated[int, "video frames from one row to the next"] = 8
    clip: Annotated[int, "video frames that a row covers"] = 64
    rescaled: Annotated[int, "this many rows cover every video, whatever its length; 0: by stride and clip"] = 0


@dataclass(frozen=True)
class SamplePools:
    """Which proposals a second-stage network is trained on."""

    foreground_iou: Annotated[float, "foreground has a larger IoU with an instance"] = 0.7
    incomplete_iou: Annotated[float, "incomplete proposals have a smaller IoU"] = 0.3
    incomplete_overlap: Annotated[float, "and a larger share of them lies in the instance"] = 0.01
    background_iou: Annotated[float, "background has a smaller IoU"] = 0.01
    background_coverage: Annotated[float, "and covers a larger share of the video"] = 0.02
    passes: Annotated[int, "passes over the list in an epoch"] = 20


@dataclass(frozen=True)
class DetectionConfig:
    """From scores of proposals to detections."""

    top: Annotated[int, "pairs of proposal and class kept of a video"] = 2000
    nms_threshold: Annotated[float, "largest IoU of two detections of a class, for one stream"] = 0.35
    fused_nms_threshold: Annotated[float, "the same for several streams"] = 0.32


@dataclass(frozen=True)
class RegressionStats:
    """Mean and standard deviation of the regression targets (location, log size) that a network was trained on."""

    mean: Annotated[tuple[float, float], "means"] = (0.0, 0.0)
    std: Annotated[tuple[float, float], "standard deviations"] = (1.0, 1.0)


@dataclass(frozen=True)
class SecondStageTrainConfig:
    """How a second-stage network is trained, with SGD. The defaults are those of P-GCN on THUMOS14."""

    epochs: Annotated[int, "passes over the training videos, times pools.passes"] = 70
    batch_size: Annotated[int, "videos in a step, each with 8 proposals"] = 32
    learning_rate: Annotated[float, "SGD's learning rate in the first epochs; biases have twice as much"] = 1e-2
    decay_at: Annotated[tuple[int, int, int], "epochs after which decay_factor multiplies the rate"] = (15, 30, 45)
    decay_factor: Annotated[float, "factor of the learning rate after each epoch of decay_at"] = 0.1
    momentum: Annotated[float, "SGD's momentum"] = 0.9
    weight_decay: Annotated[float, "SGD's weight decay, not of biases"] = 5e-4
    single_videos: Annotated[bool, "mean of the losses of single videos, instead of one loss of all"] = False
    seed: Annotated[int, "first weights, order of videos, sampled proposals and dropout"] = 0


SECOND_STAGE_SYSTEMS: dict[str, type[PGCNConfig] | type[MUSESConfig]] = {"pgcn": PGCNConfig, "muses": MUSESConfig}


@dataclass(frozen=True)
class SecondStageConfig:
    """A whole second-stage system: `SecondStageConfig.from_dict(config.to_dict()) == config`."""

    preset: str
    model: PGCNConfig | MUSESConfig = field(default_factory=PGCNConfig)
    rows: FeatureRows = field(default_factory=FeatureRows)
    pools: SamplePools = field(default_factory=SamplePools)
    detections: DetectionConfig = field(default_factory=DetectionConfig)
    train: SecondStageTrainConfig = field(default_factory=SecondStageTrainConfig)
    regression: RegressionStats | None = None  # None: unknown, so that regression cannot be applied
    labels: tuple[str, ...] | None = None  # names of the K classes; None: not trained by this package
    trained_on: TimeBase | None = None  # as in `Config`
    recipe: Recipe | None = None  # as in `Config`

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any], source: str = "configuration") -> SecondStageConfig:
        """Build from nested dicts; InputError names `source` and any unknown key, wrong type or impossible value."""
        require_object(values, source)
        names = [f.name for f in dataclasses.fields(SecondStageConfig)]
        if set(values) - set(names) or "preset" not in values:
            raise InputError(f"{source} has the keys {sorted(values)}, expected {', '.join(names)}")
        model = values.get("model", {})
        require_object(model, f"{source}: model")
        name = model.get("name", "pgcn")
        if not isinstance(name, str) or name not in SECOND_STAGE_SYSTEMS:
            raise InputError(f"{source}: model.name is {brief(name)}, expected {alternatives(SECOND_STAGE_SYSTEMS)}")
        kinds = section_kinds(name)
        built = {section: build_section(kinds, section, values.get(section, {}), source) for section in kinds}
        for section, kind in (("regression", RegressionStats), ("trained_on", TimeBase)):
            stated = values.get(section)
            built[section] = None if stated is None else build_section({section: kind}, section, stated, source)
        model = built["model"]
        widths = {name: value for name, value in dataclasses.asdict(model).items() if name != "name"}
        _require_small_weights(widths, source)
        recipe = None if values.get("recipe") is None else Recipe.from_dict(values["recipe"], source)
        labels, classes = values.get("labels"), built["model"].classes
        if labels is not None:
            names_fit = isinstance(labels, list | tuple) and all(isinstance(label, str) for label in labels)
            if not names_fit or len(set(labels)) != len(labels) or len(labels) != classes:
                raise InputError(f"{source}: labels is {brief(labels)}, expected different names of {classes} classes")
            labels = tuple(labels)
        preset = _preset_name(values["preset"], source)
        return SecondStageConfig(preset=preset, **built, labels=labels, recipe=recipe)

    def override(self, values: dict[str, Any], source: str) -> SecondStageConfig:
        """A copy with some settings replaced, as `Config.override` makes it."""
        return SecondStageConfig.from_dict(_overridden(self, values, source), source)


def _require_small_weights(widths: dict[str, Any], source: str) -> None:
    """InputError: the largest weight between two layers of a second stage would fill the memory."""
    sizes = [(max(value), name) if isinstance(value, tuple) else (value, name) for name, value in widths.items()]
    (second, _), (first, name) = sorted(size for size in sizes if isinstance(size[0], int))[-2:]
    if 3 * first * second > bounds.LARGEST_WEIGHT:
        raise InputError(f"{source}: model.{name} is {first}, expected fewer beside {second} channels")


def _preset_name(value: Any, source: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 80:
        raise InputError(f"{source}: preset is {brief(value)}, expected a short name")
    return value


def _overridden(config: Config | SecondStageConfig, values: dict[str, Any], source: str) -> dict[str, Any]:
    """A configuration as nested dicts with some settings replaced: {section: {setting: value}}."""
    require_object(values, source)
    merged, sections = config.to_dict(), list(section_kinds(config.model.name))
    for section, settings in values.items():
        if section not in sections:
            expected = f"expected one of {', '.join(sections)}{did_you_mean(section, sections)}"
            raise InputError(f"{source}: there is no section {section!r}, {expected}")
        require_object(settings, f"{source}: {section}")
        merged[section] |= settings
    if merged["model"]["name"] != config.model.name:
        other = brief(merged["model"]["name"])
        raise InputError(f"{source}: model.name is {other}, expected {config.model.name!r}; --model selects it")
    return merged


def is_second_stage(values: Any) -> bool:
    """Whether nested dicts, as read from a file, are a `SecondStageConfig` rather than a `Config`."""
    model = values.get("model") if isinstance(values, dict) else None
    name = model.get("name") if isinstance(model, dict) else None
    return isinstance(name, str) and name in SECOND_STAGE_SYSTEMS


def section_kinds(model: str) -> dict[str, type]:
    """The dataclasses of a system's settings, by section."""
    if model in SECOND_STAGE_SYSTEMS:
        return {
            "model": SECOND_STAGE_SYSTEMS[model],
            "rows": FeatureRows,
            "pools": SamplePools,
            "detections": DetectionConfig,
            "train": SecondStageTrainConfig,
        }
    of_model, of_proposals = SYSTEMS[model]
    return {"model": of_model, "data": DataConfig, "proposals": of_proposals, "train": TrainConfig}


def meanings(section: type) -> dict[str, str]:
    """The meaning of each field of a section in one line."""
    known: dict[str, str] = {}
    # A subclass that only changes a default keeps the meaning.
    for base in reversed(section.__mro__):
        hints = get_type_hints(base, include_extras=True)
        known |= {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}
    return known


def require_section(section: object, *kinds: type[Section]) -> Section:
    """Return a section to code that handles some systems only. TypeError: it is of another system."""
    if not isinstance(section, kinds):
        raise TypeError(
            f"section is {type(section).__name__}, expected {alternatives(kind.__name__ for kind in kinds)}"
        )
    return section


def _contradictions(model: ModelConfig) -> list[tuple[str, bool, str]]:
    """Settings, each with whether it contradicts the others and what is expected of it."""
    window, longest = model.window, model.max_duration
    if isinstance(model, BCNetConfig):
        # As many as `geometry.anchors.make_anchors` lists.
        anchors = sum(
            len(range(0, window - width + 1, math.isqrt(width) + width // 21)) for width in range(2, longest, 3)
        )
        points = anchors * model.bins * model.points_per_bin
        width, clip_width, heads = model.width, model.bins * model.clip_channels, model.heads * model.head_dim
        found = [
            ("max_duration", longest < 3, "at least 3 snippets"),
            ("max_duration", anchors > bounds.MOST_ANCHORS, f"at most {bounds.MOST_ANCHORS} anchors in a window"),
            ("max_duration", window * longest * anchors > bounds.LARGEST_TABLE, "a smaller one, or a smaller window"),
            ("width", width * max(width, model.feedforward, heads) > bounds.LARGEST_WEIGHT, "smaller weights"),
            ("bins", clip_width * max(clip_width, model.feedforward, heads) > bounds.LARGEST_WEIGHT, "smaller weights"),
        ]
    elif isinstance(model, BMNConfig):
        cells = window * (window if model.map_layout == "start_end" else longest)
        points = cells * model.bins * model.points_per_bin
        weight = model.base_channels * model.sampled_channels * model.bins
        found = [
            ("window", cells > bounds.LARGEST_MAP, f"at most {bounds.LARGEST_MAP} cells in a window"),
            ("bins", weight > bounds.LARGEST_WEIGHT, "smaller weights"),
        ]
    elif isinstance(model, GTADConfig):
        bins, divides = model.inner_bins + model.context_bins, model.block_channels % model.block_groups == 0
        points = window * longest * (bins + 2 * longest)
        weight = model.base_channels * model.sampled_channels * bins
        found = [
            ("window", window < 2, "at least 2 snippets"),
            ("window", window * longest > bounds.LARGEST_MAP, f"at most {bounds.LARGEST_MAP} cells in a window"),
            ("inner_bins", weight > bounds.LARGEST_WEIGHT, "smaller weights"),
            ("neighbours", model.neighbours > window, f"at most model.window = {window}"),
            ("block_groups", not divides, f"a divisor of model.block_channels = {model.block_channels}"),
        ]
    else:
        raise TypeError(f"unknown system {type(model).__name__}")
    return [
        *found,
        ("window", points > bounds.LARGEST_PLAN, f"at most {bounds.LARGEST_PLAN} sampled points in a window"),
    ]
