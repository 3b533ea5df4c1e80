"""Shared parts of the Triton kernels: a launch is a value, so that bench/aot.py compiles exactly what a GPU runs."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

# Compute capabilities that every shipped variant was compiled for, with the KiB of shared memory that a block may use
# there (CUDA C++ Programming Guide, technical specifications). No variant needs more: bench/aot.py checks it.
SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
TARGETS = tuple(SHARED_KIB)


class Config(NamedTuple):
    """One compiled variant of a kernel, and the targets where it is used: it fits them without spills."""

    tiles: dict[str, int]
    num_warps: int
    num_stages: int
    targets: tuple[int, ...]


class Launch(NamedTuple):
    """A kernel with its grid, arguments by name, and variant. On the device "meta" it can be compiled, not run."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    config: Config

    @property
    def options(self) -> dict[str, Any]:
        """The compiler's options. Fused multiply-adds are named: Triton 3.9 warns that their default changes."""
        return {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages, "enable_fp_fusion": True}

    def run(self) -> None:
        device = next(a.device for a in self.arguments.values() if isinstance(a, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](**self.arguments, **self.config.tiles, **self.options)


def strides(**tensors: torch.Tensor) -> dict[str, int]:
    """Return the kernel arguments `<name>_s0`, `<name>_s1`, ... with the strides of each tensor."""
    return {f"{name}_s{i}": s for name, tensor in tensors.items() for i, s in enumerate(tensor.stride())}


def aligned(tensor: torch.Tensor, multiple: int = 16) -> torch.Tensor:
    """Pad rows to a multiple of elements, by a copy if needed: unaligned rows are read one element at a time."""
    missing = -tensor.shape[-1] % multiple
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def copy_back(padded: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    """Copy from the `aligned` forms of `tensors` to the tensors themselves."""
    for source, tensor in zip(padded, tensors, strict=True):
        if source is not tensor:
            tensor.copy_(source[..., : tensor.shape[-1]])


def target_of(device: torch.device) -> int:
    """Return the newest of TARGETS that is not newer than `device`; for the interpreter on a CPU, the newest of all."""
    if device.type != "cuda":
        return TARGETS[-1]
    major, minor = torch.cuda.get_device_capability(device)
    return max((t for t in TARGETS if t <= 10 * major + minor), default=TARGETS[0])


def multiprocessors(device: torch.device) -> int:
    """Return the number of blocks that occupies every multiprocessor of `device`; 0 for the interpreter on a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def float32_precision() -> str:
    """Return the precision of float32 in `tl.dot`: "tf32" if PyTorch allows it for its own CUDA matmuls, else "ieee".

    The switch is `torch.backends.cuda.matmul.allow_tf32` or `.fp32_precision`, off by default.
    """
    matmul = torch.backends.cuda.matmul
    # Where the newer attribute exists, reading the older one can raise.
    precision = getattr(matmul, "fp32_precision", None)
    return "tf32" if precision == "tf32" or (precision is None and matmul.allow_tf32) else "ieee"


def product_precision(target: int) -> tuple[str, bool]:
    """How kernels multiply matrices on `target`: the precision of float32, and whether 16-bit tiles are widened to it.

    Below 80, Triton 3.3 and later have no tensor-core products, and 3.2 no TF32. They multiply float32 copies of 16-bit
    tiles; Triton 3.3 compiles that only where the kernel makes the copies.
    """
    return ("ieee", True) if target < 80 else (float32_precision(), False)
