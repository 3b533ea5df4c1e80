"""Sidecars state how the rows of a feature file were made: `<id>.json` beside `<id>.npy`, or an attribute in HDF5.

`extract` writes it. `inspect`, `infer` and `train` take frame rate, stride, offset and duration from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..bounds import LARGEST, TIME_RANGES
from ..errors import InputError
from ..recipe import Recipe
from ..storage.address import Place
from ..storage.files import read_json
from ..storage.output import write_json
from ..storage.remote import exists
from ..text import brief

P = TypeVar("P", bound=Place)
KEY = "bcnet_fast_features"  # marks the file; its value is the version of the layout. In HDF5, the attribute
VERSION = 1
_RANGES = {"fps": TIME_RANGES["fps"], "duration": (0, TIME_RANGES["duration"][1]), "rows": (1, LARGEST)}
_EXPECTED = "the sidecar of a feature file, as extract writes it"


@dataclass(frozen=True)
class Sidecar:
    """Facts about the features of one video.

    recipe: sampling, pixels and network.
    fps: frames a second to which stride and offset refer: those of the recipe, or of the video.
    duration: of the video's frames, seconds.
    rows: of the feature file.
    source: facts about the video file, for people: name, bytes, frames, frame rate, codec, width, height.
    notes: what was unusual about it.
    """

    recipe: Recipe
    fps: float
    duration: float
    rows: int
    source: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def stride(self) -> float:
        """Frames, of `fps` a second, from one row to the next."""
        return float(self.recipe.stride)

    @property
    def offset(self) -> float:
        """Frame of boundary 0."""
        return self.recipe.boundary_offset

    def is_of(self, video: Path) -> bool:
        """Whether the features are of this version of a video file, judged by its size."""
        return self.source.get("bytes") == video.stat().st_size

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        facts = {"fps": self.fps, "stride": self.stride, "offset": self.offset, "duration": self.duration}
        facts |= {"clip": self.recipe.clip, "rows": self.rows, "width": self.recipe.width}
        return {KEY: VERSION, **facts, "recipe": self.recipe.to_dict(), "source": self.source, "notes": self.notes}

    @staticmethod
    def from_dict(content: Any, source: str) -> Sidecar | None:
        """Build from the content of a file. None: it is of another kind. InputError: it is damaged, names `source`."""
        if not isinstance(content, dict) or KEY not in content:
            return None
        if content[KEY] != VERSION:
            raise InputError(
                f"{source} has version {brief(content[KEY])}, expected {VERSION}, which this package reads"
            )
        numbers = {}
        for name in _RANGES:
            value = content.get(name)
            low, high = _RANGES[name]
            usable = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
            if not usable or (name == "rows" and not isinstance(value, int)):
                raise InputError(f"{source}: {name} is {brief(value)}, expected a positive number; {_EXPECTED}")
            numbers[name] = value
        about, notes = content.get("source"), content.get("notes")
        return Sidecar(
            Recipe.from_dict(content.get("recipe"), source),
            float(numbers["fps"]),
            float(numbers["duration"]),
            numbers["rows"],
            about if isinstance(about, dict) else {},
            tuple(map(str, notes)) if isinstance(notes, list) else (),
        )

    def write(self, path: Path) -> None:
        """Write the file, atomically. InputError: it cannot be written."""
        write_json(path, self.to_dict(), indent=1)


def sidecar_path(features: P) -> P:
    """The sidecar of a feature file."""
    return features.with_name(f"{features.stem}.json")  # pyright: ignore[reportReturnType]


def read_sidecar(path: Place) -> Sidecar | None:
    """Read a sidecar. None: there is none, or a JSON file of another kind. InputError: it is damaged."""
    if not exists(path):
        return None
    return Sidecar.from_dict(read_json(path, _EXPECTED), str(path))
