"""How rows of features follow from the frames of a video: which frames, which pixels, which network.

A recipe is stored beside the features it made, and in the checkpoint of a network trained on them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .text import brief, did_you_mean

INTERPOLATIONS = ("bilinear", "bicubic", "area")

# Lowest and highest value of the whole numbers.
_RANGES = {
    "clip": (1, 1024),
    "stride": (1, 100_000),
    "step": (1, 1024),
    "first": (0, 100_000),
    "extra": (0, 1024),
    "width": (1, 1 << 20),
}
_LARGEST_SIDE = 4096  # pixels
_LONGEST_TEXT = 200  # characters


@dataclass(frozen=True)
class Recipe:
    """Sampling, pixels and network of features.

    Row r is computed from the sampled frames `first + r * stride + step * k`, k = 0 ... clip - 1. Without `fps`, these
    are the frames of the video; with it, sampled frame i is frame floor(i * rate / fps) of a video of that rate.

    name: of the recipe, for people.
    clip: frames of a row.
    stride: sampled frames from one row to the next.
    step: sampled frames from one frame of a clip to the next.
    first: sampled frame at which row 0 starts.
    extra: frames that a video needs beyond the last clip, for which it would otherwise have a row more.
    fps: frames a second that are sampled. None: those of the video.
    offset: sampled frame of boundary 0, as in `data.timing`. None: half a clip, rounded down.
    resize: () for none, (short,) for the short side, or (height, width), pixels.
    crop: () for none, or (height, width) of the centre, pixels.
    interpolation: of the resizing.
    mean, std: of red, green and blue in [0, 1]; the network gets (pixel / 255 - mean) / std.
    width: channels of a row. None: not known yet.
    backbone: as --backbone takes it, without the folder of a file. None: not known yet.
    weights: SHA-256 of the network's weights. None: it has none, or they are not known yet.
    """

    name: str
    clip: int
    stride: int
    step: int = 1
    first: int = 0
    extra: int = 0
    fps: float | None = None
    offset: float | None = None
    resize: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    width: int | None = None
    backbone: str | None = None
    weights: str | None = None

    @property
    def boundary_offset(self) -> float:
        """Sampled frame of boundary 0."""
        return self.clip * self.step // 2 if self.offset is None else self.offset

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Any, source: str) -> Recipe:
        """Build from a dict, as read from a file. InputError: names `source` and what is wrong with a value."""
        if not isinstance(values, Mapping):
            raise InputError(f"{source}: the recipe is {brief(values)}, expected an object with its settings")
        fields = {field.name: field for field in dataclasses.fields(Recipe)}
        clean: dict[str, Any] = {}
        for name, value in values.items():
            if name not in fields:
                raise InputError(f"{source}: a recipe has no setting {brief(name)}{did_you_mean(str(name), fields)}")
            expected = _fault(name, value, required=fields[name].default is dataclasses.MISSING)
            if expected:
                raise InputError(f"{source}: {name} is {brief(value)}, expected {expected}")
            clean[name] = tuple(value) if isinstance(value, list | tuple) else value
        missing = [name for name in ("name", "clip", "stride") if name not in clean]
        if missing:
            raise InputError(f"{source}: the recipe has no {missing[0]}")
        return Recipe(**clean)

    def difference(self, other: Recipe) -> str | None:
        """Settings in which the features of two recipes differ, such as `stride 8 instead of 4`; None if in none.

        Names may differ, and a setting that one of them does not know.
        """
        unlike = []
        for field in dataclasses.fields(Recipe):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "offset":
                mine, theirs = self.boundary_offset, other.boundary_offset
            unknown = field.name in ("width", "backbone", "weights") and None in (mine, theirs)
            if field.name == "name" or unknown or mine == theirs:
                continue
            unlike.append(f"{field.name} {_shown(mine)} instead of {_shown(theirs)}")
        return ", ".join(unlike) or None


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:  # a SHA-256
        return value[:12]
    if isinstance(value, tuple):
        return "x".join(f"{number:g}" for number in value) or "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _fault(name: str, value: Any, *, required: bool) -> str | None:
    """What is expected of a setting that has an impossible value, or None."""
    if value is None:
        optional = not required and name in ("fps", "offset", "width", "backbone", "weights")
        return None if optional else "a value"
    if name in _RANGES:
        low, high = _RANGES[name]
        return None if type(value) is int and low <= value <= high else f"a whole number from {low} to {high}"
    if name == "fps":
        return None if _is_number(value) and 0.01 <= value <= 1000 else "a number from 0.01 to 1000"
    if name == "offset":
        return None if _is_number(value) and abs(value) <= 1e6 else "a number"
    if name in ("resize", "crop"):
        lengths = (0, 1, 2) if name == "resize" else (0, 2)
        fits = isinstance(value, list | tuple) and len(value) in lengths
        if fits and all(type(side) is int and 1 <= side <= _LARGEST_SIDE for side in value):
            return None
        return f"{'short side, or ' if name == 'resize' else ''}height and width from 1 to {_LARGEST_SIDE}"
    if name in ("mean", "std"):
        fits = isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))
        return None if fits and (name == "mean" or min(value) > 0) else "three numbers, for red, green and blue"
    if name == "interpolation":
        return None if value in INTERPOLATIONS else " or ".join(INTERPOLATIONS)
    fits = isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST_TEXT
    return None if fits else "a short text"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
