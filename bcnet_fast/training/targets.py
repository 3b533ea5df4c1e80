"""Training targets of one window, for all three systems (paper, Eq. 1 and 2; frame labels after BSN and BMN)."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor
from typing_extensions import NamedTuple  # generic, unlike that of Python 3.10

from ..geometry.proposal_map import ProposalMap
from ..networks.background import background_labels
from ..protocols import DEFAULT, LabelRules

Labels = TypeVar("Labels", np.ndarray, Tensor)


class Targets(NamedTuple, Generic[Labels]):
    """Labels of BCNet in [0, 1], float32: arrays of one window, or tensors of a batch with one more axis in front.

    frame_action, frame_background, start, end: [T].
    anchor_action, anchor_background: [P].
    """

    frame_action: Labels
    frame_background: Labels
    start: Labels
    end: Labels
    anchor_action: Labels
    anchor_background: Labels


class MapTargets(NamedTuple, Generic[Labels]):
    """Labels of BMN and G-TAD, like `Targets`.

    start, end: [T].
    action, background: [rows, columns]; 0 in cells that are no proposals, which no loss counts.
    """

    start: Labels
    end: Labels
    action: Labels
    background: Labels


WindowTargets = Targets[np.ndarray] | MapTargets[np.ndarray]
BatchTargets = Targets[Tensor] | MapTargets[Tensor]


def window_targets(
    segments: ArrayLike,
    anchors: np.ndarray,
    window: int,
    *,
    first: float = 0.0,
    stride: float = 1.0,
    rules: LabelRules = DEFAULT.labels,
) -> Targets[np.ndarray]:
    """Targets of the window whose snippet t covers the video frames [first + t * stride, first + (t + 1) * stride).

    segments: [G, 2] start and end of the instances in video frames; with the default `first` and `stride` in snippets
        of the window. They may lie partly or wholly outside the window, and may be none (G = 0). Instances without
        extent (end <= start) are dropped.
    anchors: [P, 2] start and end in snippets of the window.
    window: T, in snippets.

    The action label of a snippet is the largest part of it that an instance covers, its background label is the rest.
    A start or end label belongs to the boundary at the beginning of the snippet, because inference reads it so. It is
    the part of the snippet-wide interval around that boundary that lies within 1.5 snippets of an instance's start or
    end. An anchor's action label is its largest tIoU with an instance (Eq. 1), its background label the part of it that
    no instance covers (Eq. 2).
    """
    segments = np.asarray(segments, dtype=np.float64).reshape(-1, 2)
    segments = segments[segments[:, 1] > segments[:, 0]]
    boundary = first + stride * np.arange(window)  # frame where each snippet begins
    origin = first
    snippet = boundary
    if rules.early_labels:
        snippet = boundary - stride / 2
        origin = int(first - stride / 2)

    frame_action = _largest(_overlap(snippet, snippet + stride, segments)) / stride
    regions = (segments[:, [edge]] + 1.5 * stride * np.array([-1.0, 1.0]) for edge in (0, 1))
    around = boundary - stride / 2, boundary + stride * (1.5 if rules.wide_boundaries else 0.5)
    start, end = (_largest(_overlap(*around, r)) / (around[1] - around[0]) for r in regions)

    anchor_start, anchor_end = (origin + stride * anchors.astype(np.float64)).T
    length = anchor_end - anchor_start
    if rules.cut_instances:
        segments = segments.clip(origin, origin + stride * window)
    overlap = _overlap(anchor_start, anchor_end, segments)
    anchor_action = _largest(overlap / (length + (segments[:, 1:] - segments[:, :1]) - overlap))
    anchor_background = background_labels(overlap, length, largest=rules.largest_overlap)

    # Rounded first: which labels lie above a loss's threshold must not depend on a difference in the last bit.
    frame_action, start, end, anchor_action, anchor_background = (
        target.astype(np.float32) for target in (frame_action, start, end, anchor_action, anchor_background)
    )
    return Targets(frame_action, 1 - frame_action, start, end, anchor_action, anchor_background)


def map_targets(
    segments: ArrayLike,
    cells: ProposalMap,
    window: int,
    *,
    first: float = 0.0,
    stride: float = 1.0,
    rules: LabelRules = DEFAULT.labels,
) -> MapTargets[np.ndarray]:
    """Targets of a map: `window_targets` with its cells as anchors."""
    anchors = np.stack([cells.start[cells.valid], cells.end[cells.valid]], axis=1)
    targets = window_targets(segments, anchors, window, first=first, stride=stride, rules=rules)
    action, background = np.zeros((2, *cells.shape), np.float32)
    action[cells.valid], background[cells.valid] = targets.anchor_action, targets.anchor_background
    return MapTargets(targets.start, targets.end, action, background)


def _overlap(start: np.ndarray, end: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Length of the intersection of n intervals with G segments: [n], [n], [G, 2] -> [G, n]"""
    overlap = np.minimum(end, segments[:, 1:])
    overlap -= np.maximum(start, segments[:, :1])
    return np.maximum(overlap, 0.0, out=overlap)


def _largest(values: np.ndarray) -> np.ndarray:
    """[G, n], none negative -> [n]; 0 without instances"""
    return values.max(axis=0, initial=0.0)
