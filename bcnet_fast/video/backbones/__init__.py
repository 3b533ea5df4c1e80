"""Networks that make features from clips. `open_backbones` finds them by their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import InputError
from ...recipe import Recipe
from ...text import count, did_you_mean
from . import files, libraries, synthetic
from .base import Backbone, BackboneOptions, FrameIndex, Joined, NetworkBackbone

Changes = dict[str, Any]

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


def open_backbones(
    specs: Sequence[str], recipe: Recipe | None, options: BackboneOptions, weights: Sequence[str], changes: Changes
) -> Backbone | Joined:
    """Open the network, or that of each stream of the recipe.

    specs: as --backbone takes them, one for each stream. Empty: those of the recipe.
    weights: as --weights takes them, one for each stream. Empty: those that the libraries load.
    changes: settings of the recipe, or of all its streams, to replace, such as {"stride": 8}.

    InputError: as `open_backbone`; or they are not one for each stream.
    """
    streams = recipe.streams if recipe else ()
    wanted = len(streams) or 1
    for flag, values in (("--backbone", specs), ("--weights", weights)):
        if len(values) not in (0, wanted):
            streams_of = f", one for each stream of {recipe.name}, in this order" if recipe and streams else ""
            raise InputError(f"{flag} is stated {count(len(values), 'time')}, expected {wanted}{streams_of}")
    found = []
    for number, stream in enumerate(streams or (recipe,)):
        own = dataclasses.replace(options, weights=weights[number] if weights else None)
        kept = {name: value for name, value in changes.items() if name != "flow" or not stream or stream.channels == 2}
        found.append(open_backbone(specs[number] if specs else None, stream, own, kept))
    return Joined(found) if streams else found[0]


def open_backbone(
    spec: str | None, recipe: Recipe | None, options: BackboneOptions, changes: Changes | None = None
) -> Backbone:
    """Open a network.

    spec: as --backbone takes it. None: that of the recipe.
    recipe: sampling and pixels, of a single stream. None: those of the network's own library.
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
            shape = f"[B, {recipe.channels}, {recipe.clip}, H, W]" if recipe.clip > 1 else "[B, 3, H, W]"
            raise InputError(
                f"recipe {recipe.name} requires --backbone: a file with the network{known} ({spec or 'onnx:FILE'}), "
                f"for input {shape}"
            )
    kind, _, name = spec.partition(":")
    if kind == _NULL and not name:
        recipe = recipe or Recipe("frame-index", clip=16, stride=16)
        return FrameIndex(_changed(recipe, changes))
    if kind not in _OPENERS or not name:
        raise InputError(f"--backbone is {spec!r:.80}, expected {SPECS}{did_you_mean(kind, [*_OPENERS, _NULL])}")
    wanted = recipe
    if recipe is not None and recipe.modality == "flow" and kind not in _FILES:
        raise InputError(f"--backbone is {spec}, which looks at colours, expected a file for flow, such as onnx:FILE")
    if wanted is not None:
        # Another network than the one that the recipe names makes rows of another width.
        same = wanted.backbone == spec or kind in _FILES
        wanted = dataclasses.replace(wanted, **({} if same else {"width": None}), weights=None)
        wanted = _changed(wanted, changes)
    backbone = _OPENERS[kind](name, wanted, options)
    if recipe is None and changes:
        return backbone.with_recipe(_changed(backbone.recipe, changes))
    return backbone


def _changed(recipe: Recipe, changes: Changes | None) -> Recipe:
    """The recipe with changes; all but that of the flow make the offset half a clip again."""
    if not changes:
        return recipe
    if set(changes) - {"flow"}:
        recipe = dataclasses.replace(recipe, offset=None, tail=min(recipe.tail, changes.get("clip", recipe.clip) - 1))
    changed = dataclasses.replace(recipe, **changes)
    changed.require_possible(f"recipe {recipe.name}")
    return changed


__all__ = ["SPECS", "Backbone", "BackboneOptions", "Joined", "open_backbone", "open_backbones"]
