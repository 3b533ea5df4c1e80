"""The choice of the backend that runs an operator on a device."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..errors import BackendError
from ..text import alternatives
from . import native
from .refusals import name_of

BACKENDS = ("auto", "reference", "native", "triton")
# On CUDA only, and only by "auto": inputs are copied to the host, and the native code runs there.
HOST = "host"
VARIABLE = "BCNET_FAST_BACKEND"
# Oldest version that the kernels were checked with. The package requires no version: PyTorch pins its own Triton.
OLDEST_TRITON = (3, 2)

# Per operator and device type, best first. The reference runs everywhere, so "auto" always finds a backend.
PREFERENCE: dict[str, dict[str, tuple[str, ...]]] = {
    "soft_nms": {"cpu": ("native", "reference"), "cuda": ("native", HOST, "reference")},
    "difference_attention": {"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
    "anchor_sampling": {"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
    "add_layer_norm": {"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
    "match_proposals": {"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
}

# Per operator and backend: dtypes that the reference supports and this backend does not.
UNSUPPORTED: dict[tuple[str, str], tuple[torch.dtype, ...]] = {
    ("difference_attention", "triton"): (torch.float64,),
    ("anchor_sampling", "triton"): (torch.float64,),
    ("add_layer_norm", "triton"): (torch.float64,),
    # The C++ code reads NumPy arrays, and NumPy has no bfloat16.
    ("add_layer_norm", "native"): (torch.float16, torch.bfloat16),
}

_override: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


def requested() -> str:
    """Name of the backend set by `use_backend`, else by the environment variable BCNET_FAST_BACKEND, else "auto".

    Raises BackendError for an unknown name.
    """
    name = _override.get() or os.environ.get(VARIABLE) or "auto"
    if name not in (*BACKENDS, HOST):
        raise BackendError(f"backend is {name!r}, expected {alternatives(BACKENDS)}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Set the backend for a `with` block, in this thread only.

    Args:
        name: "reference", "native" or "triton"; "auto" leaves the choice to BCNET_FAST_BACKEND.

    A backward pass uses the backend that was set when its forward pass ran. Code compiled by torch.compile must not
    enter the block; a compiled function may be called inside it.

    Raises BackendError for an unknown name.
    """
    token = _override.set(None if name == "auto" else name)
    try:
        requested()
        yield
    finally:
        _override.reset(token)


def unusable(op: str, backend: str, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Reason why `backend` cannot run `op` on `device` (with inputs of `dtype`); None if it can."""
    if dtype in UNSUPPORTED.get((op, backend), ()):
        return f"{op} has no {name_of(dtype)} kernel in it"
    if backend not in PREFERENCE[op].get(device.type, ("reference",)):
        return f"{op} has no {backend} implementation for {device.type}"
    if backend == "native" and device.type == "cuda":
        return native.cuda_problem(device.index or 0)
    if backend in ("native", HOST):
        return native.reason
    if backend == "triton":
        return _triton_problem(device)
    return None


def _triton_problem(device: torch.device) -> str | None:
    """Reason why Triton kernels cannot run on a device; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {triton.__version__} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "on a CPU, Triton kernels run only in its interpreter (set TRITON_INTERPRET=1 before Python starts)"
    if device.type == "cuda":
        return triton_kernels("_device_check").launch_problem(device.index or 0)
    return None


def triton_kernels(name: str) -> Any:
    """Return a module of kernels/, imported when first needed: importing Triton takes time and memory."""
    return importlib.import_module(f"..kernels.{name}", __package__)


def choose(op: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Choose the backend that runs `op` on `device` (with inputs of `dtype`).

    Raises BackendError if a backend was requested by name and cannot be used: only "auto" falls back.
    """
    name = requested()
    candidates = PREFERENCE[op].get(device.type, ("reference",))
    if name == "auto":
        chosen = next(b for b in candidates if unusable(op, b, device, dtype) is None)
        if chosen == "reference" and device.type == "cuda":
            _warn_of_reference(op, candidates[0], device)
        return chosen
    why = unusable(op, name, device, dtype)
    if why is not None:
        raise BackendError(f"backend {name!r} cannot be used: {why}")
    return name


@functools.cache
def _warn_of_reference(op: str, best: str, device: torch.device) -> None:
    """Warn once per operator and device that a GPU falls back to the reference. An unsupported dtype is no problem."""
    why = unusable(op, best, device)
    if why is not None:
        warnings.warn(f"{op} runs as plain PyTorch or NumPy on {device}, which is slow: {why}", stacklevel=4)


def _autocasts(device: str) -> bool:
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def autocast(*tensors: Any) -> list[Any]:
    """Cast floating-point tensors to torch.autocast's dtype where autocast is on, but keep float64."""
    device = tensors[0].device.type
    if not _autocasts(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype) for t in tensors]


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate an implementation to run with torch.autocast off, so that products are made in the documented dtype."""

    @functools.wraps(function)
    def run(tensor: torch.Tensor, *arguments: Any) -> Any:
        if not _autocasts(tensor.device.type):
            return function(tensor, *arguments)
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *arguments)

    return run
