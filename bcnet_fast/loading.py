"""`bcnet_fast.load`: from a checkpoint file or a preset's name to a network ready for inference."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import check_state, read_checkpoint
from .config import PRESETS, Config
from .errors import BackendError, InputError
from .ops._dispatch import BACKENDS
from .outputs import BCNetOutput
from .reference.bcnet import BCNet

PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}


class Model:
    """A network prepared for inference, with everything that belongs to it: configuration, device, precision.

    `network` is the torch module; `backend` is that of the operators which turn its scores into proposals.
    """

    def __init__(self, network: nn.Module, config: Config, device: torch.device, precision: str, backend: str) -> None:
        self.config, self.device, self.precision, self.backend = config, device, precision, backend
        # bf16 and fp16 run under autocast: float32 weights, low precision inside the matrix products only.
        self._dtype = torch.float64 if precision == "fp64" else torch.float32
        self._autocast = precision in ("bf16", "fp16")
        self.network = network.to(device, self._dtype).eval()

    def __repr__(self) -> str:
        return f"Model({self.config.model.name}, preset {self.config.preset}, {self.device}, {self.precision})"

    @torch.inference_mode()
    def __call__(self, features: Tensor) -> BCNetOutput:
        """features [B, C, T] of any float dtype and device -> scores on the model's device, float32 (fp64: float64)."""
        self.network.check(features)
        features = features.to(self.device, self._dtype)
        # One window fills a CPU. Taken one by one they need less memory, and give the same bits in any batch.
        parts = features.split(1) if self.device.type == "cpu" and len(features) else (features,)
        with torch.autocast(self.device.type, PRECISIONS[self.precision], self._autocast):
            outputs = [self.network(part) for part in parts]
        columns = (torch.cat([getattr(out, f.name) for out in outputs]) for f in dataclasses.fields(BCNetOutput))
        return BCNetOutput(*(column.to(self._dtype) for column in columns))


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """ "auto" takes CUDA where there is one. InputError for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: expected auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: expected auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() or "none"
        raise InputError(f"--device {name}: expected a CUDA device, found {found} (torch {torch.__version__})")
    return device


def load(
    checkpoint_or_preset: str | os.PathLike | Config,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    backend: str = "auto",
) -> Model:
    """Load a checkpoint (.safetensors), or make a new network with random weights from a preset's name or a Config.

    device: "auto", "cpu", "cuda" or a torch.device. precision: "fp32", "fp64", "bf16", "fp16". backend: "auto",
    "reference", "native" or "triton", for the operators. Random weights follow torch.manual_seed.
    Raises InputError for a missing, damaged or unfitting checkpoint, an unknown precision or an absent device;
    BackendError for an unknown backend.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    resolved = resolve_device(device)
    if not isinstance(checkpoint_or_preset, Config):
        checkpoint_or_preset = PRESETS.get(str(checkpoint_or_preset), checkpoint_or_preset)
    if isinstance(checkpoint_or_preset, Config):
        config = checkpoint_or_preset
        return Model(BCNet(config.model), config, resolved, precision, backend)
    if not Path(checkpoint_or_preset).exists():
        expected = f"a bcnet_fast checkpoint (.safetensors), or a preset: {', '.join(PRESETS)}"
        raise InputError(f"{checkpoint_or_preset}: expected {expected}; found nothing there")
    config, state = read_checkpoint(checkpoint_or_preset)
    if config.model.name != "bcnet":
        raise InputError(f"{checkpoint_or_preset}: expected weights of bcnet, found weights of {config.model.name}")
    network = BCNet(config.model)
    check_state(network, state, str(checkpoint_or_preset))
    network.load_state_dict(state)
    return Model(network, config, resolved, precision, backend)
