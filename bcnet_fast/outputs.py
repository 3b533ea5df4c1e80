"""What a network returns: the same fields from every implementation of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class BCNetOutput:
    """Scores of BCNet for a batch of windows; probabilities in [0, 1] unless said.

    start, end, actionness [B, T]; frame_action, frame_background [B, T]; regression [B, P] is linear and unbounded;
    classification, background [B, P]. P anchors in the order of `anchors.make_anchors`.
    """

    start: Tensor
    end: Tensor
    actionness: Tensor
    frame_action: Tensor
    frame_background: Tensor
    regression: Tensor
    classification: Tensor
    background: Tensor
