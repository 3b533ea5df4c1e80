"""The native extensions for the CPU and for CUDA, as far as they were built: the module, else None and the reason."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

# Raised together with the constant in csrc/python/bindings.cpp or csrc/python/bindings_cuda.cpp whenever a signature there, or what
# it promises, changes: an editable install does not rebuild C++ by itself, and new code must not call an old build.
INTERFACE = 9
CUDA_INTERFACE = 1


def _load(name: str, interface: int, what: str, needs: str) -> tuple[ModuleType | None, str | None]:
    try:
        found = importlib.import_module(f".{name}", __package__)
    except ImportError as error:
        return None, f"{what} was not built or cannot be loaded ({error}); run 'pip install -e .' with {needs}"
    if found.INTERFACE != interface:
        return None, f"{what} is of interface {found.INTERFACE}, expected {interface}; run 'pip install -e .' again"
    return found, None


module, reason = _load("_C", INTERFACE, "the native extension", "a C++ compiler")


@functools.cache
def cuda() -> tuple[ModuleType | None, str | None]:
    """The extension for CUDA, looked up when first needed: a process on a CPU does without its memory."""
    return _load("_C_cuda", CUDA_INTERFACE, "the CUDA extension", "nvcc")


@functools.cache
def cuda_problem(device: int) -> str | None:
    """Why the CUDA extension cannot be used on a device; None when it can.

    The device may be older than those that it was built for, or the driver older than the nvcc that built it.
    """
    found, why = cuda()
    if found is None:
        return why
    try:
        found.soft_nms_shared_limit(device)
    except RuntimeError as error:
        return f"the CUDA extension cannot use the device ({error})"
    return None
