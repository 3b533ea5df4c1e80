"""BCNet's objective (paper, Eq. 7-11, balanced as in BMN), finite also for a batch without positives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import Targets
from .outputs import BCNetOutput
from .protocols import PROTOCOLS, Protocol

FRAME_THRESHOLD = 0.5  # a label above it makes a snippet positive
ANCHOR_THRESHOLD = 0.8  # the same for an anchor
HIGH_TIOU, LOW_TIOU = 0.7, 0.3  # anchors above, between and below are balanced in the regression loss


def binary_logistic_loss(prediction: Tensor, label: Tensor, threshold: float) -> Tensor:
    """Weighted binary logistic loss L_bl: the mean over positives and the mean over negatives, each counted half.

    prediction: probabilities in [0, 1]; label: float32 of the same shape, positive above `threshold`. Written with
    BMN's coefficients the weights are 0.5 N / P for positives and 0.5 N / (N - P) for negatives. A kind that does
    not occur adds 0.
    """
    prediction = prediction.to(torch.promote_types(prediction.dtype, label.dtype))
    positive = label > threshold
    floor = 1e-6  # BMN's guard against log(0)
    losses = -torch.where(positive, prediction, 1 - prediction).add(floor).log()
    return sum((losses * kind).sum() / kind.sum().clamp(min=1) for kind in (positive, ~positive)) / 2


def regression_weights(label: Tensor, draws: Tensor, protocol: Protocol = PROTOCOLS["default"]) -> Tensor:
    """BMN's sampling balance: all labels above 0.7, and as many of (0.3, 0.7] and of (0, 0.3] on average, weigh 1.

    label: float32 tIoU of any shape; draws: uniform in [0, 1), [2, *label.shape], for the medium and the low labels.
    Labels of 0 are never taken. Where fewer medium or low labels exist than high ones, all of them are taken.
    """
    high = label > HIGH_TIOU
    medium = (label > LOW_TIOU) & (label <= HIGH_TIOU)
    low = (label > 0) & (label <= LOW_TIOU)
    weights = high.float()
    for draw, group in zip(draws, (medium, low), strict=True):
        ratio = high.sum() / group.sum()  # NaN, which takes nothing, when both are 0
        taken = draw * group > 1 - ratio
        weights = weights + (taken if protocol.oversample else taken & group)
    return weights


def regression_loss(
    prediction: Tensor, label: Tensor, draws: Tensor | None = None, protocol: Protocol = PROTOCOLS["default"]
) -> Tensor:
    """Smooth L1 (beta 1) over the anchors that `regression_weights` takes; 0 when it takes none.

    prediction, label: [B, P]; draws: [2, B, P] uniform in [0, 1), by default from PyTorch's generator.
    """
    if draws is None:
        draws = torch.rand(2, *label.shape, device=label.device)
    weights = regression_weights(label, draws, protocol)
    loss = F.smooth_l1_loss(prediction * weights, label * weights, reduction="sum")
    return loss / weights.sum().clamp(min=1)


def bcnet_loss(
    output: BCNetOutput, targets: Targets, *, draws: Tensor | None = None, protocol: Protocol = PROTOCOLS["default"]
) -> dict[str, Tensor]:
    """All parts of L = L1 + L2 for a batch, as scalars.

    `boundary` (L1) is the sum of actionness, start and end: the public release trains actionness too, which Eq. 8
    leaves out. `interaction` (L2, Eq. 9-11) is the sum of frame_action, frame_background, regression, classification
    and background. `total` is the sum of both. `draws` as in `regression_loss`.
    """
    logistic = binary_logistic_loss
    losses = {
        "actionness": logistic(output.actionness, targets.frame_action, FRAME_THRESHOLD),
        "start": logistic(output.start, targets.start, FRAME_THRESHOLD),
        "end": logistic(output.end, targets.end, FRAME_THRESHOLD),
        "frame_action": logistic(output.frame_action, targets.frame_action, FRAME_THRESHOLD),
        "frame_background": logistic(output.frame_background, targets.frame_background, FRAME_THRESHOLD),
        "regression": regression_loss(output.regression, targets.anchor_action, draws, protocol),
        "classification": logistic(output.classification, targets.anchor_action, ANCHOR_THRESHOLD),
        "background": logistic(output.background, targets.anchor_background, ANCHOR_THRESHOLD),
    }
    parts = list(losses.values())
    losses["boundary"] = torch.stack(parts[:3]).sum()
    losses["interaction"] = torch.stack(parts[3:]).sum()
    losses["total"] = losses["boundary"] + losses["interaction"]
    return losses
