"""The objectives of all three systems (paper, Eq. 7-11, balanced as in BMN), finite also without positives.

BMN's and G-TAD's weigh the parts over their map as the public releases do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.outputs import BCNetOutput, MapOutput
from ..protocols import DEFAULT, LossRules
from .targets import MapTargets, Targets

FRAME_THRESHOLD = 0.5  # a label above it makes a snippet positive
ANCHOR_THRESHOLD = 0.8  # the same for an anchor
CELL_THRESHOLD = 0.9  # and for the action label of a map's cell
REGRESSION_WEIGHT = 10.0  # of the objective over a map
PADDED_COUNT = 10  # of LossRules.padded_counts
HIGH_TIOU, LOW_TIOU = 0.7, 0.3  # anchors above, between and below are balanced in the regression loss


def binary_logistic_loss(prediction: Tensor, label: Tensor, threshold: float, padding: int = 0) -> Tensor:
    """Weighted binary logistic loss L_bl: the mean over positives and the mean over negatives, each counted half.

    prediction: probabilities in [0, 1]; label: float32 of the same shape, positive above `threshold`. Written with
    BMN's coefficients the weights are 0.5 N / P for positives and 0.5 N / (N - P) for negatives. A kind that does
    not occur adds 0. Both means are over `padding` more than there are.
    """
    prediction = prediction.to(torch.promote_types(prediction.dtype, label.dtype))
    positive = label > threshold
    floor = 1e-6  # BMN's guard against log(0)
    losses = -torch.where(positive, prediction, 1 - prediction).add(floor).log()
    kinds = (positive, ~positive)
    return sum((losses * kind).sum() / (kind.sum() + padding).clamp(min=1) for kind in kinds) / 2


def regression_weights(label: Tensor, draws: Tensor, rules: LossRules = DEFAULT.losses) -> Tensor:
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
        weights = weights + (taken if rules.oversample else taken & group)
    return weights


def regression_loss(
    prediction: Tensor, label: Tensor, draws: Tensor | None = None, rules: LossRules = DEFAULT.losses
) -> Tensor:
    """Smooth L1 (beta 1) over the anchors that `regression_weights` takes; 0 when it takes none.

    prediction, label: [B, P]; draws: [2, B, P] uniform in [0, 1), by default from PyTorch's generator.
    """
    weights = regression_weights(label, _draws(label, draws), rules)
    loss = F.smooth_l1_loss(prediction * weights, label * weights, reduction="sum")
    return loss / weights.sum().clamp(min=1)


def _draws(label: Tensor, draws: Tensor | None) -> Tensor:
    return torch.rand(2, *label.shape, device=label.device) if draws is None else draws


def background_loss(prediction: Tensor, label: Tensor) -> Tensor:
    """The loss of the background constraint, for anchors and for cells of a map alike (L_bl of Eq. 11)."""
    return binary_logistic_loss(prediction, label, ANCHOR_THRESHOLD)


def bcnet_loss(
    output: BCNetOutput, targets: Targets, *, draws: Tensor | None = None, rules: LossRules = DEFAULT.losses
) -> dict[str, Tensor]:
    """All parts of L = L1 + L2 for a batch, as scalars.

    `boundary` (L1) is the sum of actionness, start and end: the public release trains actionness too, which Eq. 8
    leaves out. `interaction` (L2, Eq. 9-11) is the sum of frame_action, frame_background, regression, classification
    and background, as far as the network has these scores. `total` is the sum of both. `draws` as in `regression_loss`.
    """
    logistic = binary_logistic_loss
    losses = {
        "actionness": logistic(output.actionness, targets.frame_action, FRAME_THRESHOLD),
        "start": logistic(output.start, targets.start, FRAME_THRESHOLD),
        "end": logistic(output.end, targets.end, FRAME_THRESHOLD),
    }
    if output.frame_action is not None:
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
    targets: MapTargets,
    valid: Tensor,
    *,
    draws: Tensor | None = None,
    rules: LossRules = DEFAULT.losses,
) -> dict[str, Tensor]:
    """All parts of BMN's and G-TAD's objective for a batch, as scalars.

    `boundary` is the sum of start and end. `regression` is half the mean square over the cells that
    `regression_weights` takes, `classification` is the balanced logistic loss with positives above 0.9, `background`
    that of the background constraint, where the network has it. `total` is boundary + 10 regression + classification +
    background.

    valid: bool [rows, columns], the cells that are proposals. draws: [2, B, rows, columns], as in `regression_loss`.
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
