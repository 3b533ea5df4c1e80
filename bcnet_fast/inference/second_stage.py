"""Detections of one video at a time: proposals, features of every stream, second-stage networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..config import MUSESConfig, SecondStageConfig
from ..data.windows import rescale
from ..errors import InputError
from ..geometry.proposal_graph import draw_trees, neighbour_slots, video_generator
from ..geometry.proposal_windows import inference_ticks, pooled_rows, regions, relative_segments
from ..networks.range_maxima import proposal_features
from ..profiling import stage
from ..proposals.second_stage import StreamScores, detect, fuse_streams, stream_scores
from ..results.proposal_videos import FramedProposals
from ..threads import require_usable
from .second_stage_model import SecondStageModel

RELEASE_SEED = 777  # seed with which the public P-GCN draws neighbours, for one video after the other


@dataclass(frozen=True)
class VideoDetections:
    """Detections of one video, best first.

    segments: [n, 2] float64, seconds
    scores: [n] float64
    classes: [n] int64, from 0
    zeros: proposals whose features are all 0, of all streams together
    """

    segments: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    zeros: int


class Neighbours:
    """The graph of P-GCN by one of three rules.

    seed: draw a tree of neighbours for every proposal, by a generator for each (seed, video); None: all candidates
        count alike, and nothing is drawn
    release: draw as in the public code, from one generator for one video after the other
    """

    def __init__(self, seed: int | None = None, *, release: bool = False) -> None:
        self.seed = seed
        self.stream = np.random.RandomState(RELEASE_SEED) if release else None

    def of(self, video: str, segments: np.ndarray) -> np.ndarray:
        """Neighbours of segments [N, 2] in frames: int64 [N, 10] or [N, 21]. The public draw depends on the order."""
        slots = neighbour_slots(segments)
        if self.stream is not None:
            return draw_trees(slots, self.stream)
        return slots if self.seed is None else draw_trees(slots, video_generator(self.seed, video))


class Refiner:
    """Second-stage networks, one for each stream, with the rules that turn their scores into detections."""

    def __init__(
        self,
        models: Sequence[SecondStageModel],
        *,
        weights: Sequence[float] | None = None,
        nms_threshold: float | None = None,
        regress: bool = True,
        keep_empty: bool = False,
    ) -> None:
        """weights: weights of the streams; equal by default
        nms_threshold: replaces that of the first network's configuration
        regress: whether the networks move the boundaries
        keep_empty: keep detections that the end of the video has cut to nothing

        InputError: a network does not know the units of its regression.
        """
        self.models, self.regress, self.keep_empty = list(models), regress, keep_empty
        self.weights = list(weights or [1.0] * len(models))
        settings = models[0].config.detections
        if nms_threshold is None:
            nms_threshold = settings.nms_threshold if len(models) == 1 else settings.fused_nms_threshold
        self.settings = replace(settings, nms_threshold=nms_threshold)
        if regress and any(model.config.regression is None for model in models):
            raise InputError(
                "a checkpoint has no statistics of its regression (reg_stats), expected them; --no-regression does "
                "without"
            )

    def __call__(
        self,
        features: Sequence[np.ndarray],
        proposals: FramedProposals,
        neighbours: np.ndarray | None,
        class_weights: np.ndarray | None = None,
    ) -> VideoDetections:
        """Detections of a video.

        features: [T, C] of each stream
        neighbours: of `Neighbours`; None for MUSES-Net
        class_weights: [K], see `proposals.second_stage.detect`

        InputError: a network gives scores that are not finite. BackendError: in a process that was forked after PyTorch
        had computed with threads.
        """
        require_usable()
        segments, clock = proposals.segments, proposals.clock
        if not len(segments):
            return VideoDetections(np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64), 0)
        streams, zeros = [], 0
        for model, rows in zip(self.models, features, strict=True):
            scores, of_zeros = self._scores(model, rows, segments, clock.frames, neighbours)
            streams.append(scores)
            zeros += of_zeros
        with stage("detections"):
            fused = fuse_streams(streams, self.weights)
            relative = relative_segments(segments, clock.frames)
            with np.errstate(over="ignore", invalid="ignore"):
                found = detect(fused, relative, self.settings, regress=self.regress, class_weights=class_weights)
            if not all(np.isfinite(column).all() for column in (*vars(fused).values(), found.scores, found.segments)):
                raise InputError("the network's scores have NaN or infinity, expected finite ones")
        order = np.argsort(-found.scores, kind="stable")
        if not self.keep_empty:
            order = order[found.segments[order, 0] < found.segments[order, 1]]
        seconds = clock.seconds(found.segments[order] * clock.frames)
        return VideoDetections(seconds, found.scores[order], found.classes[order], zeros)

    def _scores(
        self,
        model: SecondStageModel,
        features: np.ndarray,
        segments: np.ndarray,
        frames: int,
        neighbours: np.ndarray | None,
    ) -> tuple[StreamScores, int]:
        """Scores of one stream, and how many proposals have features of zeros alone."""
        inputs, zeros = network_inputs(model.config, features, segments, frames)
        with stage("network"):
            output = model(*inputs, *(() if isinstance(model.config.model, MUSESConfig) else (neighbours,)))
        if self.regress:
            return stream_scores(output, model.config.regression), zeros
        columns = (x.cpu().double().numpy() for x in (output.activity, output.completeness, output.regression))
        return StreamScores(*columns), zeros


def network_inputs(
    config: SecondStageConfig, features: np.ndarray, segments: np.ndarray, frames: int
) -> tuple[list[torch.Tensor], int]:
    """Inputs of a network for the proposals [N, 2] of a video, without neighbours.

    features: [T, C]

    Returns the tensors, and how many proposals have features of zeros alone.
    """
    ticks = inference_ticks(segments, frames)
    rows = torch.from_numpy(as_laid_out(features, config))
    if isinstance(config.model, MUSESConfig):
        return [rows.T, torch.from_numpy(regions(ticks))], 0 if rows.any() else len(segments)
    with stage("pooling"):
        windows = torch.from_numpy(pooled_rows(ticks, frames, len(rows), config.rows))
        pooled = proposal_features(rows, windows)
    zeros = int((~pooled[1].any(dim=1)).sum())
    return list(pooled), zeros


def as_laid_out(features: np.ndarray, config: SecondStageConfig) -> np.ndarray:
    """Features [T, C] with as many rows as the network's layout asks for."""
    rows = config.rows.rescaled
    return rescale(features, rows).T if rows and len(features) != rows else features
