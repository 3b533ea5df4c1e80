"""Which frames of a video make which row of features: as a table, and as a stream that holds the frames of one clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Generic, TypeVar

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

    def frames(self, sampled: np.ndarray) -> np.ndarray:
        """Frame numbers of sampled frames, both int64."""
        return sampled * self._ratio.numerator // self._ratio.denominator

    def needed(self, row: int) -> int:
        """Frames that a video must have for that row: those of its whole last sampled frame, and the extra ones."""
        recipe = self.recipe
        sampled = recipe.first + row * recipe.stride + recipe.step * (recipe.clip - 1) + 1 + recipe.extra
        return -(-sampled * self._ratio.numerator // self._ratio.denominator)

    def rows(self, frames: int) -> int:
        """Rows of a video of that many frames."""
        recipe = self.recipe
        sampled = frames * self._ratio.denominator // self._ratio.numerator
        last = sampled - recipe.extra - recipe.step * (recipe.clip - 1) - 1 - recipe.first
        return max(0, last // recipe.stride + 1)

    def clip(self, row: int) -> np.ndarray:
        """Frame numbers of a row, [clip] int64."""
        recipe = self.recipe
        sampled = recipe.first + row * recipe.stride + recipe.step * np.arange(recipe.clip, dtype=np.int64)
        return self.frames(sampled)

    def stream(
        self, frames: Iterable[tuple[int, Frame]], convert: Callable[[Frame], Pixels]
    ) -> Iterator[tuple[np.ndarray, list[Pixels]]]:
        """Yield the frame numbers [clip] and the pixels of one row after the other.

        frames: all frames of a video, numbered from 0 without gaps.
        convert: makes pixels of a frame; called once for each frame that a row uses, in order.
        """
        row, needed = 0, self.needed(0)
        held: dict[int, Pixels] = {}
        # Rows from `row` up to the first that begins after the current frame, with the frames that they use.
        pending: deque[tuple[np.ndarray, set[int]]] = deque()
        begins = -1
        for number, frame in frames:
            while begins <= number:
                numbers = self.clip(row + len(pending))
                pending.append((numbers, set(numbers.tolist())))
                begins = int(numbers[0])
            if any(number in used for _, used in pending):
                held[number] = convert(frame)
            while number + 1 >= needed:
                numbers, _ = pending.popleft()
                yield numbers, [held[number] for number in numbers.tolist()]
                row += 1
                needed = self.needed(row)
                if not pending:
                    numbers = self.clip(row)
                    pending.append((numbers, set(numbers.tolist())))
                    begins = int(numbers[0])
                first = pending[0][0][0]
                for old in [old for old in held if old < first]:
                    del held[old]
