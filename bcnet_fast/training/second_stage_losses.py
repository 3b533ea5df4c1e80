"""The objective of P-GCN and MUSES-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..networks.outputs import SecondStageOutput
from .second_stage_samples import FOREGROUND, INCOMPLETE, SAMPLES

COUNTED = len(SAMPLES) - 1  # samples of a video in the completeness loss: one positive, then negatives
HARD_SHARE = 0.17  # share of the negatives that counts, the hardest ones
PART_WEIGHT = 0.5  # weight of completeness and of regression


def second_stage_loss(output: SecondStageOutput, kinds: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The objective over B videos of 8 proposals, with its terms, as scalars.

    `activity` is the mean cross entropy over foreground and background. `completeness` is a hinge loss: in each video
    the first proposal is positive and the next six are negative, whatever their kinds. The hardest negative counts.
    `regression` is the smooth L1 loss of the proposal's class over foreground. `total` is their weighted sum. A term
    without any proposal is 0.

    output: of 8 B proposals, video after video in the order of `SAMPLES`
    kinds: [8 B] int64
    labels: [8 B] int64, 0 for background
    targets: [8 B, 2], in units of the training's `RegressionStats`
    """
    losses = {
        "activity": _activity(output.activity, kinds, labels),
        "completeness": _completeness(output.completeness, labels),
        "regression": _regression(output.regression, kinds, labels, targets),
    }
    losses["total"] = losses["activity"] + PART_WEIGHT * (losses["completeness"] + losses["regression"])
    return losses


def _activity(logits: Tensor, kinds: Tensor, labels: Tensor) -> Tensor:
    used = kinds != INCOMPLETE
    return F.cross_entropy(logits[used], labels[used], reduction="sum") / used.sum().clamp(min=1)


def _completeness(scores: Tensor, labels: Tensor) -> Tensor:
    scores, labels = (x.unflatten(0, (-1, len(SAMPLES)))[:, :COUNTED] for x in (scores, labels))
    of_class = scores.gather(2, (labels - 1).clamp(min=0)[..., None]).squeeze(2)
    sign = torch.ones_like(of_class)
    sign[:, 0] = -1
    # A proposal without a class has no score to push up or down.
    hinge = torch.relu(1 + sign * of_class) * (labels > 0)
    videos, negatives = len(hinge), COUNTED - 1
    hardest = hinge[:, 1:].topk(max(int(negatives * HARD_SHARE), 1), dim=1).values
    return (hinge[:, 0].sum() + hardest.sum()) / (videos + max(int(negatives * videos * HARD_SHARE), 1))


def _regression(raw: Tensor, kinds: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    used = torch.nonzero(kinds == FOREGROUND).squeeze(1)
    of_class = raw[used, labels[used] - 1]
    return F.smooth_l1_loss(of_class, targets[used], reduction="sum") / max(len(used), 1)
