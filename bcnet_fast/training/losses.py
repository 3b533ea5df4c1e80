"""Training objectives of all three systems (paper, Eq. 7-11, balanced as in BMN).

Every loss stays finite when a batch has no positives, where the public codes give NaN. The objectives of BMN and G-TAD
weigh their terms like the public releases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.outputs import BCNetOutput, MapOutput
from ..protocols import DEFAULT, LossRules
from .targets import MapTargets, Targets

FRAME_THRESHOLD = 0.5  # snippets with a larger label are positive
ANCHOR_THRESHOLD = 0.8  # anchors with a larger label are positive
CELL_THRESHOLD = 0.9  # map cells with a larger action label are positive
REGRESSION_WEIGHT = 10.0  # weight of the regression term of a map
PADDED_COUNT = 10  # added to both counts under LossRules.padded_counts
HIGH_TIOU, LOW_TIOU = 0.7, 0.3  # anchors above, between and below are balanced in the regression loss


def binary_logistic_loss(prediction: Tensor, label: Tensor, threshold: float, padding: int = 0) -> Tensor:
    """Weighted binary logistic loss L_bl: half the mean over positives plus half the mean over negatives.

    prediction: probabilities in [0, 1].
    label: float32, like prediction in shape; positive above `threshold`.
    padding: added to the number of positives and of negatives in the means.

    In BMN's notation the weights are 0.5 N / P for positives and 0.5 N / (N - P) for negatives. A batch without
    positives, or without negatives, adds 0 for them.
    """
    prediction = prediction.to(torch.promote_types(prediction.dtype, label.dtype))
    positive = label > threshold
    floor = 1e-6  # BMN's guard against log(0)
    losses = -torch.where(positive, prediction, 1 - prediction).add(floor).log()
    of_positives, of_negatives = (
        (losses * kind).sum() / (kind.sum() + padding).clamp(min=1) for kind in (positive, ~positive)
    )
    return (of_positives + of_negatives) / 2


def regression_weights(label: Tensor, draws: Tensor, rules: LossRules = DEFAULT.losses) -> Tensor:
    """Sampling weights, 0 or 1, that balance high, medium and low tIoU as in BMN.

    All labels above 0.7 weigh 1. A random part of the labels in (0.3, 0.7], and of those in (0, 0.3], weighs 1: on
    average as many as there are high ones, or all if there are fewer. Labels of 0 weigh 0.

    label: tIoU, float32 of any shape.
    draws: uniform in [0, 1), [2, *label.shape], for the medium and the low labels.
    """
    high = label > HIGH_TIOU
    medium = (label > LOW_TIOU) & (label <= HIGH_TIOU)
    low = (label > 0) & (label <= LOW_TIOU)
    weights = high.float()
    for draw, group in zip(draws, (medium, low), strict=True):
        ratio = high.sum() / group.sum()  # NaN where both are 0: the comparison below is then false
        taken = draw * group > 1 - ratio
        weights = weights + (taken if rules.oversample else taken & group)
    return weights


def regression_loss(
    prediction: Tensor, label: Tensor, draws: Tensor | None = None, rules: LossRules = DEFAULT.losses
) -> Tensor:
    """Mean smooth L1 (beta 1) over the anchors with a sampling weight of 1; 0 where there are none.

    prediction, label: [B, P].
    draws: [2, B, P], uniform in [0, 1); PyTorch's generator draws them by default.
    """
    weights = regression_weights(label, _draws(label, draws), rules)
    loss = F.smooth_l1_loss(prediction * weights, label * weights, reduction="sum")
    return loss / weights.sum().clamp(min=1)


def _draws(label: Tensor, draws: Tensor | None) -> Tensor:
    return torch.rand(2, *label.shape, device=label.device) if draws is None else draws


def background_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """Loss of the background constraint, for anchors and for map cells (L_bl of Eq. 11)."""
    return binary_logistic_loss(prediction, label, ANCHOR_THRESHOLD)


def bcnet_loss(
    output: BCNetOutput, targets: Targets[Tensor], *, draws: Tensor | None = None, rules: LossRules = DEFAULT.losses
) -> dict[str, Tensor]:
    """BCNet's objective L = L1 + L2 over a batch, with all its terms, as scalars.

    `boundary` (L1) adds actionness, start and end; the public release trains actionness, which Eq. 8 omits.
    `interaction` (L2, Eq. 9-11) adds frame_action, frame_background, regression, classification and background, as far
    as the network has these scores. `total` adds both. draws: see `regression_loss`.
    """
    logistic = binary_logistic_loss
    losses = {
        "actionness": logistic(output.actionness, targets.frame_action, FRAME_THRESHOLD),
        "start": logistic(output.start, targets.start, FRAME_THRESHOLD),
        "end": logistic(output.end, targets.end, FRAME_THRESHOLD),
    }
    if output.frame_action is not None and output.frame_background is not None:
        losses["frame_action"] = logistic(output.frame_action, targets.frame_action, FRAME_THRESHOLD)
        losses["frame_background"] = logistic(output.frame_background, targets.frame_background, FRAME_THRESHOLD)
    losses["regression"] = regression_loss(output.regression, targets.anchor_action, draws, rules)
    losses["classification"] = logistic(output.classification, targets.anchor_action, ANCHOR_THRESHOLD)
    if output.background is not None:
        losses["background"] = background_loss(output.background, targets.anchor_background)
    parts = list(losses.values())
    losses["boundary"] = torch.stack(parts[:3]).sum()
    losses["interaction"] = torch.stack(parts[3:]).sum()
    losses["total"] = losses["boundary"] + losses["interaction"]
    return losses


def map_loss(
    output: MapOutput,
    targets: MapTargets[Tensor],
    valid: Tensor,
    *,
    draws: Tensor | None = None,
    rules: LossRules = DEFAULT.losses,
) -> dict[str, Tensor]:
    """The objective of BMN and G-TAD over a batch, with all its terms, as scalars.

    `boundary` adds start and end. `regression` is half the mean squared error over the cells with a sampling weight of
    1. `classification` is the logistic loss with positives above 0.9. `background` exists where the network has the
    background constraint. `total` is boundary + 10 regression + classification + background.

    valid: bool [rows, columns], the cells that are proposals.
    draws: [2, B, rows, columns], see `regression_loss`.
    """
    logistic, inside = binary_logistic_loss, valid.expand_as(targets.action)
    action = targets.action * valid
    prediction, classification = output.confidence.unbind(1)
    weights = regression_weights(action, _draws(action, draws), rules)
    square = ((prediction - action) * weights).square().sum()
    padding = PADDED_COUNT if rules.padded_counts else 0
    losses = {
        "start": logistic(output.start, targets.start, FRAME_THRESHOLD),
        "end": logistic(output.end, targets.end, FRAME_THRESHOLD),
        "regression": square / weights.sum().clamp(min=1) / 2,
        "classification": logistic(classification[inside], action[inside], CELL_THRESHOLD, padding),
    }
    losses["boundary"] = losses["start"] + losses["end"]
    of_regression, of_classification = (REGRESSION_WEIGHT, 1.0)[:: -1 if rules.swapped_weights else 1]
    losses["total"] = (
        losses["boundary"] + of_regression * losses["regression"] + of_classification * losses["classification"]
    )
    if output.background is not None:
        losses["background"] = background_loss(output.background[inside], targets.background[inside])
        losses["total"] = losses["total"] + losses["background"]
    return losses
