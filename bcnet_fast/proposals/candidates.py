"""From the network's scores to ranked proposals: candidates, matching, refinement, confidence, Soft-NMS.

Paper, section 3.6; the candidates of BMN and G-TAD are the cells of their maps. Times are snippets, counted from the
window's or the video's first; `infer` turns them into seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import Config
from ..geometry.anchors import make_anchors, matching_table
from ..geometry.proposal_map import MapConfig, proposal_map
from ..networks.background import background_scores, constrain
from ..networks.outputs import BCNetOutput, MapOutput, Output
from ..ops import MatchedProposals, match_proposals, soft_nms
from ..ops.constants import cached_tensors
from ..ops.reference import possible_boundaries
from ..protocols import Protocol


@cached_tensors(16)
def _anchors_and_table(window: int, max_duration: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The anchors, float64 [P, 2], and the matching table, int32 [T, D], on a device."""
    anchors, table = make_anchors(window, max_duration), matching_table(window, max_duration)
    return torch.from_numpy(anchors.astype("float64")).to(device), torch.from_numpy(table.copy()).to(device)


def match_candidates(output: BCNetOutput, lengths: Tensor, config: Config, protocol: Protocol) -> MatchedProposals:
    """The proposals of W windows before Soft-NMS; `lengths` [W] are the snippets that are not padding."""
    model, settings = config.model, config.proposals
    return match_proposals(
        output.start,
        output.end,
        output.classification,
        output.regression,
        background_scores(output.background, output.classification),
        *_anchors_and_table(model.window, model.max_duration, output.start.device),
        lengths=None if protocol.score_padding else lengths,
        boundary_threshold=settings.boundary_threshold,
        min_classification=settings.min_classification,
        min_regression=settings.min_regression,
        max_snippets=settings.max_snippets,
        clamp_boundaries=protocol.clamp_boundaries,
    )


def needed_anchors(start: Tensor, end: Tensor, length: int, config: Config, protocol: Protocol) -> Tensor:
    """The anchors that `match_candidates` will read of one window, bool [P], on the device of start and end, [T] each.

    These are the anchors that match some pair of possible boundaries among the first `length` snippets.
    """
    model = config.model
    _, table = _anchors_and_table(model.window, model.max_duration, start.device)
    limit = None if protocol.score_padding else torch.tensor([length], device=start.device)
    threshold = config.proposals.boundary_threshold
    starts, ends = (possible_boundaries(p[None], threshold, limit)[0] for p in (start, end))
    durations = table.shape[1]
    pairs = starts[:, None] & pad(ends, (0, durations))[1:].unfold(0, durations, 1)
    needed = torch.zeros(len(make_anchors(model.window, model.max_duration)), dtype=torch.bool, device=start.device)
    return needed.index_fill(0, table[pairs].long(), True)


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


def cell_candidates(output: MapOutput, lengths: Tensor, config: Config, protocol: Protocol) -> CellCandidates:
    """The cells of W windows before Soft-NMS; `lengths` [W] are the snippets that are not padding.

    A cell ends at the boundary before the snippet `end`. At the end of what is looked at there is no such snippet, and
    the last one stands in for it.
    """
    settings, window = config.proposals, config.model.window
    numbers, segments = _cells(config.model, output.start.device)
    start, end = segments.T
    if protocol.score_padding:
        lengths = torch.full_like(lengths, window)
    taken = end <= lengths[:, None]
    if protocol.skip_window_end:
        taken &= end < window
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


def suppress(
    segments: Tensor, scores: Tensor, offsets: Tensor, sizes: Tensor, top: int, config: Config, protocol: Protocol
) -> tuple[Tensor, Tensor]:
    """Soft-NMS of many sets: set v is rows offsets[v] to offsets[v + 1]; at most `top` rows of each are kept.

    sizes [V] are the candidates in each set, to which rows of score 0 that fill it up do not belong.

    Returns the decayed scores and the indices of the kept rows, set after set, best first.
    """
    settings = config.proposals
    _, decayed, kept = soft_nms(
        segments / config.model.window,  # the unit of the width-dependent threshold
        scores,
        sigma=settings.sigma,
        iou_threshold=settings.iou_threshold,
        max_proposals=top,
        offsets=offsets,
    )
    if protocol.drop_last:
        group = torch.bucketize(kept, offsets[1:], right=True)
        first = torch.searchsorted(group, group)
        wanted = torch.arange(len(kept), device=kept.device) - first < sizes[group] - 1
        decayed, kept = decayed[wanted], kept[wanted]
    return decayed, kept


@dataclass
class WindowProposals:
    """What is left of a batch of windows after the first Soft-NMS, sorted by window, then decayed score.

    window [n] int64; segments [n, 2] float64, snippets of the window; scores, decayed [n] float64: the confidence, and
    the same after Soft-NMS. On the CPU.
    """

    window: Tensor
    segments: Tensor
    scores: Tensor
    decayed: Tensor


def window_proposals(output: Output, lengths: Tensor, config: Config, protocol: Protocol) -> WindowProposals:
    """The best `window_top` proposals of each of W windows; `lengths` [W] are the snippets that are not padding."""
    if isinstance(output, MapOutput):
        cells = cell_candidates(output, lengths, config, protocol)
        segments, scores, offsets = _by_score(cells)
        counts = cells.taken.sum(dim=1)
    else:
        found = match_candidates(output, lengths, config, protocol)
        segments, scores, offsets = _on_host(found) if found.scores.device.type == "cpu" else _on_device(found)
        counts = found.counts
    decayed, kept = suppress(segments, scores, offsets, counts, config.proposals.window_top, config, protocol)
    window = torch.bucketize(kept, offsets, right=True) - 1
    columns = torch.column_stack([window, segments[kept], scores[kept], decayed]).cpu()  # one copy from the device
    return WindowProposals(columns[:, 0].long(), columns[:, 1:3], columns[:, 3], columns[:, 4])


def _by_score(cells: CellCandidates) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of all windows, best first in each, and where each window begins: segments, scores, offsets [W + 1].

    Cells of score 0 come last, where Soft-NMS drops them without a change to the order of equal scores.
    """
    scores, order = cells.scores.sort(dim=1, descending=True, stable=True)
    offsets = torch.arange(len(scores) + 1, device=scores.device) * scores.shape[1]
    return cells.segments.double()[order].flatten(0, 1), scores.flatten(), offsets


def _on_host(found: MatchedProposals) -> tuple[Tensor, Tensor, Tensor]:
    """The rows in use, window after window, and where each window begins: segments [n, 2], scores [n], offsets [W +
    1]."""
    counts = found.counts.tolist()
    segments, scores = (
        torch.cat([rows[:count] for rows, count in zip(column, counts, strict=True)])
        for column in (found.segments, found.scores)
    )
    return segments, scores, pad(found.counts.cumsum(0), (1, 0))


def _on_device(found: MatchedProposals) -> tuple[Tensor, Tensor, Tensor]:
    """The same with all rows: Soft-NMS drops those that are not in use, and nobody has to wait for their number."""
    windows, rows = found.scores.shape
    offsets = torch.arange(windows + 1, device=found.scores.device) * rows
    return found.segments.flatten(0, 1), found.scores.flatten(), offsets


def video_proposals(
    segments: Tensor, scores: Tensor, decayed: Tensor, config: Config, protocol: Protocol
) -> tuple[Tensor, Tensor]:
    """Merge the proposals of all windows of one video: segments [n, 2] in snippets of the video, scores [n].

    Returns (segments [k, 2], scores [k]), best first, at most `top` of them. A rescaled video has one window, whose
    Soft-NMS is the only one.
    """
    if config.data.rescale:
        return segments[: config.proposals.top], decayed[: config.proposals.top]
    confidence = decayed if protocol.decay_twice else scores
    offsets = torch.tensor([0, len(confidence)])
    final, kept = suppress(segments, confidence, offsets, offsets.diff(), config.proposals.top, config, protocol)
    return segments[kept], final
