"""Ranked proposals: Soft-NMS over the candidates of a window, and over the windows of a video."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import Config
from ..networks.outputs import BCNetOutput, MapOutput, Output
from ..ops import MatchedProposals, soft_nms
from ..protocols import Protocol
from .candidates import CellCandidates, cell_candidates, match_candidates, needed_anchors


@dataclass
class WindowProposals:
    """Proposals of a batch of windows after the first Soft-NMS, on the CPU, sorted by window, then by decayed score.

    window: [n] int64, row of the batch.
    segments: [n, 2] float64, snippets from the start of the window.
    scores: [n] float64, confidence before Soft-NMS.
    decayed: [n] float64, confidence after Soft-NMS.
    """

    window: Tensor
    segments: Tensor
    scores: Tensor
    decayed: Tensor


class ProposalGenerator:
    """Turns scores into proposals by the rules of one configuration and one protocol."""

    def __init__(self, config: Config, protocol: Protocol) -> None:
        self.config, self.candidate_rules, self.rules = config, protocol.candidates, protocol.suppression

    def needed_anchors(self, boundaries: Output, lengths: Tensor) -> Tensor:
        """Anchors of BCNet whose scores `window_proposals` will read, bool [W, P]."""
        return needed_anchors(boundaries, lengths, self.config, self.candidate_rules)

    def window_proposals(self, output: Output, lengths: Tensor) -> WindowProposals:
        """The best `window_top` proposals of each window; lengths [W] excludes padding."""
        if isinstance(output, MapOutput):
            cells = cell_candidates(output, lengths, self.config, self.candidate_rules)
            segments, scores, offsets = _by_score(cells)
            counts = cells.taken.sum(dim=1)
        elif isinstance(output, BCNetOutput):
            found = match_candidates(output, lengths, self.config, self.candidate_rules)
            segments, scores, offsets = _on_host(found) if found.scores.device.type == "cpu" else _on_device(found)
            counts = found.counts
        else:
            raise TypeError(f"output is {type(output).__name__}, expected BCNetOutput or MapOutput")
        decayed, kept = self.suppress(segments, scores, offsets, counts, self.config.proposals.window_top)
        window = torch.bucketize(kept, offsets, right=True) - 1
        columns = torch.column_stack([window, segments[kept], scores[kept], decayed]).cpu()  # one copy from the device
        return WindowProposals(columns[:, 0].long(), columns[:, 1:3], columns[:, 3], columns[:, 4])

    def video_proposals(self, segments: Tensor, scores: Tensor, decayed: Tensor) -> tuple[Tensor, Tensor]:
        """Merge the windows of one video: segments [n, 2] in snippets of the video, scores and decayed [n].

        Returns (segments [k, 2], scores [k]), best first, at most `top` of them. The single window of a rescaled video
        goes through no second Soft-NMS.
        """
        top = self.config.proposals.top
        if self.config.data.rescale:
            return segments[:top], decayed[:top]
        confidence = decayed if self.rules.decay_twice else scores
        offsets = torch.tensor([0, len(confidence)])
        final, kept = self.suppress(segments, confidence, offsets, offsets.diff(), top)
        return segments[kept], final

    def suppress(
        self, segments: Tensor, scores: Tensor, offsets: Tensor, sizes: Tensor, top: int
    ) -> tuple[Tensor, Tensor]:
        """Soft-NMS of V sets, of which set v is the rows offsets[v] to offsets[v + 1].

        sizes: [V], candidates in each set, without the rows of score 0 that fill it up.
        top: rows kept of each set.

        Returns decayed scores and indices of the kept rows, set after set, best first.
        """
        settings = self.config.proposals
        _, decayed, kept = soft_nms(
            segments / self.config.model.window,  # the unit of the width-dependent threshold
            scores,
            sigma=settings.sigma,
            iou_threshold=settings.iou_threshold,
            max_proposals=top,
            offsets=offsets,
        )
        if self.rules.drop_last:
            group = torch.bucketize(kept, offsets[1:], right=True)
            first = torch.searchsorted(group, group)
            wanted = torch.arange(len(kept), device=kept.device) - first < sizes[group] - 1
            decayed, kept = decayed[wanted], kept[wanted]
        return decayed, kept


def _by_score(cells: CellCandidates) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of all windows, best first in each: segments, scores, and the offsets [W + 1] of the windows.

    Cells of score 0 come last: there Soft-NMS drops them without changing the order of equal scores.
    """
    scores, order = cells.scores.sort(dim=1, descending=True, stable=True)
    offsets = torch.arange(len(scores) + 1, device=scores.device) * scores.shape[1]
    return cells.segments.double()[order].flatten(0, 1), scores.flatten(), offsets


def _on_host(found: MatchedProposals) -> tuple[Tensor, Tensor, Tensor]:
    """Used rows, window after window: segments [n, 2], scores [n], offsets [W + 1]."""
    counts = found.counts.tolist()
    segments, scores = (
        torch.cat([rows[:count] for rows, count in zip(column, counts, strict=True)])
        for column in (found.segments, found.scores)
    )
    return segments, scores, pad(found.counts.cumsum(0), (1, 0))


def _on_device(found: MatchedProposals) -> tuple[Tensor, Tensor, Tensor]:
    """All rows, unused ones too: Soft-NMS drops those, and the host need not wait for their number."""
    windows, rows = found.scores.shape
    offsets = torch.arange(windows + 1, device=found.scores.device) * rows
    return found.segments.flatten(0, 1), found.scores.flatten(), offsets
