"""The compiled extensions for the CPU and for CUDA: each the module, or None and the reason."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
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
        found = _of_installation(name)
        if found is None:
            return None, f"{what} was not built or cannot be loaded ({error}); run 'pip install -e .' with {needs}"
    if _DIGEST.is_file() and getattr(found, "SOURCES", None) != runpy.run_path(str(_DIGEST))["digest"](name):
        why = f"{what} was built from other sources than those in {_DIGEST.parent}; run 'pip install -e .' again"
        warnings.warn(why, RuntimeWarning, stacklevel=2)
        return None, why
    return found, None


def _of_installation(name: str) -> Any:
    """The extension of an installed bcnet_fast, for a checkout that hides it, or None.

    After `pip install .`, Python started in the checkout imports its folder bcnet_fast, which has no extension.
    """
    if not _DIGEST.is_file():
        return None
    for installed in importlib.metadata.distributions(name="bcnet_fast"):
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(str(installed.locate_file(f"bcnet_fast/{name}{suffix}")))
            spec = importlib.util.spec_from_file_location(f"bcnet_fast.{name}", path) if path.is_file() else None
            if spec is None or spec.loader is None:
                continue
            with contextlib.suppress(ImportError):
                found = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(found)
                return found
    return None


module, reason = _load("_C", "the native extension", "a C++ compiler")


def missing_note() -> str | None:
    """One line for users of a command whose code for the CPU was not built; None if it was."""
    return None if module is not None else f"{reason}; until then PyTorch and Python do its work, several times slower"


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
