"""Networks in files: ONNX, which is data, and TorchScript and torch.export files, which are programs.

A network takes normalized clips [B, 3, T, H, W] float32, or images [B, 3, H, W], and returns rows [B, C]. The
first of several outputs counts. A network for flow takes [B, 2, T, H, W], or [B, 2 T, H, W] with x and y in turn.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...recipe import Recipe
from ...storage.files import readable, require_file
from .base import BackboneOptions, NetworkBackbone, digest_of_file, require_library
from .libraries import open_flow


def onnx_file(name: str, recipe: Recipe | None, options: BackboneOptions) -> NetworkBackbone:
    """An ONNX file, run by onnxruntime on the CPU, or on the GPU where its GPU build is installed."""
    path = require_file(name, "a network (.onnx)")
    runtime = require_library("onnxruntime", f"onnx:{name}")
    with readable(path, "a network (.onnx)"):
        settings = runtime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = torch.get_num_threads()
        wanted = ["CUDAExecutionProvider"] if options.device.type == "cuda" else []
        providers = [one for one in wanted if one in runtime.get_available_providers()] + ["CPUExecutionProvider"]
        session = runtime.InferenceSession(str(path), settings, providers=providers)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) not in (4, 5):
        shapes = ", ".join(str(one.shape) for one in inputs)
        raise InputError(f"{path} has the inputs {shapes or 'none'}, expected one, [B, 3, T, H, W] or [B, 3, H, W]")
    layout = "clip" if len(inputs[0].shape) == 5 else "image"

    def run(values: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {inputs[0].name: values.cpu().numpy()})[0])

    return _backbone("onnx", path, run, recipe, options, layout)


def torchscript_file(name: str, recipe: Recipe | None, options: BackboneOptions) -> NetworkBackbone:
    """A file of torch.jit.save. InputError: programs are not trusted."""
    path = _require_trusted("torchscript", name, options)
    with readable(path, "a TorchScript file"):
        network = torch.jit.load(str(path), map_location=options.device).eval()
    return _backbone("torchscript", path, lambda values: network(values), recipe, options, "clip")


def exported_file(name: str, recipe: Recipe | None, options: BackboneOptions) -> NetworkBackbone:
    """A file of torch.export.save (.pt2). InputError: programs are not trusted."""
    path = _require_trusted("export", name, options)
    with readable(path, "a torch.export file (.pt2)"):
        network = torch.export.load(str(path)).module().to(options.device)
    return _backbone("export", path, lambda values: network(values), recipe, options, "clip")


def _require_trusted(kind: str, name: str, options: BackboneOptions) -> Path:
    path = require_file(name, "a network")
    if not options.trusted:
        raise InputError(
            f"--backbone {kind}:{name} is a program that may do anything; --trust-backbone runs it, an .onnx file "
            "needs no trust"
        )
    return path


def _backbone(
    kind: str, path: Path, run: Callable[[Any], Any], recipe: Recipe | None, options: BackboneOptions, layout: str
) -> NetworkBackbone:
    if options.weights is not None:
        raise InputError(f"--weights is {options.weights}, expected none: {path} has its own")
    if recipe is None:
        raise InputError(
            f"--backbone {kind}:{path} requires --recipe, because a file does not state its clips and pixels"
        )
    recipe, flow = dataclasses.replace(recipe, backbone=f"{kind}:{path.name}"), None
    if recipe.modality == "flow":
        flow, weights = open_flow(recipe.flow, options)
        recipe = dataclasses.replace(recipe, flow_weights=weights)
    if layout == "clip" and recipe.clip == 1:
        layout = "image" if kind != "onnx" else layout
    make = functools.partial(NetworkBackbone, run, recipe, options, weights=digest_of_file(path), flow=flow)
    if flow is None or kind == "onnx" or layout == "image":
        return make(layout=layout)
    # A program does not state how many axes its input has.
    try:
        return make(layout=layout)
    except InputError as error:
        try:
            return make(layout="image")
        except InputError:
            raise error from None
