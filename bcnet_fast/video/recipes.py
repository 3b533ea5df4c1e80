"""The recipes of the package and of users' files, and what `extract --list` shows of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from ..bounds import LARGEST
from ..errors import InputError
from ..recipe import Recipe, joined
from ..storage.files import read_toml
from ..text import did_you_mean

_FILE = Path(__file__).resolve().parent.parent / "assets" / "recipes.toml"
_REMARKS = ("summary", "source", "pixels")


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe with what a person needs to know about it.

    summary: whose features.
    source: where their sampling is stated.
    pixels: how far the treatment of the pixels is known.
    """

    recipe: Recipe
    summary: str = ""
    source: str = ""
    pixels: str = ""


@functools.cache
def named_recipes() -> dict[str, NamedRecipe]:
    """The recipes of the package, by name."""
    return {name: _build(name, values, str(_FILE)) for name, values in read_toml(_FILE).items()}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, or in that TOML file; of `NAME+NAME`, all of them side by side.

    InputError: there is none, a setting is impossible, or streams do not fit each other.
    """
    if "+" in name and not Path(name).is_file():
        return joined([find_recipe(part) for part in name.split("+")], f"--recipe {name:.80}")
    if name.endswith(".toml"):
        return _build(Path(name).stem, read_toml(name), name).recipe
    known = named_recipes()
    if name not in known:
        hint = did_you_mean(name, known) or "; `extract --list` shows all"
        raise InputError(f"--recipe is {name!r:.80}, expected the name of a recipe or a .toml file{hint}")
    return known[name].recipe


def _build(name: str, values: dict, source: str) -> NamedRecipe:
    if not isinstance(values, dict):
        raise InputError(f"{source}: {name!r:.80} is a value outside a table, expected the settings of a recipe")
    settings = {key: value for key, value in values.items() if key not in _REMARKS}
    # An integer is a number, too, in TOML.
    whole = [key for key in ("fps", "offset") if type(settings.get(key)) is int and abs(settings[key]) <= LARGEST]
    settings |= {key: float(settings[key]) for key in whole}
    recipe = Recipe.from_dict({"name": name, **settings}, source)
    return NamedRecipe(recipe, **{key: str(values.get(key, "")) for key in _REMARKS})


def listing() -> str:
    """A table of all recipes of the package."""
    rows = [("recipe", "of", "clip", "stride", "frames/s", "offset", "width", "network", "features")]
    for name, named in named_recipes().items():
        recipe = named.recipe
        rate = "the video's" if recipe.fps is None else f"{recipe.fps:g}"
        numbers = str(recipe.clip), str(recipe.stride), rate, f"{recipe.boundary_offset:g}", str(recipe.width or "?")
        kind = recipe.flow if recipe.modality == "flow" else recipe.modality
        rows.append((name, kind, *numbers, recipe.backbone or "your file", named.summary))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
