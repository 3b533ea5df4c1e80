"""Networks that make features from clips. `open_backbone` finds one by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ...errors import InputError
from ...recipe import Recipe
from ...text import did_you_mean
from . import files, libraries, synthetic
from .base import Backbone, BackboneOptions, FrameIndex, NetworkBackbone

_Adapter = NetworkBackbone | synthetic.SyntheticReader
_OPENERS: dict[str, Callable[[str, Recipe | None, BackboneOptions], _Adapter]] = {
    "torchvision": libraries.torchvision_video,
    "timm": libraries.timm_image,
    "transformers": libraries.transformers_video,
    "efficientnet-lite": libraries.efficientnet_lite,
    "synthetic": synthetic.synthetic_world,
    "onnx": files.onnx_file,
    "torchscript": files.torchscript_file,
    "export": files.exported_file,
}
SPECS = (
    "torchvision:NAME, timm:NAME, transformers:NAME, efficientnet-lite:0, onnx:FILE, torchscript:FILE, export:FILE or "
    "frame-index"
)
_NULL = "frame-index"
_FILES = ("onnx", "torchscript", "export")


def open_backbone(
    spec: str | None, recipe: Recipe | None, options: BackboneOptions, changes: dict[str, float] | None = None
) -> Backbone:
    """Open a network.

    spec: as --backbone takes it. None: that of the recipe.
    recipe: sampling and pixels. None: those of the network's own library.
    changes: settings of the recipe to replace, such as {"stride": 8}.

    InputError: unknown, not installed, without weights, or it does not fit the recipe.
    """
    if spec is None:
        if recipe is None:
            raise InputError(f"--recipe NAME or --backbone SPEC is required; --list shows recipes, SPEC is {SPECS}")
        spec = recipe.backbone
        kind = (spec or "").partition(":")[0]
        if spec is None or kind in _FILES:
            known = f", of the weights {recipe.weights[:12]}..." if recipe.weights else ""
            shape = f"[B, 3, {recipe.clip}, H, W]" if recipe.clip > 1 else "[B, 3, H, W]"
            raise InputError(
                f"recipe {recipe.name} requires --backbone: a file with the network{known} ({spec or 'onnx:FILE'}), "
                f"for input {shape}"
            )
    kind, _, name = spec.partition(":")
    if kind == _NULL and not name:
        recipe = dataclasses.replace(recipe or Recipe("frame-index", clip=16, stride=16), **(changes or {}))
        return FrameIndex(dataclasses.replace(recipe, offset=None) if changes else recipe)
    if kind not in _OPENERS or not name:
        raise InputError(f"--backbone is {spec!r:.80}, expected {SPECS}{did_you_mean(kind, [*_OPENERS, _NULL])}")
    wanted = recipe
    if wanted is not None:
        # Another network than the one that the recipe names makes rows of another width.
        same = wanted.backbone == spec or kind in _FILES
        wanted = dataclasses.replace(wanted, **({} if same else {"width": None}), weights=None)
        wanted = dataclasses.replace(wanted, **_with_offset(changes))
    backbone = _OPENERS[kind](name, wanted, options)
    if recipe is None and changes:
        return backbone.with_recipe(dataclasses.replace(backbone.recipe, **_with_offset(changes)))
    return backbone


def _with_offset(changes: dict[str, float] | None) -> dict:
    """The changes; those of clip or stride make the offset half a clip again."""
    return {**changes, "offset": None} if changes else {}


__all__ = ["SPECS", "Backbone", "BackboneOptions", "open_backbone"]
