"""The compiled extensions for the CPU and for CUDA: each the module, or None and the reason."""

from __future__ import annotations

import functools
import importlib
from typing import Any

# The interface numbers of csrc/bindings.cpp and csrc/bindings_cuda.cpp that this code was written for. Raise both sides
# when a signature or its contract changes: an editable install does not rebuild C++, and must not call an old build.
INTERFACE = 9
CUDA_INTERFACE = 1


def _load(name: str, interface: int, what: str, needs: str) -> tuple[Any, str | None]:
    try:
        found = importlib.import_module(f"bcnet_fast.{name}")
    except ImportError as error:
        return None, f"{what} was not built or cannot be loaded ({error}); run 'pip install -e .' with {needs}"
    if found.INTERFACE != interface:
        return None, f"{what} is of interface {found.INTERFACE}, expected {interface}; run 'pip install -e .' again"
    return found, None


module, reason = _load("_C", INTERFACE, "the native extension", "a C++ compiler")


@functools.cache
def cuda() -> tuple[Any, str | None]:
    """Return the CUDA extension, or None and the reason. It is loaded on the first call, to save a CPU its memory."""
    return _load("_C_cuda", CUDA_INTERFACE, "the CUDA extension", "nvcc")


@functools.cache
def cuda_problem(device: int) -> str | None:
    """Return the reason why the CUDA extension cannot run on a device (by index); None if it can.

    The device may be older than those the extension was built for, or the driver older than the nvcc that built it.
    """
    found, why = cuda()
    if found is None:
        return why
    try:
        found.soft_nms_shared_limit(device)
    except RuntimeError as error:
        return f"the CUDA extension cannot use the device ({error})"
    return None
