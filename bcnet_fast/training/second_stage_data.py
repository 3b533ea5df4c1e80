"""Training data of P-GCN and MUSES-Net: videos with pools of proposals, and network inputs sampled from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import MUSESConfig, RegressionStats, SecondStageConfig
from ..data.features import FeatureArchive, FeatureSequence
from ..data.proposal_list import ProposalVideo
from ..errors import InputError
from ..geometry.proposal_graph import neighbour_slots
from ..geometry.proposal_windows import pooled_rows, regions, training_ticks
from ..inference.second_stage import as_laid_out
from ..networks.range_maxima import proposal_features
from ..results.proposal_videos import Clock
from ..text import count
from .second_stage_samples import Samples, VideoPool, draw_samples, normalised_targets, video_pool

Generator = np.random.Generator | np.random.RandomState


@dataclass(frozen=True, eq=False)
class SecondStageVideo:
    """A usable video: its proposals and instances in frames of its clock, and its features.

    name: of its features; a proposal list may have a path
    features: [T, C]; None where they are read again for each visit
    """

    name: str
    video: ProposalVideo
    clock: Clock
    features: np.ndarray | None


@dataclass(frozen=True)
class SampledVideo:
    """Eight proposals of one video, as a network is trained on them.

    inputs: P-GCN: activity features [n, C], completeness features [n, 3 C] and trees [8, 21] of the n proposals that
        any tree has; MUSES-Net: features [C, T] and regions [8, 2]
    kinds, labels: [8] int64
    targets: [8, 2] float32
    """

    inputs: tuple[Tensor, ...]
    kinds: Tensor
    labels: Tensor
    targets: Tensor


@dataclass(frozen=True)
class VideoSet:
    """The usable videos of a subset, and why others are not."""

    videos: list[SecondStageVideo]
    failures: dict[str, str]


def read_videos(
    loaded: Iterable[tuple[str, FeatureSequence | InputError]],
    framed: Callable[[str, int], tuple[ProposalVideo, Clock]],
    *,
    kept_bytes: int,
) -> VideoSet:
    """Read every video once, so that no bad file stops the training later.

    framed: (name, rows of features) -> proposals and clock of the video; may raise InputError
    kept_bytes: memory for features, spent on the first videos
    """
    videos, failures = [], {}
    for name, found in loaded:
        try:
            if isinstance(found, InputError):
                raise found
            video, clock = framed(name, len(found.features))
        except InputError as error:
            failures[name] = str(error)
            continue
        kept_bytes -= found.features.nbytes
        videos.append(SecondStageVideo(name, video, clock, found.features if kept_bytes >= 0 else None))
    return VideoSet(videos, failures)


class SecondStageSamples(Dataset):
    """Samples of the videos that have instances: item (number of the video, drawn samples) -> `SampledVideo`.

    Can be pickled; each worker process opens the files for itself.
    """

    def __init__(self, archive: FeatureArchive, videos: Sequence[SecondStageVideo], config: SecondStageConfig) -> None:
        """InputError: no video has an instance."""
        self.archive, self.config = archive, config
        self.videos = [video for video in videos if len(video.video.instances)]
        if not self.videos:
            raise InputError(f"none of {count(len(videos), 'training video')} has an instance, expected one")
        self.pools: list[VideoPool] = [video_pool(video.video, config.pools) for video in self.videos]
        draws = not isinstance(config.model, MUSESConfig)
        self.slots = [neighbour_slots(pool.segments) if draws else None for pool in self.pools]

    def __len__(self) -> int:
        return len(self.videos)

    def draw(self, number: int, generator: Generator) -> Samples:
        """Eight proposals of a video, for P-GCN with their neighbours."""
        return draw_samples(self.pools[number], generator, self.slots[number])

    def __getitem__(self, item: tuple[int, Samples]) -> SampledVideo:
        number, samples = item
        video, pool = self.videos[number], self.pools[number]
        frames, config = video.video.frames, self.config
        features = self.archive.load(video.name).features if video.features is None else video.features
        rows = torch.from_numpy(as_laid_out(features, config))
        inputs: tuple[Tensor, ...]
        if samples.trees is None:
            rois = regions(training_ticks(pool.segments[samples.index], frames))
            inputs = rows.T, torch.from_numpy(rois)
        else:
            nodes, places = np.unique(samples.trees, return_inverse=True)
            windows = pooled_rows(training_ticks(pool.segments[nodes], frames), frames, len(rows), config.rows)
            pooled = proposal_features(rows, torch.from_numpy(windows))
            inputs = *pooled, torch.from_numpy(places.reshape(samples.trees.shape))
        stats = config.regression or RegressionStats()
        targets = normalised_targets(samples, pool, video.video.instances, stats)
        return SampledVideo(
            inputs,
            torch.from_numpy(samples.kinds),
            torch.from_numpy(samples.labels),
            torch.from_numpy(targets.astype(np.float32)),
        )

    def digest(self) -> str:
        """SHA-256 of all pools, instances and lengths, to tell that a resumed training has the same."""
        digest = hashlib.sha256()
        for video, pool in zip(self.videos, self.pools, strict=True):
            digest.update(f"{video.name} {video.video.frames} {pool.counts}\n".encode())
            for column in (pool.labels, pool.segments, video.video.instances):
                digest.update(column.tobytes())
        return digest.hexdigest()
