"""Which frames of a video make which row of features: as a table, and as a stream that holds the frames of one clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, Generic, TypeVar

import numpy as np

from ..recipe import Recipe

Frame = TypeVar("Frame")
Pixels = TypeVar("Pixels")


class Sampling(Generic[Frame, Pixels]):
    """The rows that a recipe makes of a video.

    rate: frames of the video a second.
    """

    def __init__(self, recipe: Recipe, rate: Fraction) -> None:
        self.recipe = recipe
        # Frames of the video from one sampled frame to the next.
        self._ratio = Fraction(1) if recipe.fps is None else rate / Fraction(recipe.fps).limit_denominator(1001)
        self._flow = recipe.modality == "flow"

    def frames(self, sampled: np.ndarray) -> np.ndarray:
        """Frame numbers of sampled frames, both int64."""
        return sampled * self._ratio.numerator // self._ratio.denominator

    def needed(self, row: int) -> int:
        """Frames that a video must have for that row: those of its whole last sampled frame, and the extra ones."""
        return self._whole(self._end(row) - self.recipe.step * self.recipe.tail + self._flow)

    def rows(self, frames: int) -> int:
        """Rows of a video of that many frames."""
        sampled = frames * self._ratio.denominator // self._ratio.numerator
        last = sampled - self._flow - self._end(0) + self.recipe.step * self.recipe.tail
        return max(0, last // self.recipe.stride + 1)

    def clip(self, row: int) -> np.ndarray:
        """Frame numbers of a row, [clip] int64; for flow, those of the first frames of its pairs.

        They include those of a `tail` beyond the end of the video.
        """
        return self.frames(self._sampled(row))

    def _sampled(self, row: int) -> np.ndarray:
        """The sampled frames, or flows, of a row, [clip] int64."""
        recipe = self.recipe
        return recipe.first + row * recipe.stride + recipe.step * np.arange(recipe.clip, dtype=np.int64)

    def _end(self, row: int) -> int:
        """Sampled frames, or flows, up to the last one of a row, with the extra ones."""
        recipe = self.recipe
        return recipe.first + row * recipe.stride + recipe.step * (recipe.clip - 1) + 1 + recipe.extra

    def _whole(self, sampled: int) -> int:
        """Frames of the video for that many whole sampled frames."""
        return -(-sampled * self._ratio.numerator // self._ratio.denominator)

    def stream(
        self, frames: Iterable[tuple[int, Frame]], convert: Callable[[Any], Pixels]
    ) -> Iterator[tuple[np.ndarray, list[Pixels]]]:
        """Yield the frame numbers [clip] and the pixels of one row after the other.

        frames: all frames of a video, numbered from 0 without gaps.
        convert: makes pixels of a frame or, for flow, of a pair of sampled frames; called once for each that a row
            uses, in order.
        """
        row, held = 0, dict[int, Pixels]()
        # Rows from `row` up to the first that begins after the current frame, with the frames, or flows, that they use.
        pending: deque[tuple[np.ndarray, set[int]]] = deque()
        begins = number = -1
        for number, item in self._pairs(frames) if self._flow else frames:
            while begins <= number:
                begins = self._add(pending, row)
            if any(number in used for _, used in pending):
                held[number] = convert(item)
            while number + 1 >= (self._end(row) if self._flow else self._whole(self._end(row))):
                numbers, _ = pending.popleft()
                yield self.clip(row), [held[number] for number in numbers.tolist()]
                row += 1
                if not pending:
                    begins = self._add(pending, row)
                first = pending[0][0][0]
                for old in [old for old in held if old < first]:
                    del held[old]
        yield from self._tail(row, number + 1, held)

    def _add(self, pending: deque[tuple[np.ndarray, set[int]]], row: int) -> int:
        """Append the next row to those from `row` on; return the frame, or flow, at which it begins."""
        sampled = self._sampled(row + len(pending))
        numbers = sampled if self._flow else self.frames(sampled)
        pending.append((numbers, set(numbers.tolist())))
        return int(numbers[0])

    def _tail(self, row: int, count: int, held: dict[int, Pixels]) -> Iterator[tuple[np.ndarray, list[Pixels]]]:
        """The rows from `row` on that end beyond the video, which has `count` frames, or flows."""
        if not self.recipe.tail:
            return
        if not self._flow:
            count = count * self._ratio.denominator // self._ratio.numerator
        while count >= self._end(row) - self.recipe.step * self.recipe.tail:
            sampled = self._sampled(row)
            sampled = np.minimum(sampled, sampled[sampled < count][-1])
            frames = self.frames(sampled)
            yield frames, [held[number] for number in (sampled if self._flow else frames).tolist()]
            row += 1

    def _pairs(self, frames: Iterable[tuple[int, Frame]]) -> Iterator[tuple[int, tuple[Frame, Frame]]]:
        """Each sampled frame with the next one, numbered from 0, as soon as both are whole."""
        waiting: deque[Frame] = deque()  # sampled frames from `first` on
        first = 0
        for number, frame in frames:
            while (first + len(waiting)) * self._ratio.numerator // self._ratio.denominator == number:
                waiting.append(frame)
            while len(waiting) > 1 and number + 1 >= self._whole(first + 2):
                yield first, (waiting[0], waiting[1])
                waiting.popleft()
                first += 1
