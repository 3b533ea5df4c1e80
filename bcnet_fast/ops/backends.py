"""Which backend an operator uses on a device, and why: the one home of that decision."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import numbers
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import forward_ad

from ..errors import BackendError
from . import native as _native

BACKENDS = ("auto", "reference", "native", "triton")
# Of an operator on CUDA: its inputs are copied to the host, where the native code runs. Part of "auto" alone.
HOST = "host"
VARIABLE = "BCNET_FAST_BACKEND"
# What the kernels were checked with. The package asks for less, since PyTorch pins its Triton and must not be replaced.
OLDEST_TRITON = (3, 2)

# Best first, for each operator and kind of device. The reference runs everywhere and closes every list.
PREFERENCE: dict[str, dict[str, tuple[str, ...]]] = {
    "soft_nms": {"cpu": ("native", "reference"), "cuda": ("native", HOST, "reference")},
    "difference_attention": {"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
    "anchor_sampling": {"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
    "add_layer_norm": {"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
    "match_proposals": {"cpu": ("native", "reference", "triton"), "cuda": ("triton", "reference")},
}

# The backends that have no code for some dtypes which the operator's reference takes.
LACKING: dict[tuple[str, str], tuple[torch.dtype, ...]] = {
    ("difference_attention", "triton"): (torch.float64,),
    ("anchor_sampling", "triton"): (torch.float64,),
    ("add_layer_norm", "triton"): (torch.float64,),
    # NumPy, whose arrays C++ is given, has no bfloat16.
    ("add_layer_norm", "native"): (torch.float16, torch.bfloat16),
}

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)

_override: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


def requested() -> str:
    """The backend asked for by `use_backend`, else by the environment variable BCNET_FAST_BACKEND, else "auto"."""
    name = _override.get() or os.environ.get(VARIABLE) or "auto"
    if name not in (*BACKENDS, HOST):
        raise BackendError(f"backend {name!r}: expected one of {', '.join(BACKENDS)}")
    return name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Ask for one backend inside a `with` block, in this thread. "auto" leaves the choice to BCNET_FAST_BACKEND.

    A backward uses the backend that was asked for where its forward ran. Not for code inside torch.compile.
    """
    token = _override.set(None if name == "auto" else name)
    try:
        requested()
        yield
    finally:
        _override.reset(token)


def unusable(op: str, backend: str, device: torch.device, dtype: torch.dtype | None = None) -> str | None:
    """Why `backend` cannot run `op` on `device`, and for `dtype` if one is given; None when it can."""
    if dtype in LACKING.get((op, backend), ()):
        return f"{op} has no {str(dtype).removeprefix('torch.')} kernel in it"
    if backend not in PREFERENCE[op].get(device.type, ("reference",)):
        return f"{op} has no {backend} implementation for {device.type}"
    if backend == "native" and device.type == "cuda":
        return _native.cuda_problem(device.index or 0)
    if backend in ("native", HOST):
        return _native.reason
    if backend == "triton":
        return _triton_problem(device)
    return None


def _triton_problem(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device; None when they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
        return f"triton {triton.__version__} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "on a CPU, Triton kernels run only in its interpreter (set TRITON_INTERPRET=1 before Python starts)"
    if device.type == "cuda":
        from ..kernels._common import launch_problem

        return launch_problem(device.index or 0)
    return None


def choose(op: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """The backend that runs `op` on `device`, and for `dtype` if one is given.

    Raises BackendError when a backend was asked for by name and cannot be used: only "auto" falls back.
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
        raise BackendError(f"backend {name!r} was asked for, but {why}")
    return name


@functools.cache
def _warn_of_reference(op: str, best: str, device: torch.device) -> None:
    """Say once why an operator is slow on a GPU; a dtype that no kernel takes is no reason."""
    why = unusable(op, best, device)
    if why is not None:
        warnings.warn(f"{op} runs as plain PyTorch or NumPy on {device}, which is slow: {why}", stacklevel=4)


def _autocasts(device: str) -> bool:
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def autocast(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The tensors in the dtype that torch.autocast wants products to be made in, where it is on; float64 stays."""
    device = tensors[0].device.type
    if not _autocasts(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype) for t in tensors]


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with torch.autocast off while it runs: an operator multiplies in the dtype it says it does."""

    @functools.wraps(function)
    def run(tensor: torch.Tensor, *arguments: Any) -> Any:
        if not _autocasts(tensor.device.type):
            return function(tensor, *arguments)
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *arguments)

    return run


def call(operator: Callable[..., Any], body: Callable[..., Any], *arguments: Any) -> Any:
    """`operator(*arguments)`, a torch.library operator whose body is `body`, by the short way where there is nothing
    between them to do: PyTorch takes 10 to 70 us from one to the other, longer than some of them run.

    Raises NotImplementedError where forward-mode derivatives are asked for: PyTorch would leave them out in silence.
    """
    if plain(*arguments):
        return body(*arguments)
    if _forward_mode() and any(map(_has_tangent, arguments)):
        raise NotImplementedError(f"{operator._name}: has no forward-mode derivative, only gradients")
    return operator(*arguments)


def plain(*arguments: Any) -> bool:
    """Whether a call with these arguments is execution alone.

    It is not where derivatives are to be prepared, and where more is going on: tracing, a transform of torch.func, a
    mode of PyTorch, profiling, a tensor of another class.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.autograd._profiler_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or _forward_mode()
        or any(isinstance(argument, torch.Tensor) and not _is_plain(argument) for argument in arguments)
    )


def _forward_mode() -> bool:
    return forward_ad._current_level >= 0


def _has_tangent(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) and forward_ad.unpack_dual(argument).tangent is not None


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in PLAIN_TENSORS and not (tensor.requires_grad and torch.is_grad_enabled())


def check_number(op: str, argument: str, value: Any, *, integer: bool = False) -> None:
    """Raise TypeError where an argument is no number: PyTorch's own words for it are a page long."""
    kinds = (numbers.Integral, torch.SymInt) if integer else (numbers.Real, torch.SymInt, torch.SymFloat)
    if not isinstance(value, kinds):
        wanted = "an integer" if integer else "a number"
        raise TypeError(f"{op}: {argument} must be {wanted}, got {value!r}")
