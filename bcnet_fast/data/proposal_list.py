"""Proposal lists: the text files from which second-stage networks read proposals and instances of videos.

A line that begins with `#` separates two videos. A video has, line by line:

    path                                      the id of the video is its last part
    duration
    rate                                      frames = duration x rate, cut to a whole number
    number of instances, then for each        label start end
    number of proposals, then for each        label best_iou overlap_self start end

Labels count from 1. Times are frames. A proposal with label 0 overlaps no instance.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..errors import InputError
from ..storage.files import read_text

_WHOLE = ("label", "start", "end")
_LARGEST = 2**31 - 1  # largest number
EXPECTED = "a proposal list (text blocks separated by lines that begin with #)"


@dataclass(frozen=True)
class ProposalVideo:
    """One video of a proposal list: g instances and p proposals, cut to the video, in the order of the file.

    path: as written in the list
    frames: length of the video
    instance_labels: [g] int64, from 1
    instances: [g, 2] int64, first frame and end
    labels: [p] int64, class of the instance with the largest IoU, 0 without one
    best_iou: [p] float64, that IoU
    overlap_self: [p] float64, share of the proposal inside that instance
    proposals: [p, 2] int64, first frame and end
    coverage: [p] float64, length before the cut as a share of the video
    rate: as written in the list, frames a second, or 1 where the duration is in frames
    left_out: number of proposals of the file that are not among these
    """

    path: str
    frames: int
    instance_labels: np.ndarray
    instances: np.ndarray
    labels: np.ndarray
    best_iou: np.ndarray
    overlap_self: np.ndarray
    proposals: np.ndarray
    coverage: np.ndarray
    rate: float = 1.0
    left_out: int = 0

    @property
    def name(self) -> str:
        """The id of the video."""
        return self.path.rsplit("/", 1)[-1]


def read_proposal_list(path: str | os.PathLike, *, classes: int | None = None) -> list[ProposalVideo]:
    """Read a proposal list, gzipped or not.

    Instances and proposals that are empty or begin after the end of the video are left out; those that end after it are
    cut. Blank lines, and lines after the last proposal of a video, are ignored.

    classes: leave out proposals with a larger label, as the list reader of MUSES-Net does

    InputError: names file and line of what is not as expected, or a video that occurs twice.
    """
    videos: dict[str, ProposalVideo] = {}
    for rows in _blocks(path):
        video = _Block(path, rows).video(classes)
        if video.name in videos:
            raise InputError(f"{path}, line {rows[0][0]}: video {video.name} occurs twice, expected it once")
        videos[video.name] = video
    if not videos:
        raise InputError(f"{path} has no video, expected {EXPECTED}")
    return list(videos.values())


@dataclass(frozen=True)
class ListedProposals:
    """The proposals of one video as a list has them.

    name: id of the video
    duration: seconds, or frames where `rate` is 1; both are 1 where times are shares of the video
    rate: frames in a second
    segments: [p, 2] float64, start and end in frames, or as shares
    """

    name: str
    duration: float
    rate: float
    segments: np.ndarray


def listed_proposals(path: str | os.PathLike) -> list[ListedProposals]:
    """Read the proposals of a list without cutting them; times may be shares of the video, as in the lists of TAG.

    InputError: as in `read_proposal_list`.
    """
    videos: dict[str, ListedProposals] = {}
    for rows in _blocks(path):
        video = _Block(path, rows).proposals()
        if video.name in videos:
            raise InputError(f"{path}, line {rows[0][0]}: video {video.name} occurs twice, expected it once")
        videos[video.name] = video
    if not videos:
        raise InputError(f"{path} has no video, expected {EXPECTED}")
    return list(videos.values())


def _blocks(path: str | os.PathLike) -> Iterator[list[tuple[int, str]]]:
    """The lines of each video with their numbers, without blank ones."""
    lines = enumerate(read_text(path, EXPECTED).split("\n"), start=1)
    for is_separator, block in groupby(lines, key=lambda line: line[1].startswith("#")):
        rows = [] if is_separator else [(number, text.strip()) for number, text in block if text.strip()]
        if rows:
            yield rows


class _Block:
    """The lines of one video."""

    def __init__(self, path: str | os.PathLike, rows: list[tuple[int, str]]) -> None:
        self.path, self.rows, self.last = path, iter(rows), rows[-1][0]

    def video(self, classes: int | None) -> ProposalVideo:
        source = self._next("the path of a video")[1]
        (duration,), (rate,) = (self._numbers(name) for name in ("duration", "rate"))
        frames = duration * rate
        if not 0 <= frames <= _LARGEST or rate < 0:
            raise self._error(self.line, "a number of frames, duration x rate, of at least 0", f"{frames:g}")
        frames = int(frames)
        instance_labels, instances, _ = _cut(self._table("instances", "label start end"), frames)
        proposals = self._table("proposals", "label best_iou overlap_self start end")
        count = len(proposals)
        if classes is not None:
            proposals = proposals[proposals[:, 0] <= classes]
        labels, segments, kept = _cut(proposals[:, [0, 3, 4]], frames)
        _, best_iou, overlap_self, starts, ends = proposals[kept].T
        coverage = (ends - starts) / max(frames, 1)
        facts = source, frames, instance_labels, instances
        columns = labels, best_iou, overlap_self, segments, coverage
        return ProposalVideo(*facts, *columns, rate, count - len(segments))

    def proposals(self) -> ListedProposals:
        source = self._next("the path of a video")[1]
        (duration,), (rate,) = (self._numbers(name) for name in ("duration", "rate"))
        if not (duration >= 0 and rate > 0):
            raise self._error(self.line, "a duration of at least 0 and a rate above 0", f"{duration:g}, {rate:g}")
        self._table("instances", "label from to")
        segments = self._table("proposals", "label best_iou overlap_self from to")[:, 3:]
        return ListedProposals(source.rsplit("/", 1)[-1], duration, rate, segments)

    def _table(self, what: str, fields: str) -> np.ndarray:
        """A count, then as many lines with these fields: float64 [count, fields]."""
        (count,) = self._numbers(f"number of {what}")
        if not (count.is_integer() and count >= 0):
            raise self._error(self.line, f"the number of {what}", f"{count:g}")
        names = fields.split()
        return np.array([self._numbers(*names) for _ in range(int(count))], dtype=np.float64).reshape(-1, len(names))

    def _numbers(self, *names: str) -> list[float]:
        """The next line as one finite number for each name; labels and frames are whole."""
        self.line, text = self._next(" ".join(names))
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if len(numbers) != len(names) or not all(map(_fits, names, numbers)):
            whole = f" as numbers, {', '.join(_WHOLE)} without a fraction" if len(names) > 1 else " as a number"
            raise self._error(self.line, " ".join(names) + whole, text)
        return numbers

    def _next(self, expected: str) -> tuple[int, str]:
        row = next(self.rows, None)
        if row is None:
            raise InputError(f"{self.path}, line {self.last} ends a video, expected another line with {expected}")
        return row

    def _error(self, line: int, expected: str, found: str) -> InputError:
        return InputError(f"{self.path}, line {line} is {found!r:.80}, expected {expected}")


def _fits(name: str, value: float) -> bool:
    return abs(value) <= _LARGEST and (name not in _WHOLE or value.is_integer())


def _cut(table: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [n] and segments [n, 2] of the rows (label, start, end) inside the video, and which rows those are."""
    kept = (table[:, 2] > table[:, 1]) & (table[:, 1] < frames)
    labels, starts, ends = table[kept].astype(np.int64).T
    return labels, np.stack([starts, np.minimum(ends, frames)], axis=1), kept
