"""The graph of P-GCN: which proposals of a video are neighbours of which.

A node has ten candidate slots, eight for proposals that overlap it and two for the nearest that do not. The network
sees either a tree drawn from the slots (`draw_trees`), as in the public code, or all slots with equal weights. Segments
count whole frames: one from frame s to frame e is e - s + 1 long.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

from ..ops import native

OVERLAPPING, DISTANT = 8, 2  # candidate slots of both kinds
SLOTS = OVERLAPPING + DISTANT
CHILDREN = 4  # slots drawn for a node
TREE = 1 + CHILDREN + CHILDREN**2  # nodes of a drawn tree
MIN_IOU = 0.7  # IoU that overlapping neighbours exceed
_PAIRS_AT_ONCE = 1 << 22  # pairs of proposals that are compared at once: more take memory, fewer take time


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of segments [n, 2] with segments [m, 2], in frames: float64 [n, m]."""
    (start, end), (start_b, end_b) = _columns(a)[..., None], _columns(b)
    overlap = np.maximum(np.minimum(end, end_b) - np.maximum(start, start_b) + 1, 0)
    return overlap / ((end - start + 1) + (end_b - start_b + 1) - overlap)


def pairwise_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of the centres of segments [n, 2] and [m, 2] over the smallest segment with both: float64 [n, m]."""
    (start, end), (start_b, end_b) = _columns(a)[..., None], _columns(b)
    span = np.maximum(end, end_b) - np.minimum(start, start_b) + 1
    return np.abs((start + end) / 2 - (start_b + end_b) / 2) / span


def _columns(segments: np.ndarray) -> np.ndarray:
    return np.asarray(segments, dtype=np.float64).reshape(-1, 2).T


def neighbour_slots(segments: np.ndarray) -> np.ndarray:
    """Candidate neighbours of every proposal of a video.

    Slots 0 to 7 hold the other proposals with an IoU above 0.7, by descending IoU. Slots 8 and 9 hold those that do not
    overlap, by ascending distance. Too few are repeated in turn; without any, the slots hold the proposal itself. Ties
    go to the lower index.

    segments: [N, 2] in frames, cut to the video

    Returns int64 [N, 10].
    """
    segments = np.ascontiguousarray(np.asarray(segments, dtype=np.float64).reshape(-1, 2))
    slots = np.empty((len(segments), SLOTS), dtype=np.int64)
    if native.module is not None:
        native.module.neighbour_slots(segments, MIN_IOU, slots, threads=torch.get_num_threads())
        return slots
    at_once = max(1, _PAIRS_AT_ONCE // max(1, len(segments)))
    for first in range(0, len(segments), at_once):
        nodes = np.arange(first, min(first + at_once, len(segments)))
        slots[nodes] = _slots_of(nodes, segments)
    return slots


def _slots_of(nodes: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Rows `nodes` [n] of `neighbour_slots`."""
    iou, distance = pairwise_iou(segments[nodes], segments), pairwise_distance(segments[nodes], segments)
    apart = (iou <= 0) & (distance > 0)
    iou[np.arange(len(nodes)), nodes] = -1.0
    overlapping, distant = np.where(iou > MIN_IOU, -iou, np.inf), np.where(apart, distance, np.inf)
    return np.concatenate([_smallest(overlapping, OVERLAPPING, nodes), _smallest(distant, DISTANT, nodes)], axis=1)


def _smallest(keys: np.ndarray, count: int, otherwise: np.ndarray) -> np.ndarray:
    """Columns of the `count` smallest finite keys of each row, repeated in turn: int64 [n, count].

    keys: float64 [n, N], overwritten
    otherwise: int64 [n], for rows without a finite key
    """
    rows = np.arange(len(keys))
    columns = np.zeros((len(keys), count), dtype=np.int64)
    found = np.isfinite(keys).sum(axis=1)
    # A few passes for the first minimum cost less than a sort, and never reorder equal keys.
    for slot in range(count):
        columns[:, slot] = keys.argmin(axis=1)
        keys[rows, columns[:, slot]] = np.inf
    source = np.arange(count) % np.minimum(np.maximum(found, 1), count)[:, None]
    return np.where(found[:, None] > 0, np.take_along_axis(columns, source, axis=1), otherwise[:, None])


def video_generator(seed: int, video: str) -> np.random.Generator:
    """Random numbers of one video, independent of other videos and their order."""
    return np.random.default_rng([seed, zlib.crc32(video.encode())])


def draw_trees(
    slots: np.ndarray, generator: np.random.Generator | np.random.RandomState, roots: np.ndarray | None = None
) -> np.ndarray:
    """Draw a tree of neighbours for every root.

    Node 0 is the root, nodes 1 to 4 are its children, and nodes 4 r + 1 to 4 r + 4 those of child r. The children of a
    node are four of its slots, drawn without replacement and for every node anew.

    slots: int64 [N, 10], see `neighbour_slots`
    generator: see `video_generator`; a RandomState is consumed as in the public code, which seeds one with 777 and uses
        it for one video after the other
    roots: [R] int64, rows of slots; None means all

    Returns int64 [R, 21].
    """
    roots = np.arange(len(slots)) if roots is None else np.asarray(roots, dtype=np.int64)
    order = np.broadcast_to(np.arange(SLOTS), (len(roots), CHILDREN + 1, SLOTS)).copy()
    if isinstance(generator, np.random.RandomState):
        for row in order.reshape(-1, SLOTS):
            generator.shuffle(row)
    else:
        order = generator.permuted(order, axis=-1)
    trees = np.empty((len(roots), TREE), dtype=np.int64)
    trees[:, 0] = roots
    for node in range(CHILDREN + 1):
        first = CHILDREN * node + 1
        drawn = slots[trees[:, node]]
        trees[:, first : first + CHILDREN] = np.take_along_axis(drawn, order[:, node, :CHILDREN], axis=1)
    return trees
