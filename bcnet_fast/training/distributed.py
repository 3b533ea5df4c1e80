"""The processes of a training, which share each batch."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """The processes of a training: this one alone, or all those that torchrun started."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    @classmethod
    @contextlib.contextmanager
    def join(cls, device: torch.device) -> Iterator[Processes]:
        """Join the processes of torchrun's environment variables, with gloo on CPUs and NCCL on GPUs."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            yield cls()
            return
        # The others wait while the first one validates.
        patience = datetime.timedelta(hours=6)
        on_gpu = device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=patience, device_id=device if on_gpu else None)
        try:
            yield cls(dist.get_rank(), count)
            # A process that ends while others still work may abort, and torchrun then stops them all.
            dist.barrier()
        finally:
            dist.destroy_process_group()

    def part(self, batch: Sequence[int]) -> list[int]:
        """This process's windows of a batch."""
        return np.array_split(np.asarray(batch), self.count)[self.rank].tolist()

    def gather(self, mine: Tensor, rows: Sequence[int]) -> Tensor:
        """Gather the rows of all processes; `rows` has their numbers. Only this process's rows keep their gradient."""
        if self.count == 1:
            return mine
        # Collectives need equal shapes. A batch that the number of processes does not divide has parts of two sizes.
        padded = mine.new_zeros(max(rows), *mine.shape[1:])
        padded[: len(mine)] = mine.detach()
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        parts = [part[:count] for part, count in zip(parts, rows, strict=True)]
        parts[self.rank] = mine
        return torch.cat(parts)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count == 1:
            return
        together = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(together)
        parts = together.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
