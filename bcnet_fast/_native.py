"""The native extensions for the CPU and for CUDA, as far as they were built: the module, else None and the reason."""

from __future__ import annotations

import functools
import importlib
import runpy
import warnings
from pathlib import Path
from types import ModuleType

# Tells which sources a build has to be of. A wheel has no sources, and its extensions are those that came with it.
_DIGEST = Path(__file__).resolve().parents[1] / "csrc" / "digest.py"


def _load(name: str, what: str, needs: str) -> tuple[ModuleType | None, str | None]:
    try:
        found = importlib.import_module(f".{name}", __package__)
    except ImportError as error:
        return None, f"{what} was not built or cannot be loaded ({error}); run 'pip install -e .' with {needs}"
    if _DIGEST.is_file() and getattr(found, "SOURCES", None) != runpy.run_path(str(_DIGEST))["digest"](name):
        why = f"{what} was built from other sources than those in {_DIGEST.parent}; run 'pip install -e .' again"
        warnings.warn(why, RuntimeWarning, stacklevel=2)
        return None, why
    return found, None


module, reason = _load("_C", "the native extension", "a C++ compiler")


@functools.cache
def cuda() -> tuple[ModuleType | None, str | None]:
    """The extension for CUDA, looked up when first needed: a process on a CPU does without its memory."""
    return _load("_C_cuda", "the CUDA extension", "nvcc")


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
