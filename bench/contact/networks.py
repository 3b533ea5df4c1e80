"""The networks that the steps run: real sizes with random weights, or small ones on a CPU."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bcnet_fast
from bcnet_fast.config import Config
from bcnet_fast.inference import Model
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.checkpoint import save_checkpoint

from .context import Context

PRESET_OF = {"bcnet": "thumos14", "bmn": "activitynet13", "gtad": "activitynet13"}
NAMES = {"bcnet": "BCNet", "bmn": "BMN", "gtad": "G-TAD"}
# Twice PyTorch's first weights: attention is sharper then, scores differ between anchors by about 0.1, and errors show.
SCALE = 2.0


# For networks that take minutes to compile on a CPU.
TINY = {"model": {"window": 32, "max_duration": 12, "boundary_layers": 1, "bins": 4}, "data": {"window_stride": 16}}


def config_of(context: Context, system: str, preset: str | None = None) -> Config:
    """The configuration of a preset, None being that of PRESET_OF; on a CPU "synthetic", or a still smaller "tiny"."""
    if preset == "tiny":
        return PRESETS[system]["synthetic"].override(TINY, preset)
    return PRESETS[system]["synthetic" if context.small else preset or PRESET_OF[system]]


def checkpoint(context: Context, system: str, preset: str | None = None) -> Path:
    """A checkpoint with seeded random weights, which the first step that asks for it writes."""
    config = config_of(context, system, preset)
    path = context.work("networks") / f"{system}_{preset or config.preset}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        state = NETWORKS[system](config.model).state_dict()
        state = {name: SCALE * tensor if tensor.dim() > 1 else tensor for name, tensor in state.items()}
        unfinished = path.with_name(f"unfinished_{os.getpid()}.safetensors")
        save_checkpoint(unfinished, state, config)
        os.replace(unfinished, path)
    return path


def load(
    context: Context,
    system: str,
    precision: str,
    *,
    preset: str | None = None,
    device: str | None = None,
    **options: Any,
) -> Model:
    """The network on the step's device. On a CPU, warnings that a precision is slow there are left out."""
    path = checkpoint(context, system, preset)
    with warnings.catch_warnings():
        if context.small:
            warnings.simplefilter("ignore")
        return bcnet_fast.load(path, device=device or context.device, precision=precision, **options)


def features_of(config: Config, batch: int, seed: int = 1) -> Tensor:
    """Random features as a ReLU leaves them, [B, C, T] in host memory."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.model.feature_dim, config.model.window, generator=generator).relu_()


def columns(output: Any) -> list[Tensor]:
    """The scores of a network's output."""
    return list(output.columns().values())


def relative_error(found: Any, exact: Any) -> float:
    """The largest, over the scores, of the root mean square difference relative to the scores' own deviation."""
    errors = []
    for name, expected in exact.columns().items():
        expected = expected.double().cpu()
        difference = found.columns()[name].double().cpu() - expected
        errors.append(float(difference.square().mean().sqrt() / expected.std()))
    return max(errors)


def largest_difference(found: Any, exact: Any) -> float:
    """Largest difference of any score."""
    pairs = [(found.columns()[name].double().cpu(), e.double().cpu()) for name, e in exact.columns().items()]
    return max(float((f - e).abs().max()) for f, e in pairs)
