"""The interface of a network for extraction, and the parts that all adapters share."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...recipe import Recipe, joined
from ...storage.checkpoint import mismatches, unfitting
from ...storage.files import readable, require_file
from ...storage.pickles import load_tensors
from ..flow import FlowEstimator

LARGEST_WEIGHTS = 16 << 30  # bytes of a file with weights
RANDOM = "random"  # value of --weights


class Backbone(Protocol):
    """A network that makes a row of features from a clip.

    recipe: clips that the network expects; `width` and `weights` are those of the network.
    needs_pixels: if false, `clips` is empty and only the frame numbers count.
    flow: makes the optical flow for a recipe with flow.
    """

    recipe: Recipe
    needs_pixels: bool
    flow: FlowEstimator | None

    def __call__(self, clips: Tensor, frames: Tensor) -> Tensor:
        """Rows [B, C] float32 in the memory of the CPU.

        clips [B, T, H, W, 3] uint8, RGB, resized and cropped; or flow, [B, T, H, W, 2] float32 in levels of a picture.
        frames [B, T] int64, numbers of the frames in the video.
        """
        ...


@dataclass(frozen=True)
class BackboneOptions:
    """A user's settings of a network besides its name.

    weights: a file, `random`, or None for those that its library loads.
    flow_weights: the same for RAFT.
    trusted: whether files that are programs may run.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    weights: str | None = None
    flow_weights: str | None = None
    trusted: bool = False


class Joined:
    """Several networks that read a video side by side: their rows follow each other in a row.

    `recipe` joins those of the streams. Reading calls each stream, see `extraction.read_rows`.
    """

    def __init__(self, streams: Sequence[Backbone]) -> None:
        self.streams = tuple(streams)
        self.recipe = joined([stream.recipe for stream in streams], "--recipe")


class FrameIndex:
    """A row holds the frame numbers of its clip, [clip]: shows what a recipe samples, and times everything else."""

    needs_pixels = False
    flow: FlowEstimator | None = None

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = dataclasses.replace(recipe, width=recipe.clip, backbone="frame-index", weights=None)

    def __call__(self, clips: Tensor, frames: Tensor) -> Tensor:
        return frames.float()


class NetworkBackbone:
    """A PyTorch network.

    network: takes normalized clips [B, 3, T, H, W] float32 (layout "image": [B, 3, H, W], "frames": [B, T, 3, H, W]).
        Flow is [B, 2, T, H, W], as images [B, 2 T, H, W] with x and y in turn. The output is [B, C], with any further
        axes of length 1.
    recipe: `width` and `weights` are filled in.
    weights: SHA-256; by default that of the network's parameters.
    flow: makes the flow of a recipe of flow.
    """

    needs_pixels = True

    def __init__(
        self,
        network: Any,
        recipe: Recipe,
        options: BackboneOptions,
        *,
        layout: str = "clip",
        weights: str | None = None,
        flow: FlowEstimator | None = None,
    ) -> None:
        self._network, self._layout, self._options, self._device = network, layout, options, options.device
        self.flow = flow
        if layout == "image" and recipe.clip != 1 and recipe.modality == "rgb":
            raise InputError(f"--clip is {recipe.clip}, expected 1: {recipe.backbone} looks at single images")
        if isinstance(network, nn.Module):
            self._network = network.eval().requires_grad_(False).to(options.device)
            weights = weights or digest(network.state_dict())
        self._mean = torch.tensor(recipe.mean).reshape(-1, 1, 1, 1).to(options.device)
        self._std = torch.tensor(recipe.std).reshape(-1, 1, 1, 1).to(options.device)
        self.recipe = dataclasses.replace(recipe, weights=weights)
        self.recipe = dataclasses.replace(self.recipe, width=self._measure())

    def with_recipe(self, recipe: Recipe) -> NetworkBackbone:
        """The same network with other clips or pixels."""
        recipe = dataclasses.replace(recipe, width=None)
        return NetworkBackbone(
            self._network, recipe, self._options, layout=self._layout, weights=self.recipe.weights, flow=self.flow
        )

    def _measure(self) -> int:
        """Width of a row, of a black clip. InputError: the network does not fit the recipe."""
        recipe = self.recipe
        height, width = recipe.crop or (recipe.resize if len(recipe.resize) == 2 else (224, 224))
        black = torch.zeros(1, recipe.clip, height, width, recipe.channels, dtype=torch.uint8)
        with readable(recipe.backbone, f"a network for clips of {recipe.clip} frames of {width} x {height} pixels"):
            found = self(black, torch.zeros(1, recipe.clip, dtype=torch.int64)).shape[1]
        if recipe.width is not None and recipe.width != found:
            raise InputError(
                f"{recipe.backbone} makes rows of {found} channels, expected {recipe.width} as in the recipe"
            )
        return found

    @torch.inference_mode()
    def __call__(self, clips: Tensor, frames: Tensor) -> Tensor:
        # Products of matrices of other sizes are summed in another order. One clip at a time keeps the CPU as busy, and
        # makes features independent of the batch size.
        parts = clips.split(1) if self._device.type == "cpu" else [clips]
        return torch.cat([self._rows(part) for part in parts])

    def _rows(self, clips: Tensor) -> Tensor:
        values = clips.to(self._device).permute(0, 4, 1, 2, 3).float()  # [B, 3, T, H, W]
        values = (values / 255 - self._mean) / self._std
        if self._layout == "image":
            values = values.transpose(1, 2).flatten(1, 2)
        elif self._layout == "frames":
            values = values.transpose(1, 2)
        return as_rows(self._network(values.contiguous()), len(clips))


def as_rows(output: Any, rows: int) -> Tensor:
    """The output of a network as [B, C] float32 on the CPU. InputError: it has another shape."""
    if isinstance(output, list | tuple) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(f"the network returns a {type(output).__name__}, expected one tensor [B, C]")
    shape = list(output.shape)
    if output.ndim < 2 or shape[0] != rows or any(length != 1 for length in shape[2:]):
        raise InputError(f"the network returns {shape}, expected [{rows}, C], one row for a clip")
    return output.reshape(rows, -1).float().cpu()


def without_classifier(network: nn.Module) -> nn.Module:
    """Replace the last linear or 1x1x1 convolution layer, which scores classes, by nothing."""
    name = [name for name, part in network.named_modules() if isinstance(part, nn.Linear | nn.Conv3d)][-1]
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    return network


def load_weights(network: nn.Module, path: str) -> None:
    """Read a .safetensors or PyTorch file with the tensors of a network. InputError: damaged, or they do not fit."""
    file = require_file(path, "weights (.safetensors, .pt or .pth)")
    with readable(path, "weights (.safetensors, .pt or .pth)"):
        if file.suffix == ".safetensors":
            content: Any = importlib.import_module("safetensors.torch").load_file(file)
        else:
            content = load_tensors(file, LARGEST_WEIGHTS)
            # As training scripts write it.
            for key in ("state_dict", "model", "module"):
                content = (
                    content[key] if isinstance(content, Mapping) and isinstance(content.get(key), dict) else content
                )
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} has no table of tensors, expected the weights of a network")
    mine = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    problems = mismatches(mine, {name: list(tensor.shape) for name, tensor in content.items()})
    problems["missing"] = [name for name in problems.get("missing", []) if not name.endswith("num_batches_tracked")]
    if any(problems.values()):
        raise InputError(_shortened(unfitting(path, problems)))
    network.load_state_dict(content, strict=False)


def _shortened(text: str) -> str:
    return text if len(text) < 400 else f"{text[:400]}..."


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def require_library(name: str, spec: str, install: str | None = None, flag: str = "--backbone") -> Any:
    """Import a library that the package does not require. InputError: it is not installed, or does not work."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{flag} {spec} requires {name}: pip install {install or name.partition('.')[0]}") from error
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{flag} {spec}: the installed {name} cannot be used ({lines[0]:.160})") from error
