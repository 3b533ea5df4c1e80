"""What a network returns: the same fields from every implementation of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Output:
    """Scores of a batch of windows; every field is a tensor [B, ...], or None where the network has no such score."""

    start: Tensor
    end: Tensor

    def columns(self) -> dict[str, Tensor]:
        """The scores that there are, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> Output:
        """The same with `function` applied to each of the scores."""
        made = {name: function(value) for name, value in self.columns().items()}
        return type(self)(**dict.fromkeys(vars(self)) | made)

    @classmethod
    def cat(cls, parts: Sequence[Output]) -> Output:
        """One batch made of several, of which there is at least one."""
        if len(parts) == 1:
            return parts[0]
        columns = [part.columns() for part in parts]
        made = {name: torch.cat([column[name] for column in columns]) for name in columns[0]}
        return type(parts[0])(**dict.fromkeys(vars(parts[0])) | made)


@dataclass
class Boundaries(Output):
    """Boundary probabilities of BCNet, [B, T] each."""

    actionness: Tensor


@dataclass
class BCNetOutput(Boundaries):
    """Scores of BCNet; probabilities in [0, 1] unless said.

    start, end, actionness [B, T]; frame_action, frame_background [B, T]; regression [B, P] is linear and unbounded;
    classification, background [B, P]. P anchors in the order of `anchors.make_anchors`. frame_action and
    frame_background are None without frame level, background without background constraint.
    """

    frame_action: Tensor | None
    frame_background: Tensor | None
    regression: Tensor
    classification: Tensor
    background: Tensor | None = None


@dataclass
class MapOutput(Output):
    """Scores of BMN and G-TAD, probabilities in [0, 1].

    start, end [B, T]; confidence [B, 2, rows, columns] of the map's cells (`maps.ProposalMap`), regression before
    classification; background [B, rows, columns], None without background constraint.
    """

    confidence: Tensor
    background: Tensor | None = None
