"""The scripts in examples/ run as they are and print what they promise."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.data.class_scores import read_class_scores

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def printed(capsys, monkeypatch, tmp_path):
    """Run an example in a folder of its own; returns its output."""
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> str:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_own_features(printed):
    text = printed("own_features")
    assert "long_video, 128.0 s" in text and "short_video, 19.2 s" in text
    assert text.count("confidence") == 6


def test_operators_in_a_model_learn(printed):
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", printed("operators_in_a_model"))]
    assert losses[-1] < 0.05 * losses[0]


def test_train_on_own_data(printed):
    text = printed("train_on_own_data")
    assert "epoch 2/2" in text
    assert re.search(r"^[1-9]\d* proposals for 6 videos$", text, re.MULTILINE)


def test_make_example_data(printed):
    assert "60 videos" in printed("make_example_data")
    annotations = read_annotations("example/annotations.json")
    assert {video.subset for video in annotations.values()} == {"training", "validation"}
    assert {path.stem for path in Path("example/features").glob("*.npy")} == set(annotations)
    scores = read_class_scores("example/class_scores.csv")
    assert set(scores.videos) == set(annotations)
    assert {i.label for video in annotations.values() for i in video.instances} == set(scores.labels)


def test_evaluate_results(printed):
    text = printed("evaluate_results")
    # "throw" is found up to a tIoU of 0.8, "jump" above 0.9.
    assert "AR@10 83.3 %" in text
    assert "mAP at tIoU 0.7: 100.0 %" in text and "mAP at tIoU 0.9: 50.0 %" in text


def test_soft_nms(printed):
    kept = dict(re.findall(r"(\w+): (\d+) of 2000 kept", printed("soft_nms")))
    assert int(kept["hard"]) < int(kept["gaussian"]) <= 2000
    assert set(kept) == {"gaussian", "linear", "hard"}


def test_every_example_is_short_and_tested():
    scripts = {path.stem: path.read_text(encoding="utf-8").count("\n") for path in FOLDER.glob("*.py")}
    assert all(f'printed("{name}")' in Path(__file__).read_text(encoding="utf-8") for name in scripts)
    assert max(scripts.values()) < 60
