"""Random states that follow from a training's seed and from what they are for."""

from __future__ import annotations

import numpy as np
import torch


def mixed(*entropy: int) -> int:
    """One seed of 64 bits from several numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def seed_torch(*entropy: int) -> None:
    """Seed PyTorch's generator, which dropout draws from."""
    torch.manual_seed(mixed(*entropy))
