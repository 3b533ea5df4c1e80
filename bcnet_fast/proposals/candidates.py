"""Candidates of a window before Soft-NMS (paper, section 3.6).

For BCNet they are pairs of boundaries, refined by the anchor that matches them best; for BMN and G-TAD, cells of their
maps. Times are snippets from the start of the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import AnchorProposalConfig, BMNConfig, Config, GTADConfig, MapProposalConfig, require_section
from ..geometry.anchors import make_anchors, matching_table
from ..geometry.proposal_map import MapConfig, proposal_map
from ..networks.background import background_scores, constrain
from ..networks.outputs import BCNetOutput, MapOutput, Output
from ..ops import MatchedProposals, match_proposals
from ..ops.constants import cached_tensors
from ..ops.reference import possible_boundaries
from ..protocols import CandidateRules


@cached_tensors(16)
def _anchors_and_table(window: int, max_duration: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Anchors, float64 [P, 2], and the matching table, int32 [T, D], on a device."""
    anchors, table = make_anchors(window, max_duration), matching_table(window, max_duration)
    return torch.from_numpy(anchors.astype("float64")).to(device), torch.from_numpy(table.copy()).to(device)


def match_candidates(output: BCNetOutput, lengths: Tensor, config: Config, rules: CandidateRules) -> MatchedProposals:
    """Boundary pairs of W windows with their confidence.

    lengths: [W] int64, snippets of each window that are not padding.
    """
    model, settings = config.model, require_section(config.proposals, AnchorProposalConfig)
    return match_proposals(
        output.start,
        output.end,
        output.classification,
        output.regression,
        background_scores(output.background, output.classification),
        *_anchors_and_table(model.window, model.max_duration, output.start.device),
        lengths=None if rules.score_padding else lengths,
        boundary_threshold=settings.boundary_threshold,
        min_classification=settings.min_classification,
        min_regression=settings.min_regression,
        max_snippets=settings.max_snippets,
        clamp_boundaries=rules.clamp_boundaries,
    )


def needed_anchors(boundaries: Output, lengths: Tensor, config: Config, rules: CandidateRules) -> Tensor:
    """Anchors whose scores `match_candidates` will read, bool [W, P].

    They are the anchors that match some pair of possible boundaries among the first `lengths` [W] snippets.
    """
    model = config.model
    _, table = _anchors_and_table(model.window, model.max_duration, boundaries.start.device)
    limit = None if rules.score_padding else lengths
    threshold = require_section(config.proposals, AnchorProposalConfig).boundary_threshold
    starts, ends = (possible_boundaries(p, threshold, limit) for p in (boundaries.start, boundaries.end))
    durations = table.shape[1]
    ends_after = pad(ends, (0, durations))[:, 1:].unfold(1, durations, 1)  # [W, T, D]
    window, start, duration = (starts[:, :, None] & ends_after).nonzero(as_tuple=True)
    needed = starts.new_zeros(len(starts), len(make_anchors(model.window, model.max_duration)))
    needed[window, table[start, duration].long()] = True
    return needed


@dataclass
class CellCandidates:
    """The n cells of a map that are intervals of the window, in the map's order, for each of W windows.

    segments [n, 2] int64, snippets; scores [W, n] float64, 0 for cells that are not to be proposed; taken [W, n]: which
    cells are candidates.
    """

    segments: Tensor
    scores: Tensor
    taken: Tensor


@cached_tensors(16)
def _cells(model: MapConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """The valid cells of a map by their numbers row * columns + column [n], and their intervals [n, 2], on a device."""
    cells = proposal_map(model)
    bounds = torch.from_numpy(cells.start[cells.valid]), torch.from_numpy(cells.end[cells.valid])
    return torch.from_numpy(cells.valid.ravel().nonzero()[0]).to(device), torch.stack(bounds, dim=1).to(device)


def cell_candidates(output: MapOutput, lengths: Tensor, config: Config, rules: CandidateRules) -> CellCandidates:
    """The cells of W windows before Soft-NMS; `lengths` [W] are the snippets that are not padding.

    A cell ends at the boundary before the snippet `end`. At the end of what is looked at there is no such snippet, and
    the last one stands in for it.
    """
    model = require_section(config.model, BMNConfig, GTADConfig)
    settings = require_section(config.proposals, MapProposalConfig)
    numbers, segments = _cells(model, output.start.device)
    start, end = segments.T
    if rules.score_padding:
        lengths = torch.full_like(lengths, model.window)
    taken = end <= lengths[:, None]
    if rules.skip_window_end:
        taken &= end < model.window
    end_snippet = torch.minimum(end, lengths[:, None] - 1)
    if settings.boundary_peaks:
        starts, ends = likely_boundaries(output.start, output.end, lengths)
        taken &= starts[:, start] & ends.gather(1, end_snippet)

    regression, classification = output.confidence.flatten(2)[:, :, numbers].double().unbind(1)
    scores = classification * regression
    if settings.boundary_scores:
        boundaries = output.start.double()[:, start] * output.end.double().gather(1, end_snippet)
        scores = boundaries * classification * regression
    background = None if output.background is None else output.background.flatten(1)[:, numbers].double()
    shown = taken if settings.max_snippets is None else taken & (end - start < settings.max_snippets)
    return CellCandidates(segments, torch.where(shown, constrain(scores, background), 0.0), taken)


def likely_boundaries(start: Tensor, end: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """BSN's rule: which of the first `lengths` snippets can be a start, and which an end; bool [W, T] each.

    A snippet must be a strict local maximum or above half of the window's highest probability. The first one is always
    a start and never an end, the last one always an end and never a start.
    """
    index = torch.arange(start.shape[1], device=start.device)
    first, last = index == 0, index == lengths[:, None] - 1
    both = torch.stack([start, end]).masked_fill(index >= lengths[:, None], -torch.inf)
    before, after = pad(both, (1, 0), value=-torch.inf)[..., :-1], pad(both, (0, 1), value=-torch.inf)[..., 1:]
    likely = ((both > before) & (both > after)) | (both > 0.5 * both.amax(dim=2, keepdim=True))
    likely &= ~(first | last)
    return likely[0] | first, likely[1] | last
