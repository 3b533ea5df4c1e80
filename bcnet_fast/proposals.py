"""From the network's scores to ranked proposals: candidates, matching, refinement, confidence, Soft-NMS.

Paper, section 3.6. Times are snippets, counted from the window's or the video's first; `infer` turns them into seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .anchors import make_anchors, matching_table
from .config import Config
from .ops import soft_nms
from .outputs import BCNetOutput
from .protocols import Protocol


@dataclass
class Candidates:
    """All boundary pairs of a batch of windows, sorted by window, then start, then end; n of them.

    window, start, end, anchor [n] int64: the window, its two boundary snippets, and the matching anchor's index;
    segments [n, 2] float64, after refinement; scores [n] float64, the confidence p_f.
    """

    window: Tensor
    start: Tensor
    end: Tensor
    anchor: Tensor
    segments: Tensor
    scores: Tensor


def candidate_boundaries(probability: Tensor, threshold: float, lengths: Tensor, protocol: Protocol) -> Tensor:
    """Which snippets may be a boundary: probability [W, T] -> bool [W, T].

    A snippet is taken when its probability is at least `threshold`, or a strict local maximum; at the border of the
    window the missing neighbour counts as lower. `lengths` [W] are the snippets that are not padding.
    """
    count = probability.shape[1]
    probability = probability.double()  # else the threshold itself would be rounded to float32
    padded = torch.nn.functional.pad(probability, (1, 1), value=-torch.inf)
    taken = (probability >= threshold) | ((probability > padded[:, :-2]) & (probability > padded[:, 2:]))
    if not protocol.score_padding:
        taken &= torch.arange(count, device=probability.device) < lengths[:, None]
    return taken


def match_candidates(output: BCNetOutput, lengths: Tensor, config: Config, protocol: Protocol) -> Candidates:
    """Pair the candidate boundaries, match each pair with its anchor, refine it and score it, for W windows at once.

    Pairs are up to `max_duration` snippets apart. A pair whose anchor has classification > alpha1 and regression >
    alpha2 becomes the mean of both (Eq. 12). p_f = p_s p_e p-tilde p-hat (1 - p_b) (Eq. 13), in float64. Proposals of
    `max_snippets` and more get confidence 0.
    """
    model, settings = config.model, config.proposals
    device = output.start.device
    snippets, longest = model.window, min(model.max_duration, model.window)
    anchors = torch.from_numpy(make_anchors(model.window, model.max_duration).astype("float64")).to(device)
    table = torch.from_numpy(matching_table(model.window, model.max_duration).astype("int64")).to(device)

    starts = candidate_boundaries(output.start, settings.boundary_threshold, lengths, protocol)
    ends = candidate_boundaries(output.end, settings.boundary_threshold, lengths, protocol)
    position = torch.arange(snippets, device=device)
    if protocol.clamp_boundaries:
        position = position.clamp(1, snippets - 2)
        starts = starts[:, position]
        ends[:, -1] = False

    # Cell [w, s, d] of `pairs` says that window w has the pair (s, s + 1 + d).
    ends = torch.nn.functional.pad(ends, (0, longest)).unfold(1, longest, 1)[:, 1:]
    window, row, extent = (starts[:, :, None] & ends[:, position]).nonzero(as_tuple=True)
    start = position[row]
    end = start + 1 + extent
    anchor = table[start, extent]

    segments = torch.stack([start, end], dim=1).double()
    classification, regression, background = (
        scores.double()[window, anchor] for scores in (output.classification, output.regression, output.background)
    )
    refined = (classification > settings.min_classification) & (regression > settings.min_regression)
    segments = torch.where(refined[:, None], (segments + anchors[anchor]) / 2, segments)
    scores = output.start.double()[window, start] * output.end.double()[window, end]
    scores = scores * classification * regression * (1 - background)
    if settings.max_snippets is not None:
        scores = torch.where(segments[:, 1] - segments[:, 0] >= settings.max_snippets, 0.0, scores)
    return Candidates(window, start, end, anchor, segments, scores)


def suppress(
    segments: Tensor, scores: Tensor, offsets: Tensor, top: int, config: Config, protocol: Protocol
) -> tuple[Tensor, Tensor]:
    """Soft-NMS of many sets: set v is rows offsets[v] to offsets[v + 1]; at most `top` rows of each are kept.

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
        sizes = offsets.diff()
        first = torch.searchsorted(group, group)
        wanted = torch.arange(len(kept)) - first < sizes[group] - 1
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
    window, segments, scores = found.window.cpu(), found.segments.cpu(), found.scores.cpu()
    offsets = torch.searchsorted(window, torch.arange(len(lengths) + 1))
    decayed, kept = suppress(segments, scores, offsets, config.proposals.window_top, config, protocol)
    return WindowProposals(window[kept], segments[kept], scores[kept], decayed)


def video_proposals(
    segments: Tensor, scores: Tensor, decayed: Tensor, config: Config, protocol: Protocol
) -> tuple[Tensor, Tensor]:
    """Merge the proposals of all windows of one video: segments [n, 2] in snippets of the video, scores [n].

    Returns (segments [k, 2], scores [k]), best first, at most `top` of them.
    """
    confidence = decayed if protocol.decay_twice else scores
    offsets = torch.tensor([0, len(confidence)])
    final, kept = suppress(segments, confidence, offsets, config.proposals.top, config, protocol)
    return segments[kept], final
