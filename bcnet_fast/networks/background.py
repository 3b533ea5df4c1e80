"""The background constraint (paper, section 3.2), which BCNet, BMN and G-TAD share.

A network predicts for every anchor, or cell of a map, the probability that it shows background. A high probability
lowers the confidence of a proposal, however well its boundaries fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def background_layer(kind: type[nn.Module], channels: int, **options: Any) -> nn.Sequential:
    """Build the head for the background score: a linear layer of the given kind on the last features, and a sigmoid."""
    return nn.Sequential(kind(channels, 1, **options), nn.Sigmoid())


def background_labels(overlap: np.ndarray, length: np.ndarray, *, largest: bool = False) -> np.ndarray:
    """Compute 1 - the share of each anchor that instances cover, at least 0 (Eq. 2): float64 [P].

    overlap: [G, P] lengths of the intersections of G instances with P anchors
    length: lengths of the anchors, [P] or broadcastable to it, in the same unit
    largest: whether only the largest overlap of an anchor counts, as in the public BCNet release, instead of the sum
    """
    covered = overlap.max(axis=0, initial=0.0) if largest else overlap.sum(axis=0)
    return np.maximum(1 - covered / length, 0.0)


def constrain(confidence: Tensor, background: Tensor | None) -> Tensor:
    """Multiply the confidence by 1 - p_b (Eq. 13); unchanged where the network has no background score."""
    return confidence if background is None else confidence * (1 - background)


def background_scores(background: Tensor | None, like: Tensor) -> Tensor:
    """Return the background scores, or zeros where the network has none: 0 is a factor of 1 in `constrain`."""
    return torch.zeros_like(like) if background is None else background
