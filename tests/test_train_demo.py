"""The bundled demo network, and the script that trains it again."""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path

import pytest

from bcnet_fast.checkpoint import read_config, save_checkpoint
from bcnet_fast.data.synthetic import make_videos
from bcnet_fast.loading import load

SCRIPT = Path(__file__).resolve().parent.parent / "bench" / "train_demo.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("train_demo", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_same_seed_trains_the_same_file(script, tmp_path):
    videos = list(make_videos(3, seed=0, subset="training"))
    files = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for path, seed in zip(files, (0, 0, 1), strict=True):
        save_checkpoint(path, script.train(videos, epochs=1, seed=seed).state_dict(), script.CONFIG)
    first, again, other = (path.read_bytes() for path in files)
    assert first == again and first != other


def test_bundled_network_finds_far_more_than_random_weights(script, tmp_path):
    checkpoint = resources.files("bcnet_fast") / "assets" / "demo.safetensors"
    assert Path(str(checkpoint)).stat().st_size < 5e6
    assert read_config(str(checkpoint)) == script.CONFIG
    videos = list(make_videos(4, seed=0, subset="validation"))
    trained, untrained = (
        script.evaluate(load(source, device="cpu"), videos, tmp_path) for source in (str(checkpoint), script.CONFIG)
    )
    assert trained.at(10) > 0.5
    assert untrained.at(10) < 0.2
