"""`Model.propose`: feature arrays in memory to proposals in seconds, as the command gives them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import bcnet_fast
from bcnet_fast import infer
from bcnet_fast.config import TimeBase
from bcnet_fast.inference.model import demo_checkpoint


@pytest.fixture(scope="module")
def model():
    return bcnet_fast.load("demo", device="cpu")


def features(rows: int = 230) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 32)).astype(np.float32)


def test_the_proposals_are_those_of_the_command(model, tmp_path):
    arrays = {"long": features(), "short": features(41)}
    (tmp_path / "features").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "features" / f"{name}.npy", array)
    output = tmp_path / "out.json"
    flags = ["--checkpoint", demo_checkpoint(), "--features", tmp_path / "features", "--output", output]
    infer.main([str(flag) for flag in [*flags, "--fps", 25, "--stride", 6, "--offset", 3, "--device", "cpu"]])
    found = model.propose(arrays, fps=25, stride=6, offset=3)
    assert list(found) == ["long", "short"]
    expected = json.loads(output.read_text())["results"]
    assert {name: one.to_dict()[name] for name, one in found.items()} == expected


def test_one_array_many_arrays_and_both_orientations(model):
    array = features()
    one = model.propose(array, fps=30, stride=8)
    assert one.video == "video" and one.duration == pytest.approx(230 * 8 / 30) and one.boundary_times.shape == (230,)
    transposed, tensor, slow = model.propose([array.T, torch.from_numpy(array), array], fps=[30, 30, 15], stride=8)
    for other in (transposed, tensor):
        assert np.array_equal(other.segments, one.segments) and np.array_equal(other.scores, one.scores)
    assert slow.duration == pytest.approx(2 * one.duration)
    low = model.propose(torch.from_numpy(array).bfloat16(), fps=30, stride=8)
    assert np.array_equal(low.boundary_times, one.boundary_times)
    assert (np.diff(one.scores) <= 0).all() and repr(one).startswith("VideoProposals('video', 61.33 s, ")


def test_the_best_and_their_picture(model, tmp_path):
    found = model.propose(features(), fps=30, stride=8)
    best = found.top(3)
    assert len(best) == 3 and np.array_equal(best.segments, found.segments[:3])
    assert len(found.top(10**6)) == len(found) > 3
    best.plot(tmp_path / "video.png")
    assert (tmp_path / "video.png").read_bytes().startswith(b"\x89PNG")
    figure = found.plot(best=4)
    assert [path.name for path in tmp_path.iterdir()] == ["video.png"]
    assert "4 best proposals" in [text.get_text() for text in figure.texts]


def test_a_training_s_times_are_the_default(model):
    base = TimeBase(fps=25.0, row_stride=4.0, offset=0.0, every=2)
    trained = bcnet_fast.inference.Model(
        model.run, dataclasses.replace(model.config, trained_on=base), model.device, model.precision, model.backend
    )
    expected = model.propose(features()[::2], fps=25, stride=8)
    found = trained.propose(features())
    assert np.array_equal(found.segments, expected.segments)
    with pytest.raises(ValueError, match="has rows of 30 frames, so that snippets are 60 video frames apart"):
        trained.propose(features(), stride=30)


def test_a_network_for_rescaled_videos_needs_a_duration(model):
    rescaled = bcnet_fast.load("activitynet13", model="bmn", device="cpu")
    array = np.random.default_rng(0).standard_normal((57, 400))
    found = rescaled.propose([array, array], duration=[10.0, 20.0])
    assert np.allclose(2 * found[0].segments, found[1].segments) and found[0].duration == 10
    with pytest.raises(ValueError, match=r"expected fps .* and stride .*, or duration \(seconds\)"):
        rescaled.propose(array)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"expected fps \(video frames per second\) and stride \(video frames between consecutive rows\)"),
        ({"fps": 30}, "expected stride"),
        ({"fps": 0, "stride": 8}, "fps is 0, expected a positive number"),
        ({"fps": 30, "stride": float("nan")}, "stride is nan, expected a positive number"),
        ({"fps": 30, "stride": 8, "offset": float("inf")}, "offset is inf, expected a finite number"),
        ({"fps": [30, 30], "stride": 8}, "fps has 2 values, expected one for each of 1 video"),
        ({"fps": 30, "stride": 8, "every": 0}, "every is 0, expected at least 1"),
    ],
)
def test_times_are_never_guessed(model, values, message):
    with pytest.raises(ValueError, match=message):
        model.propose(features(), **values)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((100, 31)), r"features of 'video' has shape \[100, 31\], expected 32 channels"),
        (np.zeros((1, 32)), "has 1 snippet, expected at least 2"),
        (np.full((50, 32), np.nan), "has 1600 NaN and 0 infinite values"),
        (np.zeros((50, 32), complex), "has dtype complex128, expected real numbers"),
    ],
)
def test_unusable_features_are_an_error(model, array, message):
    with pytest.raises(ValueError, match=message):
        model.propose(array, fps=30, stride=8)


def test_the_reference_is_a_module_and_the_engine_is_not(model):
    network = bcnet_fast.load("demo", device="cpu", backend="reference").network
    assert isinstance(network, torch.nn.Module) and not network.training
    with pytest.raises(AttributeError, match='load the model with backend="reference"'):
        _ = model.network
