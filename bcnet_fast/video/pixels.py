"""Pixels of a decoded frame: turned upright, resized and cropped as a recipe says."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from ..errors import InputError
from ..recipe import Recipe


class PixelReader:
    """Makes [height, width, 3] uint8 RGB arrays of PyAV frames. Resizing is part of the conversion from YUV.

    InputError: a frame is smaller than the crop.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._reformatter: Any = importlib.import_module("av.video.reformatter").VideoReformatter()
        self._interpolation = recipe.interpolation.upper()

    def __call__(self, frame: Any) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4  # counterclockwise
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        height, width = resized(height, width, self.recipe.resize)
        stored = (width, height) if turns % 2 else (height, width)
        rgb = self._reformatter.reformat(frame, stored[1], stored[0], "rgb24", interpolation=self._interpolation)
        array = np.rot90(rgb.to_ndarray(), turns)
        if self.recipe.crop:
            crop_height, crop_width = self.recipe.crop
            if height < crop_height or width < crop_width:
                raise InputError(
                    f"a frame is {width} x {height} pixels, expected at least {crop_width} x {crop_height} for the crop"
                )
            top, left = round((height - crop_height) / 2), round((width - crop_width) / 2)
            array = array[top : top + crop_height, left : left + crop_width]
        return np.ascontiguousarray(array)


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
