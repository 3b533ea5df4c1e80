"""The background constraint (paper, section 3.2), one piece that BCNet, BMN and G-TAD share.

A network gives every anchor, or cell of a map, the probability that it shows background. Where that is high, the
confidence of a proposal is low, however well its boundaries fit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def background_layer(kind: type[nn.Module], channels: int, **options: object) -> nn.Sequential:
    """What a network gains: one more score of every anchor's last features, made by a linear layer of its kind."""
    return nn.Sequential(kind(channels, 1, **options), nn.Sigmoid())


def background_labels(overlap: np.ndarray, length: np.ndarray, *, largest: bool = False) -> np.ndarray:
    """1 - the part of an anchor that instances cover, at least 0 (Eq. 2), float64 [P].

    overlap: [G, P] lengths of the intersections of G instances with P anchors; length: [P], or broadcast to it, in the
    same unit. With `largest`, an anchor's largest overlap counts and not their sum, as in the public BCNet release.
    """
    covered = overlap.max(axis=0, initial=0.0) if largest else overlap.sum(axis=0)
    return np.maximum(1 - covered / length, 0.0)


def constrain(confidence: Tensor, background: Tensor | None) -> Tensor:
    """The factor 1 - p_b of the confidence (Eq. 13); none where the network has no background score."""
    return confidence if background is None else confidence * (1 - background)


def background_scores(background: Tensor | None, like: Tensor) -> Tensor:
    """Scores for code that takes a background score in any case: without one it is 0, a factor of 1."""
    return torch.zeros_like(like) if background is None else background
