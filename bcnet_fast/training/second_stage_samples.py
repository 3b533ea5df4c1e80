"""Training data of second-stage networks: pools of proposals, samples of them, and regression targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import RegressionStats, SamplePools
from ..data.proposal_list import ProposalVideo
from ..geometry.proposal_graph import draw_trees

FOREGROUND, INCOMPLETE, BACKGROUND = range(3)  # kinds of samples
SAMPLES = (FOREGROUND, *6 * (INCOMPLETE,), BACKGROUND)  # samples of a video in a step


@dataclass(frozen=True)
class VideoPool:
    """Proposals of one video for training: foreground, instances included, then incomplete, then background.

    counts: foreground, incomplete and background proposals
    labels: [P] int64 as in the list, from 1; 0 where a proposal overlaps no instance
    segments: [P, 2] int64 in frames
    """

    counts: tuple[int, int, int]
    labels: np.ndarray
    segments: np.ndarray


@dataclass(frozen=True)
class Samples:
    """Eight proposals of one video.

    index: [8] int64, rows of the pool
    kinds: [8] int64, foreground, incomplete or background
    labels: [8] int64, 0 for background
    trees: [8, 21] int64, rows of the pool, for P-GCN
    """

    index: np.ndarray
    kinds: np.ndarray
    labels: np.ndarray
    trees: np.ndarray | None


def pool_rows(video: ProposalVideo, rules: SamplePools) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the list's proposals that are foreground, incomplete and background."""
    foreground = video.best_iou > rules.foreground_iou
    incomplete = (video.best_iou < rules.incomplete_iou) & (video.overlap_self > rules.incomplete_overlap)
    background = ~incomplete & (video.best_iou < rules.background_iou) & (video.coverage > rules.background_coverage)
    return np.flatnonzero(foreground), np.flatnonzero(incomplete), np.flatnonzero(background)


def video_pool(video: ProposalVideo, rules: SamplePools) -> VideoPool:
    """The pool of a video. ValueError: it has no instance, so that it cannot be trained on."""
    if not len(video.instances):
        raise ValueError(f"video {video.name} has no instance, expected at least one")
    foreground, *others = pool_rows(video, rules)
    rows = np.concatenate(others)
    labels = [video.labels[foreground], video.instance_labels, video.labels[rows]]
    segments = [video.proposals[foreground], video.instances, video.proposals[rows]]
    counts = len(foreground) + len(video.instances), len(others[0]), len(others[1])
    return VideoPool(counts, np.concatenate(labels), np.concatenate(segments))


def draw_samples(
    pool: VideoPool, generator: np.random.Generator | np.random.RandomState, slots: np.ndarray | None = None
) -> Samples:
    """Draw one foreground, six incomplete and one background proposal, with replacement.

    An empty kind is replaced by foreground.

    generator: a RandomState is consumed as in the public code
    slots: [P, 10], `neighbour_slots` of the pool, to draw trees too
    """
    pick = generator.randint if isinstance(generator, np.random.RandomState) else generator.integers
    starts = np.cumsum((0, *pool.counts))
    kinds = np.array([kind if pool.counts[kind] else FOREGROUND for kind in SAMPLES])
    index, trees = np.zeros(len(SAMPLES), dtype=np.int64), []
    for sample, kind in enumerate(kinds):
        index[sample] = starts[kind] + pick(pool.counts[kind])
        # The public code draws a proposal's neighbours before the next proposal.
        if slots is not None:
            trees.append(draw_trees(slots, generator, index[sample : sample + 1]))
    labels = np.where(kinds == BACKGROUND, 0, pool.labels[index])
    return Samples(index, kinds, labels, np.concatenate(trees) if trees else None)


def regression_targets(segments: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Move of the centre, in lengths of the proposal, and logarithm of the length's factor, to the best instance.

    segments: [N, 2] in frames
    instances: [g, 2] in frames, g >= 1; of equal IoUs, the first counts

    Returns float64 [N, 2].
    """
    start, end = np.asarray(segments, dtype=np.float64).reshape(-1, 2).T
    instance_start, instance_end = np.asarray(instances, dtype=np.float64).T
    overlap = np.minimum(end[:, None], instance_end) - np.maximum(start[:, None], instance_start)
    overlap = np.maximum(overlap, 0)
    union = (end - start)[:, None] + (instance_end - instance_start) - overlap
    best = (overlap / union).argmax(axis=1)
    best_start, best_end = instance_start[best], instance_end[best]
    length = end - start + 1
    centre = ((best_start + best_end) / 2 - (start + end) / 2) / length
    return np.stack([centre, np.log((best_end - best_start + 1) / length)], axis=1)


def regression_stats(videos: Sequence[ProposalVideo], rules: SamplePools) -> RegressionStats:
    """Mean and population standard deviation of the targets of all foreground proposals, instances not counted.

    ValueError: there are none.
    """
    targets = [
        regression_targets(video.proposals[foreground], video.instances)
        for video in videos
        if len(foreground := pool_rows(video, rules)[0]) and len(video.instances)
    ]
    if not targets:
        raise ValueError(f"no proposal has an IoU above {rules.foreground_iou:g}, expected one at least")
    columns = np.concatenate(targets)
    (centre_mean, size_mean), (centre_std, size_std) = columns.mean(axis=0).tolist(), columns.std(axis=0).tolist()
    return RegressionStats((centre_mean, size_mean), (centre_std, size_std))


def normalised_targets(samples: Samples, pool: VideoPool, instances: np.ndarray, stats: RegressionStats) -> np.ndarray:
    """Targets of samples in units of `stats`, 0 unless foreground: float64 [8, 2]."""
    targets = (regression_targets(pool.segments[samples.index], instances) - stats.mean) / stats.std
    return np.where(samples.kinds[:, None] == FOREGROUND, targets, 0.0)
