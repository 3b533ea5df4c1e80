"""From the network's scores to ranked proposals: candidates, matching, refinement, confidence, Soft-NMS.

Paper, section 3.6. Times are snippets, counted from the window's or the video's first; `infer` turns them into seconds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from .anchors import make_anchors, matching_table
from .background import background_scores
from .config import Config
from .ops import MatchedProposals, match_proposals, soft_nms
from .ops.reference import possible_boundaries
from .outputs import BCNetOutput
from .protocols import Protocol


@functools.lru_cache(maxsize=16)
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
    pairs = starts[:, None] & torch.nn.functional.pad(ends, (0, durations))[1:].unfold(0, durations, 1)
    needed = torch.zeros(len(make_anchors(model.window, model.max_duration)), dtype=torch.bool, device=start.device)
    return needed.index_fill(0, table[pairs].long(), True)


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


def window_proposals(output: BCNetOutput, lengths: Tensor, config: Config, protocol: Protocol) -> WindowProposals:
    """The best `window_top` proposals of each of W windows; `lengths` [W] are the snippets that are not padding."""
    found = match_candidates(output, lengths, config, protocol)
    segments, scores, offsets = _on_host(found) if found.scores.device.type == "cpu" else _on_device(found)
    decayed, kept = suppress(segments, scores, offsets, found.counts, config.proposals.window_top, config, protocol)
    window = torch.bucketize(kept, offsets, right=True) - 1
    columns = torch.column_stack([window, segments[kept], scores[kept], decayed]).cpu()  # one copy from the device
    return WindowProposals(columns[:, 0].long(), columns[:, 1:3], columns[:, 3], columns[:, 4])


def _on_host(found: MatchedProposals) -> tuple[Tensor, Tensor, Tensor]:
    """The rows in use, window after window, and where each window begins: segments [n, 2], scores [n], offsets [W +
    1]."""
    counts = found.counts.tolist()
    segments, scores = (
        torch.cat([rows[:count] for rows, count in zip(column, counts, strict=True)])
        for column in (found.segments, found.scores)
    )
    return segments, scores, torch.nn.functional.pad(found.counts.cumsum(0), (1, 0))


def _on_device(found: MatchedProposals) -> tuple[Tensor, Tensor, Tensor]:
    """The same with all rows: Soft-NMS drops those that are not in use, and nobody has to wait for their number."""
    windows, rows = found.scores.shape
    offsets = torch.arange(windows + 1, device=found.scores.device) * rows
    return found.segments.flatten(0, 1), found.scores.flatten(), offsets


def video_proposals(
    segments: Tensor, scores: Tensor, decayed: Tensor, config: Config, protocol: Protocol
) -> tuple[Tensor, Tensor]:
    """Merge the proposals of all windows of one video: segments [n, 2] in snippets of the video, scores [n].

    Returns (segments [k, 2], scores [k]), best first, at most `top` of them.
    """
    confidence = decayed if protocol.decay_twice else scores
    offsets = torch.tensor([0, len(confidence)])
    final, kept = suppress(segments, confidence, offsets, offsets.diff(), config.proposals.top, config, protocol)
    return segments[kept], final
