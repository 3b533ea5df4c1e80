"""The fixed network that reads the demo's clips: one linear map, which follows from how they are drawn."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ...data.synthetic import SyntheticConfig
from ...errors import InputError
from ...recipe import Recipe
from ..flow import FlowEstimator
from ..stadium import BLOCK, HEIGHT, WIDTH, readout
from .base import BackboneOptions, digest

_LARGEST_WORLD = 2**32 - 1


class SyntheticReader:
    """The features of `data.synthetic` in pictures of `video.stadium`: means of squares, and a linear map of them.

    world: seed of the vectors of phases and scenes.
    """

    needs_pixels = True
    flow: FlowEstimator | None = None

    def __init__(self, world: int, recipe: Recipe) -> None:
        if recipe.clip != 1 or (recipe.crop or recipe.resize) != (HEIGHT, WIDTH):
            raise InputError(
                f"--backbone synthetic:{world} reads single pictures of {HEIGHT} x {WIDTH} pixels, expected clip 1 and "
                f"resize [{HEIGHT}, {WIDTH}] in recipe {recipe.name}"
            )
        weights, biases = (torch.from_numpy(array).float() for array in readout(SyntheticConfig(world=world)))
        self._world = world
        self._weights = weights.movedim(1, -1).flatten(1) / (255 * BLOCK**2)  # [C, squares of red, green and blue]
        self._biases = biases
        stored = digest({"weights": self._weights, "biases": self._biases})
        self.recipe = dataclasses.replace(recipe, width=len(biases), backbone=f"synthetic:{world}", weights=stored)

    def with_recipe(self, recipe: Recipe) -> SyntheticReader:
        """The same with other frames. InputError: the recipe makes other pictures."""
        return SyntheticReader(self._world, recipe)

    def __call__(self, clips: Tensor, frames: Tensor) -> Tensor:
        squares = clips[:, 0].unflatten(2, (-1, BLOCK)).sum(3, dtype=torch.int16)
        squares = squares.unflatten(1, (-1, BLOCK)).sum(2, dtype=torch.int16)
        # One after the other, as every network on a CPU: the same bits for any number of clips.
        return torch.stack([self._weights @ each.flatten().float() + self._biases for each in squares])


def synthetic_world(name: str, recipe: Recipe | None, options: BackboneOptions) -> SyntheticReader:
    """The reader of world `name`, a number. InputError: it is none, or the recipe makes other pictures."""
    from ..recipes import find_recipe

    spec = f"synthetic:{name}"
    if not (name.isascii() and name.isdigit() and int(name) <= _LARGEST_WORLD):
        raise InputError(f"--backbone is {spec:.80}, expected synthetic:N, N a world of synthetic videos, such as 0")
    if options.weights is not None:
        raise InputError(f"--backbone {spec} has fixed weights, expected none with --weights")
    return SyntheticReader(int(name), recipe or find_recipe("synthetic"))
