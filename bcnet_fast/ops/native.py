"""The compiled extensions for the CPU and for CUDA: each the module, or None and the reason."""

from __future__ import annotations

import functools
import importlib
import runpy
import warnings
from pathlib import Path
from typing import Any

# Names the sources that a build has to come from. A wheel holds no sources, and its extensions are the right ones.
_DIGEST = Path(__file__).resolve().parents[2] / "csrc" / "digest.py"


def _load(name: str, what: str, needs: str) -> tuple[Any, str | None]:
    try:
        found = importlib.import_module(f"bcnet_fast.{name}")
    except ImportError as error:
        return None, f"{what} was not built or cannot be loaded ({error}); run 'pip install -e .' with {needs}"
    if _DIGEST.is_file() and getattr(found, "SOURCES", None) != runpy.run_path(str(_DIGEST))["digest"](name):
        why = f"{what} was built from other sources than those in {_DIGEST.parent}; run 'pip install -e .' again"
        warnings.warn(why, RuntimeWarning, stacklevel=2)
        return None, why
    return found, None


module, reason = _load("_C", "the native extension", "a C++ compiler")


@functools.cache
def cuda() -> tuple[Any, str | None]:
    """Return the CUDA extension, or None and the reason. It is loaded on the first call, to save a CPU its memory."""
    return _load("_C_cuda", "the CUDA extension", "nvcc")


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
