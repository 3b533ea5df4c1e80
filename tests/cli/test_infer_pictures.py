"""`infer --plot`: the pictures that a run draws, and that drawing does not count as network time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bcnet_fast import infer
from bcnet_fast.inference.model import demo_checkpoint
from bcnet_fast.results import pictures


@pytest.fixture
def features(tmp_path: Path, rng: np.random.Generator) -> Path:
    folder = tmp_path / "features"
    folder.mkdir()
    for video in "ab":
        np.save(folder / f"{video}.npy", rng.standard_normal((60, 32)).astype(np.float32))
    return folder


def run(features: Path, *more: object) -> None:
    """Run infer on the bundled network."""
    arguments = ["--checkpoint", demo_checkpoint(), "--features", features, "--output", features.parent / "out.json"]
    arguments += ["--fps", 25, "--stride", 5, "--device", "cpu", "--overwrite", *more]
    assert infer.main([str(argument) for argument in arguments]) == 0


def test_the_time_of_pictures_is_stated_and_does_not_count(features: Path, capsys) -> None:
    folder = features.parent / "shown"
    run(features, "--plot", folder, "--plot-format", "svg")
    assert {path.name for path in folder.iterdir()} == {"a.svg", "b.svg"}
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"(\d+) windows,.*; (\S+) s and (\S+) s for pictures, (\S+) windows/s", line)
    assert found is not None
    windows, computing, drawing, speed = map(float, found.groups())
    assert drawing > 0 and windows / speed == pytest.approx(computing, abs=0.06)
    run(features)
    assert "for pictures" not in capsys.readouterr().out


def test_the_suffix_of_one_picture_is_its_format(features: Path) -> None:
    run(features / "a.npy", "--plot", features.parent / "one.pdf")
    assert (features.parent / "one.pdf").read_bytes().startswith(b"%PDF")


def test_pictures_show_the_given_classes_and_truth(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(pictures, "timeline", lambda path, **shown: drawn.update({path.name: shown}))
    instances = [{"segment": [float(i), i + 0.5], "label": "run"} for i in range(12)]
    truth, scores = features.parent / "truth.json", features.parent / "classes.json"
    truth.write_text(json.dumps({"database": {"a": {"duration": 12.0, "fps": 25, "annotations": instances}}}))
    scores.write_text(json.dumps({video: {"run": 0.5, "jump": 0.4} for video in "ab"}))
    run(features, "--plot", features.parent, "--ground-truth", truth, "--labels", scores, "--top-k", 2)
    assert set(drawn["a.png"]["labels"]) == {"run", "jump"} and len(drawn["a.png"]["ground_truth"]) == 12
    assert drawn["b.png"]["ground_truth"] is None and drawn["b.png"]["best"] is None
