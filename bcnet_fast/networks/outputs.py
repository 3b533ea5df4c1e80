"""The scores that networks return: the same fields from every implementation of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

OutputT = TypeVar("OutputT", bound="Output")


@dataclass
class Output:
    """Scores of a batch of windows. A field is a tensor [B, ...], or None where the network has no such score."""

    start: Tensor
    end: Tensor

    def columns(self) -> dict[str, Tensor]:
        """The scores that are present, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def map(self: OutputT, function: Callable[[Tensor], Tensor]) -> OutputT:
        """Apply a function to every score."""
        return self._replace({name: function(value) for name, value in self.columns().items()})

    @classmethod
    def cat(cls, parts: Sequence[OutputT]) -> OutputT:
        """Join batches, at least one, to a single one."""
        if len(parts) == 1:
            return parts[0]
        columns = [part.columns() for part in parts]
        return parts[0]._replace({name: torch.cat([column[name] for column in columns]) for name in columns[0]})

    def _replace(self: OutputT, scores: dict[str, Tensor]) -> OutputT:
        """An output of the same kind with other scores; those not given are None."""
        fields: dict[str, Any] = dict.fromkeys(vars(self))
        return type(self)(**fields | scores)


@dataclass
class Boundaries(Output):
    """Boundary probabilities of BCNet, [B, T] each."""

    actionness: Tensor


@dataclass
class BCNetOutput(Boundaries):
    """Scores of BCNet. P anchors are in the order of `anchors.make_anchors`.

    start, end, actionness: [B, T] probabilities
    frame_action, frame_background: [B, T] probabilities; None without frame level
    regression: [B, P], linear and unbounded
    classification: [B, P] probabilities
    background: [B, P] probabilities; None without background constraint
    """

    frame_action: Tensor | None
    frame_background: Tensor | None
    regression: Tensor
    classification: Tensor
    background: Tensor | None = None


@dataclass
class MapOutput(Output):
    """Scores of BMN and G-TAD, all of them probabilities.

    start, end: [B, T]
    confidence: [B, 2, rows, columns] of the cells of `proposal_map.ProposalMap`, regression before classification
    background: [B, rows, columns]; None without background constraint
    """

    confidence: Tensor
    background: Tensor | None = None


@dataclass
class SecondStageOutput:
    """Scores of N proposals for K classes, from P-GCN or MUSES-Net.

    activity: [N, K + 1] logits; 0 is background
    completeness: [N, K], unbounded
    regression: [N, K, 2], move of the centre and logarithm of the length's factor, in units of the training's
        `RegressionStats`
    """

    activity: Tensor
    completeness: Tensor
    regression: Tensor
