"""The device that a name stands for."""

from __future__ import annotations

import torch

from ..errors import InputError
from ..text import count


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """A device with its index; "auto" takes CUDA where there is one, "cuda" the current CUDA device.

    InputError for a device that this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device is {name!r}, expected auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device is {name!r}, expected auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        devices = count(torch.cuda.device_count(), "CUDA device")
        raise InputError(f"--device is {name!r}, but torch {torch.__version__} sees {devices} here")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
