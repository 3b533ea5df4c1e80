"""Pixels of a decoded frame: turned upright, resized and cropped as a recipe says; and the flow between two frames."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from ..errors import InputError
from ..recipe import LARGEST_CLIP, Recipe
from .decoding import MOST_PIXELS
from .flow import FlowEstimator


class PixelReader:
    """Makes [height, width, 3] uint8 RGB arrays of PyAV frames. Resizing is part of the conversion from YUV.

    InputError: a frame is smaller than the crop, or clips of such frames would fill the memory.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._reformatter: Any = importlib.import_module("av.video.reformatter").VideoReformatter()
        self._interpolation = recipe.interpolation.upper()

    def __call__(self, frame: Any) -> np.ndarray:
        return cropped(self.whole(frame), self.recipe.crop)

    def whole(self, frame: Any) -> np.ndarray:
        """The frame before the crop."""
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        height, width = resized(height, width, self.recipe.resize)
        self._require_possible(height, width)
        stored = (width, height) if turns % 2 else (height, width)
        rgb = self._reformatter.reformat(frame, stored[1], stored[0], "rgb24", interpolation=self._interpolation)
        return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns))

    def _require_possible(self, height: int, width: int) -> None:
        size = f"{width} x {height} pixels"
        if height * width > MOST_PIXELS:
            raise InputError(f"a frame is {size} after resizing, expected at most {MOST_PIXELS} pixels")
        kept = self.recipe.crop or (height, width)
        if self.recipe.held * kept[0] * kept[1] > LARGEST_CLIP:
            raise InputError(
                f"clips take {self.recipe.held} frames of {size} at once, expected at most {LARGEST_CLIP} pixels; "
                "a recipe can resize and crop"
            )


class FlowReader:
    """Makes [height, width, 2] float32 arrays of pairs of PyAV frames: their motion in x and y, in the recipe's levels.

    The motion is that between the resized frames; the crop follows.

    estimate: makes flow [H, W, 2] float32, pixels, of two RGB pictures [H, W, 3] uint8.

    InputError: a frame is smaller than the crop, or the size of frames changes.
    """

    def __init__(self, recipe: Recipe, estimate: FlowEstimator) -> None:
        self.recipe, self.estimate = recipe, estimate
        self._read = PixelReader(recipe)
        self._latest: tuple[Any, np.ndarray] | None = None  # a frame is the second of one pair and the first of another

    def __call__(self, pair: tuple[Any, Any]) -> np.ndarray:
        first, second = map(self._picture, pair)
        if first.shape != second.shape:
            sizes = " and ".join(f"{picture.shape[1]} x {picture.shape[0]}" for picture in (first, second))
            raise InputError(f"frames of {sizes} pixels follow each other, expected one size for flow, or a resize")
        flow = cropped(self.estimate(first, second), self.recipe.crop)
        return levels(flow, self.recipe.flow_limit, self.recipe.flow_levels)

    def _picture(self, frame: Any) -> np.ndarray:
        if self._latest is None or self._latest[0] is not frame:
            self._latest = frame, self._read.whole(frame)
        return self._latest[1]


def levels(flow: np.ndarray, limit: float, kind: str) -> np.ndarray:
    """Flow [..., 2], pixels, cut to [-limit, limit] and in the levels of a picture; see `Recipe.flow_levels`."""
    cut = np.clip(flow, -limit, limit).astype(np.float64)
    if kind == "video-features":
        found = np.rint(128 + 255 / (2 * limit) * cut)
    else:
        found = 255 * (cut + limit) / (2 * limit)
        found = np.rint(found) if kind == "dense-flow" else found
    return found.astype(np.float32)


def cropped(array: np.ndarray, crop: tuple[int, ...]) -> np.ndarray:
    """The centre of [H, W, C], of the size (height, width). InputError: the array is smaller."""
    if not crop:
        return array
    height, width = array.shape[:2]
    if height < crop[0] or width < crop[1]:
        raise InputError(f"a frame is {width} x {height} pixels, expected at least {crop[1]} x {crop[0]} for the crop")
    top, left = round((height - crop[0]) / 2), round((width - crop[1]) / 2)
    return np.ascontiguousarray(array[top : top + crop[0], left : left + crop[1]])


def resized(height: int, width: int, resize: tuple[int, ...]) -> tuple[int, int]:
    """Height and width after resizing; a single number is the short side, the other follows, cut to a whole pixel."""
    if not resize:
        return height, width
    if len(resize) == 2:
        return resize
    (short,) = resize
    if width <= height:
        return short * height // width, short
    return short, short * width // height
