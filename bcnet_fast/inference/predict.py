"""Proposals of whole videos: windows of many videos share a batch, one bad video never stops the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.annotations import Instance
from ..data.features import FeatureArchive, FeatureSequence, iterate
from ..data.timing import TimeResolver, VideoTime
from ..data.windows import cut, rescale, window_starts
from ..errors import InputError
from ..networks.outputs import Output
from ..ops import use_backend
from ..profiling import stage
from ..proposals import ProposalGenerator, WindowProposals
from ..protocols import DEFAULT, Protocol
from ..results.writer import entries
from ..storage.files import readable
from ..text import count
from .network import LoadedNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class VideoProposals:
    """Proposals of one video, best first: segments [n, 2] float64 in seconds, scores [n] float64."""

    video: str
    segments: np.ndarray
    scores: np.ndarray
    windows: int
    duration: float  # seconds; of the covered snippets where the video's own is unknown
    boundary_times: np.ndarray  # [T] seconds
    boundary_start: np.ndarray  # [T] probability, the mean over the windows that saw the snippet
    boundary_end: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        best = "".join(
            f", best {start:.2f} s to {end:.2f} s ({score:.3f})"
            for (start, end), score in zip(self.segments[:1], self.scores[:1], strict=True)
        )
        return f"VideoProposals({self.video!r}, {self.duration:.2f} s, {count(len(self), 'proposal')}{best})"

    def top(self, n: int) -> VideoProposals:
        """The n best proposals, or all if they are fewer."""
        return replace(self, segments=self.segments[:n], scores=self.scores[:n])

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """{video: [{"score", "segment"}]}, the value of `results` in a submission file."""
        return {self.video: entries(self.segments, self.scores)}

    def plot(
        self,
        path: str | os.PathLike | None = None,
        ground_truth: Sequence[Instance] | None = None,
        *,
        best: int | None = None,
    ) -> Figure:
        """Draw boundary probabilities, the `best` proposals and, if given, the true instances; see `results.timeline`.

        By default there are as many proposals as true instances, from 10 to 30. The suffix of `path` chooses .png, .svg
        or .pdf; None writes no file. Returns the matplotlib figure. InputError: the suffix is another one, or the file
        cannot be written.
        """
        from ..results.timeline import timeline

        return timeline(
            path,
            video_id=self.video,
            duration_s=self.duration,
            boundary=(self.boundary_times, self.boundary_start, self.boundary_end),
            proposals=np.column_stack([self.segments, self.scores]),
            ground_truth=ground_truth,
            best=best,
        )


@dataclass(frozen=True)
class Failure:
    """A video that could not be used, and the one line that says why."""

    video: str
    reason: str


class CollectedVideo:
    """A video with windows that have not passed through the network yet."""

    def __init__(self, name: str, snippets: int, time: VideoTime, starts: Sequence[int], largest: float) -> None:
        """snippets: number that the windows cover; starts: first of each window; largest: magnitude of a feature."""
        self.name, self.snippets, self.time, self.largest = name, snippets, time, largest
        self.windows, self.missing = len(starts), len(starts)
        self.finite = True  # all scores of the network so far
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []  # segments, scores, decayed of a window
        self.boundary = np.zeros((3, snippets))  # sums of start and end probability, and their count

    def add(self, window: Window, found: WindowProposals, row: int, boundary: np.ndarray, finite: bool) -> None:
        """Take over the proposals of row `row` of a batch and its probabilities, [2, T]."""
        of_window = found.window == row
        segments = found.segments[of_window] + window.start
        self.parts.append((segments, found.scores[of_window], found.decayed[of_window]))
        covered = slice(window.start, window.start + window.length)
        self.boundary[:2, covered] += boundary[:, : window.length]
        self.boundary[2, covered] += 1
        self.finite &= finite
        self.missing -= 1


@dataclass(frozen=True)
class Window:
    """A window of a video that begins at snippet `start`; its first `length` snippets are not padding."""

    video: CollectedVideo
    start: int
    length: int


class Predictor:
    """A model with the rules of a protocol: features of videos to proposals in seconds."""

    def __init__(self, model: LoadedNetwork, protocol: Protocol = DEFAULT) -> None:
        self.model, self.protocol = model, protocol
        self.proposals = ProposalGenerator(model.config, protocol)

    def __call__(
        self,
        archive: FeatureArchive,
        videos: Sequence[str],
        times: TimeResolver,
        *,
        batch_size: int = 8,
        workers: int = 0,
    ) -> Iterator[VideoProposals | Failure]:
        """Yield the proposals of each video, or its failure, in any order.

        Memory is bounded by `batch_size` windows and a few videos, however large the archive is.
        """
        return self.run(iterate(archive, videos, workers=workers, prefetch=2), times, batch_size=batch_size)

    def run(
        self, sequences: Iterable[tuple[str, FeatureSequence | InputError]], times: TimeResolver, *, batch_size: int = 8
    ) -> Iterator[VideoProposals | Failure]:
        """The same for videos whose features are read elsewhere."""
        batch: list[tuple[Window, np.ndarray]] = []
        for name, loaded in sequences:
            try:
                if isinstance(loaded, InputError):
                    raise loaded
                with stage("windows"), readable(f"video {name!r}", "features and times of a video"):
                    windows = self.windows(name, loaded, times)
            except InputError as error:
                yield Failure(name, str(error))
                continue
            for window in windows:
                batch.append(window)
                if len(batch) == batch_size:
                    yield from self._finish(batch)
        if batch:
            yield from self._finish(batch)

    def windows(self, name: str, loaded: FeatureSequence, times: TimeResolver) -> Iterable[tuple[Window, np.ndarray]]:
        """The windows of a video with their features [C, T], cut one by one."""
        config, rules, features = self.model.config, self.protocol.windows, loaded.features
        size = config.model.window
        time = times.resolve(name, len(features), whole_snippets=rules.whole_snippets)
        largest = float(np.abs(features).max())
        if config.data.rescale:
            video = CollectedVideo(name, size, time, [0], largest)
            return [(Window(video, 0, size), rescale(features, size))]
        keep_tail = not rules.skip_short_tail
        starts = window_starts(len(features), size, config.data.window_stride, keep_tail=keep_tail)
        video = CollectedVideo(name, len(features), time, starts, largest)
        return (
            (Window(video, start, min(size, len(features) - start)), cut(features, [start], size)[0])
            for start in starts
        )

    def scores(self, features: Tensor, lengths: Tensor) -> Output:
        """The scores of features [B, C, T] on which proposals depend; lengths [B] excludes padding.

        On a CPU, BCNet's clip level is computed only for the anchors that some pair of boundaries matches. The clearer
        the boundaries, the more time this saves. The other anchors have the score 0.
        """
        model = self.model
        if not model.skips_anchors:
            return model(features)
        boundaries = model.boundaries(features)
        with stage("anchors that are needed"):
            needed = self.proposals.needed_anchors(boundaries, lengths)
        return model.anchors(features, boundaries, needed)

    def _finish(self, batch: list[tuple[Window, np.ndarray]]) -> Iterator[VideoProposals | Failure]:
        """Run a batch of windows, empty it, and yield the videos that are complete with it."""
        windows = [window for window, _ in batch]
        features = torch.from_numpy(np.stack([features for _, features in batch]))
        batch.clear()  # the stack is a copy
        with stage("network"):
            lengths = torch.tensor([window.length for window in windows])
            output, finite = _finite(self.scores(features, lengths))
        with use_backend(self.model.backend), stage("window proposals"):
            found = self.proposals.window_proposals(output, lengths.to(self.model.device))
        boundary = torch.stack([output.start, output.end], dim=1).cpu().numpy()
        for row, (window, good) in enumerate(zip(windows, finite.tolist(), strict=True)):
            video = window.video
            video.add(window, found, row, boundary[row], good)
            if not video.missing:
                yield self._video_proposals(video) if video.finite else self._overflow(video)

    def _video_proposals(self, video: CollectedVideo) -> VideoProposals:
        """Merge the windows of a video and turn snippets into seconds."""
        with use_backend(self.model.backend), stage("video proposals"):
            segments, scores = self.proposals.video_proposals(*map(torch.cat, zip(*video.parts, strict=True)))
        seconds, confidence = video.time.seconds(segments.numpy()), scores.numpy()
        duration = video.time.duration or video.time.seconds(float(video.snippets))
        rules = self.protocol.output
        if rules.round_output:
            seconds, confidence = np.round(seconds, 1), np.round(confidence, 6)
        if not rules.keep_outside:
            seconds = np.clip(seconds, 0.0, duration)
            inside = seconds[:, 0] < seconds[:, 1]
            seconds, confidence = seconds[inside], confidence[inside]
        start, end, seen = video.boundary
        # Under the release protocol the last snippets of a video may belong to no window.
        seen = np.maximum(seen, 1)
        times = video.time.seconds(np.arange(video.snippets, dtype=np.float64))
        return VideoProposals(video.name, seconds, confidence, video.windows, duration, times, start / seen, end / seen)

    def _overflow(self, video: CollectedVideo) -> Failure:
        return Failure(
            video.name,
            f"video {video.name!r}: the network's scores have NaN or infinity, expected finite ones "
            f"(largest feature value {video.largest:.3g}, precision {self.model.precision})",
        )


def _finite(output: Output) -> tuple[Output, Tensor]:
    """The scores with 0 in place of windows that have NaN or infinity, and which windows are finite, bool [B]."""
    finite = torch.stack([scores.flatten(1).isfinite().all(dim=1) for scores in output.columns().values()]).all(dim=0)
    output = output.map(lambda scores: torch.where(finite.view(-1, *[1] * (scores.dim() - 1)), scores, 0.0))
    return output, finite.cpu()


def predict(
    model: LoadedNetwork,
    archive: FeatureArchive,
    videos: Sequence[str],
    times: TimeResolver,
    protocol: Protocol = DEFAULT,
    *,
    batch_size: int = 8,
    workers: int = 0,
) -> Iterator[VideoProposals | Failure]:
    """`Predictor(model, protocol)` over an archive, in one call."""
    return Predictor(model, protocol)(archive, videos, times, batch_size=batch_size, workers=workers)
