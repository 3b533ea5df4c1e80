"""Average recall of ranked proposals, and the area under its curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.annotations import VideoAnnotation
from ..results.reader import Results
from .ground_truth import Truth, unknown_videos
from .matching import count_ties, overlapping_pairs, ranking


@dataclass(frozen=True)
class AverageRecall:
    """Result of `average_recall`; T thresholds, P curve points."""

    tiou_thresholds: np.ndarray  # [T]
    max_proposals: float
    recall: np.ndarray  # [T, P]
    average_recall: np.ndarray  # [P], mean over the thresholds
    proposals_per_video: np.ndarray  # [P], the AN of every point
    videos: int  # with instances
    instances: int
    proposals: int  # in the file
    videos_without_proposals: tuple[str, ...]  # all their instances are missed
    videos_without_ground_truth: tuple[str, ...]  # their proposals count in N
    tied_proposals: int  # with the score of another one of the same video

    @property
    def auc(self) -> float:
        """Area under the curve in percent of its last AN. The curve starts at its first point, so 99 is perfect."""
        widths, heights = np.diff(self.proposals_per_video), self.average_recall
        area = np.sum(widths * (heights[1:] + heights[:-1]) / 2.0)
        return float(100.0 * area / self.proposals_per_video[-1])

    def at(self, an: float) -> float:
        """AR@AN: the value of the curve point for `an` proposals a video, a number between 0 and 1."""
        point = round(an / self.max_proposals * len(self.average_recall))
        if not 1 <= point <= len(self.average_recall):
            raise ValueError(f"an is {an}, expected at most {self.max_proposals}")
        return float(self.average_recall[point - 1])


def average_recall(
    ground_truth: Mapping[str, VideoAnnotation],
    proposals: Results | Mapping[str, Any],
    *,
    tiou_thresholds: Sequence[float],
    max_proposals: float,
    points: float | None = None,
) -> AverageRecall:
    """Recall of ranked proposals against their average number a video, averaged over tIoU thresholds.

    `proposals` may also be what `Results.from_dict` takes. Labels do not matter: an instance annotated under two
    classes counts twice. Point j of the curve takes the share j / `points` of `max_proposals` a video on average; by
    default there is one for every whole number of proposals. Where `points` is not whole, the last point is the first
    one beyond the end, as in OpenTAD. ValueError without any instance.
    """
    results = proposals if isinstance(proposals, Results) else Results.from_dict(proposals)
    truth = Truth.of(ground_truth)
    thresholds = np.asarray(tiou_thresholds, dtype=np.float64)
    points = int(max_proposals) if points is None else points
    steps = np.arange(1, points + 1)
    n_videos, n_proposals = len(truth.video_names), len(results.scores)

    budget = max_proposals * float(n_videos)
    video = truth.index_of_videos(results)
    order, rank = ranking(results.scores, video)
    tied = count_ties(video[order], results.scores[order])
    listed = np.bincount(video[video >= 0], minlength=n_videos)
    kept = np.minimum((listed * (budget / max(n_proposals, 1))).astype(np.int64), listed)
    total_kept = int(kept.sum())
    keep = (video[order] >= 0) & (rank < kept[video[order]])
    order, rank = order[keep], rank[keep]

    # First rank that finds each instance, at each threshold; no rank is as large as `never`.
    never = n_proposals
    first_rank = np.full((len(thresholds), len(truth.video)), never)
    for row, instance, tiou in overlapping_pairs(video[order], results.segments[order], truth.video, truth.segments):
        near = tiou >= thresholds.min()
        row, instance, tiou = row[near], instance[near], tiou[near]
        for found, threshold in zip(first_rank, thresholds, strict=True):
            hit = tiou >= threshold
            np.minimum.at(found, instance[hit], rank[row[hit]])

    # Point j takes the first taken[j] proposals of a video, so an instance is found from the first j on with
    # taken[j] > first rank. All videos with equally long lists share this j.
    share = steps / float(points) * (budget / max(total_kept, 1))
    newly_found = np.zeros((len(thresholds), len(steps) + 1), dtype=np.int64)
    kept_of_instance = kept[truth.video]
    for length in np.unique(kept):
        taken = np.minimum((length * share).astype(np.int64), length)
        first_point = np.searchsorted(taken, first_rank[:, kept_of_instance == length], side="right")
        for counts, of_threshold in zip(newly_found, first_point, strict=True):
            counts += np.bincount(of_threshold, minlength=len(steps) + 1)
    recall = np.cumsum(newly_found[:, : len(steps)], axis=1) / float(len(truth.video))

    return AverageRecall(
        tiou_thresholds=thresholds,
        max_proposals=float(max_proposals),
        recall=recall,
        average_recall=recall.mean(axis=0),
        proposals_per_video=share * (float(max(total_kept, 1)) / n_videos),
        videos=n_videos,
        instances=len(truth.video),
        proposals=n_proposals,
        videos_without_proposals=tuple(np.array(truth.video_names, dtype=object)[listed == 0]),
        videos_without_ground_truth=unknown_videos(results, truth),
        tied_proposals=tied,
    )
