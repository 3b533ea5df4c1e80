"""Proposals of whole videos: windows of many videos share a batch, one bad video never stops the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..data.features import FeatureArchive, FeatureSequence, iterate
from ..data.timing import SnippetTime, TimeResolver
from ..data.windows import cut, rescale, window_starts
from ..errors import InputError
from ..ops import use_backend
from ..profiling import stage
from ..proposals.candidates import video_proposals, window_proposals
from ..protocols import Protocol
from .model import Model


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Failure:
    """A video that could not be used, and the one line that says why."""

    video: str
    reason: str


@dataclass
class _Pending:
    """A video of which some windows are still on their way through the network."""

    video: str
    snippets: int  # that the network's windows cover
    time: SnippetTime
    starts: list[int]
    largest: float  # magnitude of a feature value
    parts: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # segments, scores, decayed of a window
    finite: bool = True  # all scores of the network so far
    boundary: np.ndarray | None = None  # [3, snippets]: sums of start and end probability, and their count


def predict(
    model: Model,
    archive: FeatureArchive,
    videos: Sequence[str],
    times: TimeResolver,
    protocol: Protocol,
    *,
    batch_size: int = 8,
    workers: int = 0,
) -> Iterator[VideoProposals | Failure]:
    """Run the network over `videos` and yield each one's proposals, or its failure, in any order.

    Memory is bounded by `batch_size` windows and a few videos, however large the archive is.
    """
    queue: list[tuple[_Pending, int, np.ndarray]] = []
    for video, loaded in iterate(archive, videos, workers=workers, prefetch=2):
        try:
            if isinstance(loaded, InputError):
                raise loaded
            with stage("windows"):
                windows, pending = _prepare(video, loaded, model, times, protocol)
        except InputError as error:
            yield Failure(video, str(error))
            continue
        for index, window in enumerate(windows):
            queue.append((pending, index, window))  # [C, T]
            if len(queue) == batch_size:
                yield from _run(queue, model, protocol)
    if queue:
        yield from _run(queue, model, protocol)


def _prepare(
    video: str, loaded: FeatureSequence, model: Model, times: TimeResolver, protocol: Protocol
) -> tuple[Iterable[np.ndarray], _Pending]:
    """The windows of a video, [C, T] each, made one by one, and what has to be remembered of it."""
    data, window, features = model.config.data, model.config.model.window, loaded.features
    time = times.resolve(video, len(features), whole_snippets=protocol.whole_snippets)
    largest = float(np.abs(features).max())
    if data.rescale:
        return [rescale(features, window)], _Pending(video, window, time, [0], largest)
    starts = window_starts(len(features), window, data.window_stride, keep_tail=not protocol.skip_short_tail)
    windows = (cut(features, [start], window)[0] for start in starts)
    return windows, _Pending(video, len(features), time, starts, largest)


def _run(
    queue: list[tuple[_Pending, int, np.ndarray]], model: Model, protocol: Protocol
) -> Iterator[VideoProposals | Failure]:
    """Network and first Soft-NMS for one batch of windows, which is emptied; yields the videos complete with it."""
    size = model.config.model.window
    lengths = torch.tensor([min(size, pending.snippets - pending.starts[index]) for pending, index, _ in queue])
    features = torch.from_numpy(np.stack([window for _, _, window in queue]))
    places = [(pending, index) for pending, index, _ in queue]
    queue.clear()  # the windows are in memory once more
    with stage("network"):
        output = model.candidates(features, lengths, protocol)
    finite = torch.stack([scores.flatten(1).isfinite().all(dim=1) for scores in output.columns().values()]).all(dim=0)
    output = output.map(lambda scores: torch.where(finite.view(-1, *[1] * (scores.dim() - 1)), scores, 0.0))
    with use_backend(model.backend), stage("window proposals"):
        found = window_proposals(output, lengths.to(model.device), model.config, protocol)
    probabilities = torch.stack([output.start, output.end], dim=1).cpu().numpy()
    finite = finite.cpu()
    for row, (pending, index) in enumerate(places):
        start, length = pending.starts[index], int(lengths[row])
        pending.finite &= bool(finite[row])
        mine = found.window == row
        pending.parts.append((found.segments[mine] + start, found.scores[mine], found.decayed[mine]))
        if pending.boundary is None:
            pending.boundary = np.zeros((3, pending.snippets))
        pending.boundary[:2, start : start + length] += probabilities[row, :, :length]
        pending.boundary[2, start : start + length] += 1
        if len(pending.parts) == len(pending.starts):
            yield _finish(pending, model, protocol) if pending.finite else _overflow(pending, model)


def _overflow(pending: _Pending, model: Model) -> Failure:
    return Failure(
        pending.video,
        f"video {pending.video!r}: expected finite scores from the network, found NaN or infinity "
        f"(largest feature value {pending.largest:.3g}, precision {model.precision})",
    )


def _finish(pending: _Pending, model: Model, protocol: Protocol) -> VideoProposals:
    """Merge the windows of a video and turn snippets into seconds."""
    segments, scores, decayed = (torch.cat(column) for column in zip(*pending.parts, strict=True))
    with use_backend(model.backend), stage("video proposals"):
        segments, scores = video_proposals(segments, scores, decayed, model.config, protocol)
    seconds, confidence = pending.time.seconds(segments.numpy()), scores.numpy()
    end_of_snippets = pending.time.seconds(float(pending.snippets))
    duration = pending.time.duration or end_of_snippets
    if protocol.round_output:
        seconds, confidence = np.round(seconds, 1), np.round(confidence, 6)
    if not protocol.keep_outside:
        seconds = np.clip(seconds, 0.0, duration)
        inside = seconds[:, 0] < seconds[:, 1]
        seconds, confidence = seconds[inside], confidence[inside]
    start, end, count = pending.boundary
    # Under the release protocol the last snippets of a video may belong to no window.
    count = np.maximum(count, 1)
    times = pending.time.seconds(np.arange(pending.snippets, dtype=np.float64))
    return VideoProposals(
        pending.video, seconds, confidence, len(pending.starts), duration, times, start / count, end / count
    )
