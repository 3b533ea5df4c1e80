"""How rows of features follow from the frames of a video: which frames, which pixels or motion, which network.

A recipe is stored beside the features it made, and in the checkpoint of a network trained on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .bounds import LARGEST_FLOAT
from .errors import InputError
from .text import alternatives, brief, count, did_you_mean

INTERPOLATIONS = ("bilinear", "bicubic", "area")
MODALITIES = ("rgb", "flow")
FLOWS = ("tv-l1", "dis", "raft")
FLOW_LEVELS = ("dense-flow", "video-features", "none")
_CHOICES = {"interpolation": INTERPOLATIONS, "modality": MODALITIES, "flow": FLOWS, "flow_levels": FLOW_LEVELS}
# Mean and deviation that leave flow in [-1, 1], where a recipe states none.
_FLOW_SCALE = {"mean": (0.5, 0.5), "std": (0.5, 0.5)}

# Lowest and highest value of the whole numbers.
_RANGES = {
    "clip": (1, 1024),
    "stride": (1, 100_000),
    "step": (1, 1024),
    "first": (0, 100_000),
    "extra": (0, 1024),
    "tail": (0, 1023),
    "width": (1, 1 << 20),
}
_LARGEST_SIDE = 4096  # pixels
LARGEST_CLIP = 2**28  # pixels of the frames in memory at once: 64 of 2048 x 2048
_LARGEST_OVERLAP = 2**22  # frame numbers of the rows that begin before one of them ends
_LONGEST_TEXT = 200  # characters
_MOST_STREAMS = 8
_FROM_NETWORK = ("width", "backbone", "weights", "flow_weights")  # not known before the network is


@dataclass(frozen=True)
class Recipe:
    """Sampling, pixels and network of features.

    Row r is computed from the sampled frames `first + r * stride + step * k`, k = 0 ... clip - 1. Without `fps`, these
    are the frames of the video; with it, sampled frame i is frame floor(i * rate / fps) of a video of that rate.

    With the modality "flow", optical flow takes the place of frames: flow i is the motion from sampled frame i to
    sampled frame i + 1, in pixels of the resized picture. So N frames have N - 1 flows, the first pair makes flow 0,
    and a clip of T flows needs T + 1 frames. A flow v is cut to [-L, L], L = `flow_limit`, and becomes a level of a
    picture, as `flow_levels` says. Mean and deviation then count as for colours.

    name: of the recipe, for people.
    clip: frames of a row.
    stride: sampled frames from one row to the next.
    step: sampled frames from one frame of a clip to the next.
    first: sampled frame at which row 0 starts.
    extra: frames that a video needs beyond the last clip, for which it would otherwise have a row more.
    tail: frames at the end of a clip that may lie beyond the end of the video; the last one is repeated for them.
    fps: frames a second that are sampled. None: those of the video.
    offset: sampled frame of boundary 0, as in `data.timing`. None: half a clip, rounded down.
    resize: () for none, (short,) for the short side, or (height, width), pixels.
    crop: () for none, or (height, width) of the centre, pixels.
    interpolation: of the resizing.
    mean, std: of red, green and blue, or of flow in x and y, in [0, 1]; the network gets (pixel / 255 - mean) / std.
    modality: "rgb", or "flow".
    flow: method: "tv-l1" and "dis" of OpenCV, "raft" of torchvision.
    flow_limit: largest flow, pixels.
    flow_levels: "dense-flow": round(255 (v + L) / 2L), as dense_flow writes pictures. "video-features":
        round(128 + 255 v / 2L), as in video_features, from 0 to 256. "none": 255 (v + L) / 2L, not rounded.
    flow_weights: SHA-256 of the weights of RAFT. None: it is not the method, or they are not known yet.
    streams: recipes whose rows are put side by side, in this order; see `joined`.
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
    tail: int = 0
    modality: str = "rgb"
    flow: str = "tv-l1"
    flow_limit: float = 20.0
    flow_levels: str = "dense-flow"
    flow_weights: str | None = None
    streams: tuple[Recipe, ...] = ()

    @property
    def channels(self) -> int:
        """Values of a pixel: red, green and blue, or flow in x and y."""
        return 2 if self.modality == "flow" else 3

    @property
    def boundary_offset(self) -> float:
        """Sampled frame of boundary 0."""
        return self.clip * self.step // 2 if self.offset is None else self.offset

    @property
    def held(self) -> int:
        """Frames that are in memory at once: those of all rows that begin before the first of them ends."""
        span = (self.clip - 1) * self.step + 1
        return min(span, self.clip * -(-span // self.stride))

    def require_possible(self, source: str) -> None:
        """InputError: its clips would fill the memory; names `source`."""
        overlapping = -(-self.clip * self.step // self.stride)
        if self.clip * overlapping > _LARGEST_OVERLAP:
            raise InputError(
                f"{source}: {overlapping} rows of {self.clip} frames overlap (clip x step / stride), expected at most "
                f"{_LARGEST_OVERLAP} frames"
            )
        if size := self.crop or self.resize:
            height, width = size[0], size[-1]
            if self.held * height * width > LARGEST_CLIP:
                raise InputError(
                    f"{source}: clips take {self.held} frames of {width} x {height} pixels at once, expected at most "
                    f"{LARGEST_CLIP} pixels"
                )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Any, source: str) -> Recipe:
        """Build from a dict, as read from a file. InputError: names `source` and what is wrong with a value."""
        if not isinstance(values, Mapping):
            raise InputError(f"{source}: the recipe is {brief(values)}, expected an object with its settings")
        if values.get("streams"):
            return Recipe._joined_from(values, source)
        fields = {field.name: field for field in dataclasses.fields(Recipe)}
        clean: dict[str, Any] = dict(_FLOW_SCALE) if values.get("modality") == "flow" else {}
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
        recipe = Recipe(**clean)
        for name in ("mean", "std"):
            if len(getattr(recipe, name)) != recipe.channels:
                wanted = (
                    "two numbers, for x and y" if recipe.channels == 2 else "three numbers, for red, green and blue"
                )
                raise InputError(f"{source}: {name} is {brief(values[name])}, expected {wanted}")
        if recipe.tail >= recipe.clip:
            raise InputError(f"{source}: tail is {recipe.tail}, expected less than clip = {recipe.clip}")
        recipe.require_possible(source)
        return recipe

    @staticmethod
    def _joined_from(values: Mapping[str, Any], source: str) -> Recipe:
        streams = values["streams"]
        if not isinstance(streams, list | tuple):
            raise InputError(f"{source}: streams is {brief(streams)}, expected recipes")
        if any(isinstance(stream, Mapping) and stream.get("streams") for stream in streams):
            raise InputError(f"{source}: a stream has streams of its own, expected a plain recipe")
        return joined([Recipe.from_dict(stream, source) for stream in streams], source)

    def difference(self, other: Recipe) -> str | None:
        """Settings in which the features of two recipes differ, such as `stride 8 instead of 4`; None if in none.

        Names are ignored, and so are settings that one of them does not state.
        """
        if len(self.streams) != len(other.streams):
            return f"{len(self.streams) or 1} instead of {len(other.streams) or 1} streams"
        if self.streams:
            pairs = enumerate(zip(self.streams, other.streams, strict=True), 1)
            return ", ".join(f"stream {n}: {unlike}" for n, (a, b) in pairs if (unlike := a.difference(b))) or None
        unlike = []
        for field in dataclasses.fields(Recipe):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "offset":
                mine, theirs = self.boundary_offset, other.boundary_offset
            unknown = field.name in _FROM_NETWORK and None in (mine, theirs)
            if field.name == "name" or unknown or mine == theirs:
                continue
            unlike.append(f"{field.name} {_shown(mine)} instead of {_shown(theirs)}")
        return ", ".join(unlike) or None


def joined(recipes: Sequence[Recipe], source: str) -> Recipe:
    """The recipe of rows side by side. Times are those of the first; the shortest stream ends the rows.

    InputError: stride, frame rate or offset differ, or there are too few or too many recipes; names `source`.
    """
    if not 2 <= len(recipes) <= _MOST_STREAMS:
        raise InputError(f"{source}: {count(len(recipes), 'stream')}, expected 2 to {_MOST_STREAMS}")
    first = recipes[0]
    for other in recipes[1:]:
        for name in ("stride", "fps", "boundary_offset"):
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                raise InputError(
                    f"{source}: {other.name} has {name.removeprefix('boundary_')} {_shown(theirs)}, expected "
                    f"{_shown(mine)} as {first.name}, so that rows side by side are of one time"
                )
    widths = [recipe.width for recipe in recipes]
    known = [recipe.backbone for recipe in recipes if recipe.backbone is not None]
    return dataclasses.replace(
        first,
        name="+".join(recipe.name for recipe in recipes)[:_LONGEST_TEXT],
        width=None if None in widths else sum(width for width in widths if width is not None),
        backbone=" + ".join(known)[:_LONGEST_TEXT] if len(known) == len(recipes) else None,
        weights=None,
        flow_weights=None,
        streams=tuple(recipes),
    )


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str) and len(value) == 64:  # a SHA-256
        return value[:12]
    if isinstance(value, tuple):
        return "x".join(f"{number:g}" for number in value) or "none"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _fault(name: str, value: Any, *, required: bool) -> str | None:
    """Description of the values that a setting may have; None if it has one of them."""
    if value is None:
        optional = not required and name in ("fps", "offset", *_FROM_NETWORK)
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
        fits = isinstance(value, list | tuple) and len(value) in (2, 3) and all(map(_is_number, value))
        return None if fits and (name == "mean" or min(value) > 0) else "three numbers, for red, green and blue"
    if name in _CHOICES:
        return None if value in _CHOICES[name] else alternatives(_CHOICES[name])
    if name == "flow_limit":
        return None if _is_number(value) and 0 < value <= _LARGEST_SIDE else f"pixels, up to {_LARGEST_SIDE}"
    if name == "streams":
        return None if value in ([], ()) else "recipes"
    fits = isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST_TEXT
    return None if fits else "a short text"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT
