"""Whether the Triton kernels run on a CUDA device."""

from __future__ import annotations

import functools

import torch

from . import add_layer_norm
from ._common import SHARED_KIB, target_of


@functools.cache
def launch_problem(index: int) -> str | None:
    """Return the reason why kernels cannot be compiled for or run on a CUDA device; None if they can.

    Triton compiles at the first launch, for which it needs a C compiler and Python's headers where the program runs. So
    this launches a small kernel, once for each device, and checks its result.
    """
    device = torch.device("cuda", index)
    try:
        given = torch.arange(32.0, device=device).view(2, 16)
        out, rstd = torch.full_like(given, torch.nan), given.new_empty(2)
        add_layer_norm.launch(given, given, out, rstd, 1e-5)
        expected = torch.nn.functional.layer_norm(2 * given, (16,))
        if not torch.allclose(out, expected, rtol=0, atol=1e-4):
            return "a Triton kernel gave a wrong result"
        memory = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None)
    except Exception as error:  # From PyTorch, Triton, the C compiler that Triton starts, or the driver.
        what = str(error).strip().partition("\n")[0][:300]
        return (
            f"Triton cannot run a kernel ({type(error).__name__}: {what}); it needs a C compiler and Python's headers "
            "(Debian: gcc and python3-dev)"
        )
    target = target_of(device)
    if memory is not None and memory < SHARED_KIB[target] * 1024:
        return f"the kernels for sm_{target} take up to {SHARED_KIB[target]} KiB of shared memory, found {memory >> 10}"
    return None
