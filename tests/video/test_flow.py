"""Optical flow: against a plain loop over pairs with OpenCV, on a texture that moves by known steps."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.videos import write_video

from bcnet_fast import extract, inspect
from bcnet_fast.errors import InputError
from bcnet_fast.recipe import Recipe
from bcnet_fast.storage.files import read_json
from bcnet_fast.video.backbones import BackboneOptions, open_backbone
from bcnet_fast.video.backbones.base import NetworkBackbone
from bcnet_fast.video.backbones.libraries import open_flow
from bcnet_fast.video.decoding import Video
from bcnet_fast.video.extraction import ReadOptions, read_rows
from bcnet_fast.video.pixels import levels

MOTION = (2, -1)  # pixels a frame, in x and y
FLOW = Recipe("mine", clip=2, stride=1, crop=(24, 32), mean=(0.5, 0.5), std=(0.5, 0.5), modality="flow", flow="dis")


@pytest.fixture(scope="module")
def opencv() -> Any:
    return pytest.importorskip("cv2", reason="needs OpenCV: pip install bcnet_fast[flow]")


def textures(frames: int) -> list[np.ndarray]:
    """Frames [48, 64, 3] of a smooth random texture that moves by `MOTION` from one to the next."""
    noise = np.random.default_rng(0).normal(size=(120, 160))
    waves = [np.exp(-0.5 * (2 * np.fft.fftfreq(length) * np.pi * 2) ** 2) for length in noise.shape]
    smooth = np.fft.ifft2(np.fft.fft2(noise) * np.outer(*waves)).real
    texture = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    found = []
    for k in range(frames):
        top, left = 40 - MOTION[1] * k, 60 - MOTION[0] * k
        found.append(np.repeat(texture[top : top + 48, left : left + 64, None], 3, 2))
    return found


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("flow") / "moving.avi", textures(5), codec="png")


class Spy(torch.nn.Module):
    """Mean of each channel; keeps its input."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        self.seen.append(clips)
        return clips.flatten(2).mean(2) if clips.ndim == 5 else clips.mean((2, 3))


def backbone(recipe: Recipe, network: torch.nn.Module, layout: str = "clip") -> NetworkBackbone:
    flow, _ = open_flow(recipe.flow, BackboneOptions())
    return NetworkBackbone(network, recipe, BackboneOptions(), flow=flow, layout=layout)


def rows_of(video: Path, network: NetworkBackbone, clips: int = 8) -> np.ndarray:
    with Video(video) as opened:
        return np.concatenate(list(read_rows(opened, network, ReadOptions(clips))))


@pytest.mark.parametrize("method", ["dis", "tv-l1"])
def test_the_flow_of_a_moving_texture_is_its_motion_and_that_of_a_plain_loop(opencv, video, method) -> None:
    spy = Spy()
    recipe = dataclasses.replace(FLOW, flow=method, flow_levels="none")
    rows = rows_of(video, backbone(recipe, spy))
    assert rows.shape == (3, 2)  # five frames have four flows
    np.testing.assert_allclose(rows * 20, np.tile(MOTION, (3, 1)), atol=0.05)

    make = {
        "tv-l1": lambda: opencv.optflow.DualTVL1OpticalFlow_create(),
        "dis": lambda: opencv.DISOpticalFlow_create(opencv.DISOPTICAL_FLOW_PRESET_MEDIUM),
    }
    grey = [opencv.cvtColor(frame, opencv.COLOR_RGB2GRAY) for frame in textures(5)]
    flows = [make[method]().calc(*pair, None)[12:36, 16:48] for pair in itertools.pairwise(grey)]
    for row in range(3):
        clip = spy.seen[row + 1][0].permute(1, 2, 3, 0)  # [2, 24, 32, 2]; the first call measured the width
        expected = np.clip(np.stack(flows[row : row + 2]), -20, 20) / 20
        np.testing.assert_allclose(clip.numpy(), expected, atol=1e-6)


def test_flow_does_not_depend_on_the_batch_and_stacks_have_x_and_y_in_turn(opencv, video) -> None:
    network = backbone(FLOW, Spy(), layout="image")
    found = [rows_of(video, network, clips) for clips in (1, 2, 8)]
    assert found[0].shape == (3, 4) and all(np.array_equal(found[0], other) for other in found[1:])
    np.testing.assert_allclose(found[0] * 20, np.tile(MOTION, (3, 2)), atol=0.2)  # of 256 levels


def test_levels_are_those_of_the_published_pictures() -> None:
    flow = np.array([-30, -20, -0.1, 0, 0.0784, 7.3, 20, 21], np.float32)
    # dense_flow: CAST(v, L, H) = v > H ? 255 : v < L ? 0 : cvRound(255 * (v - L) / (H - L))
    cast = [255 if v > 20 else 0 if v < -20 else round(255 * (float(v) + 20) / 40) for v in flow]
    assert levels(flow, 20, "dense-flow").tolist() == cast
    published = (128 + 255 / 40 * torch.from_numpy(flow).clamp(-20, 20)).round()  # video_features: ToUInt8
    assert levels(flow, 20, "video-features").tolist() == published.tolist()
    np.testing.assert_allclose(levels(flow, 20, "none") / 127.5 - 1, np.clip(flow, -20, 20) / 20, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_program_may_take_clips_or_stacks_of_flow(opencv, tmp_path) -> None:
    trusted = BackboneOptions(trusted=True)
    for width in (2, 4):  # of [B, 2, T, H, W] and of [B, 2 T, H, W]
        network = torch.nn.AdaptiveAvgPool3d(1) if width == 2 else torch.nn.Conv2d(4, 4, (24, 32))
        torch.jit.script(network).save(str(tmp_path / "flow.pt"))
        assert open_backbone(f"torchscript:{tmp_path / 'flow.pt'}", FLOW, trusted).recipe.width == width
    with pytest.raises(InputError, match=r"flow.pt .*expected a network for clips of 3 frames of 32 x 24 pixels"):
        open_backbone(f"torchscript:{tmp_path / 'flow.pt'}", dataclasses.replace(FLOW, clip=3), trusted)


def test_two_streams_are_written_side_by_side(video, tmp_path, capsys) -> None:
    long = write_video(tmp_path / "long.mp4", 36)
    flags = ["--recipe", "i3d-thumos14+i3d-thumos14-flow", "--output", str(tmp_path / "out")]
    both = [*flags, "--backbone", "frame-index", "--backbone", "frame-index"]
    assert extract.main([str(long), *both]) == 0
    rows = np.load(tmp_path / "out" / "long.npy")
    # RGB has 6 rows, but 35 flows only 5; ActionFormer's features have flow of the same clips beside RGB.
    assert np.array_equal(rows, np.tile(np.arange(0, 20, 4)[:, None] + np.arange(16), 2))
    stated = read_json(tmp_path / "out" / "long.json")
    assert (stated["width"], stated["rows"], stated["stride"], stated["offset"]) == (32, 5, 4, 8)
    assert stated["duration"] == 36 / 25 and stated["source"]["frames"] == 36
    assert [stream["modality"] for stream in stated["recipe"]["streams"]] == ["rgb", "flow"]
    assert extract.main([str(long), *both]) == 0
    assert "1 video already there" in capsys.readouterr().out
    assert inspect.main([str(tmp_path / "out"), "--preset", "small", "--feature-dim", "32"]) == 0
    assert "missing" not in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--backbone is stated 1 time, expected 2, one for each stream of i3d-thum"):
        extract.main([str(long), *both[:-2]])
    short = write_video(tmp_path / "short.mp4", 20)
    with pytest.raises(InputError, match="20 frames and so 1 row of features, expected at least 21 frames for 2 rows"):
        extract.main([str(short), *both])


def test_missing_libraries_and_wrong_networks_are_one_line(video, tmp_path, monkeypatch) -> None:
    flags = [str(video), "--recipe", "i3d-thumos14-flow", "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--backbone is timm:resnet18, which looks at colours, expected a file"):
        extract.main([*flags, "--backbone", "timm:resnet18"])
    with pytest.raises(InputError, match=r"i3d-thumos14-flow requires --backbone: .* for input \[B, 2, 16, H, W\]"):
        extract.main(flags)
    for flag in ("--flow", "--flow-weights"):
        with pytest.raises(InputError, match=f"{flag} is raft, expected none without a recipe of flow"):
            extract.main([*flags, "--recipe", "i3d-thumos14", flag, "raft"])
    torch.save({}, tmp_path / "flow.onnx")
    monkeypatch.setitem(importlib.import_module("sys").modules, "cv2", None)
    for method in ("tv-l1", "dis"):
        with pytest.raises(InputError, match=f"--flow {method} requires OpenCV: pip install 'bcnet_fast\\[flow\\]'"):
            open_flow(method, BackboneOptions())
    with pytest.raises(InputError, match=r"--flow-weights is raft\.pth, expected none: dis has no weights"):
        open_flow("dis", BackboneOptions(flow_weights="raft.pth"))
    monkeypatch.setitem(importlib.import_module("sys").modules, "torchvision.models.optical_flow", None)
    with pytest.raises(InputError, match="--flow raft requires torchvision"):
        open_flow("raft", BackboneOptions(flow_weights="random"))


def test_a_recipe_of_flow_is_a_file_and_its_method_can_be_replaced(video, tmp_path) -> None:
    (tmp_path / "mine.toml").write_text('clip = 2\nstride = 2\nmodality = "flow"\n')
    flags = ["--recipe", str(tmp_path / "mine.toml"), "--backbone", "frame-index", "--output", str(tmp_path / "out")]
    assert extract.main([str(video), *flags, "--flow", "dis"]) == 0
    stated = json.loads((tmp_path / "out" / "moving.json").read_text())
    assert (stated["recipe"]["flow"], stated["recipe"]["mean"], stated["rows"]) == ("dis", [0.5, 0.5], 2)
    with pytest.raises(InputError, match=r"moving.npy has other features \(flow dis instead of tv-l1\)"):
        extract.main([str(video), *flags])


@pytest.mark.slow
def test_raft_takes_pictures_of_any_size_and_repeats_its_bits() -> None:
    try:
        importlib.import_module("torchvision.models.optical_flow")
    except Exception as error:  # torchvision of another build of PyTorch raises RuntimeError
        pytest.skip(f"needs torchvision: {type(error).__name__}")
    flow, weights = open_flow("raft", BackboneOptions(flow_weights="random"))
    pictures = [np.random.default_rng(k).integers(0, 255, (130, 141, 3), dtype=np.uint8) for k in range(2)]
    found = flow(*pictures)
    assert found.shape == (130, 141, 2) and np.isfinite(found).all() and np.array_equal(found, flow(*pictures))
    assert weights is not None and len(weights) == 64
