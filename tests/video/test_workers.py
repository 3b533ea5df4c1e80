"""Processes that read videos: the same bits for any number, and one that is killed costs its video alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.killing import KillerOptions
from helpers.videos import write_video

from bcnet_fast import extract
from bcnet_fast.video import run


@pytest.fixture
def network(tmp_path) -> Path:
    """A file with a network whose sums depend on the order of their terms."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv3d(3, 5, 3), torch.nn.Flatten(), torch.nn.Linear(5 * 2 * 14 * 14, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(layers).save(str(tmp_path / "network.pt"))
    (tmp_path / "mine.toml").write_text("clip = 4\nstride = 3\nresize = [16, 16]\n")
    return tmp_path / "network.pt"


def noise(seed: int, frames: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(frames)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_features_do_not_depend_on_the_number_of_processes(network, tmp_path, capsys) -> None:
    for number in range(3):
        write_video(tmp_path / "clips" / f"{number}.mp4", noise(number, 20 + 5 * number))
    (tmp_path / "clips" / "bad.mp4").write_text("hello")
    write_video(tmp_path / "clips" / "short.mp4", 5)  # found to be too short where it is read
    flags = ["--recipe", str(tmp_path / "mine.toml"), "--backbone", f"torchscript:{network}", "--trust-backbone"]
    for workers in ("0", "2"):
        out = [str(tmp_path / "clips"), *flags, "--workers", workers, "--output", str(tmp_path / workers)]
        assert extract.main(out) == 1
        shown = capsys.readouterr()
        assert "3 videos, 23 rows of 7 channels" in shown.out
        assert "bad.mp4 is no video" in shown.err and "short.mp4 has 5 frames" in shown.err
    names = sorted(path.name for path in (tmp_path / "0").iterdir())
    assert names == [f"{number}.{kind}" for number in range(3) for kind in ("json", "npy")]
    for name in names:
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.slow
def test_a_killed_process_costs_its_video_alone(tmp_path, capsys) -> None:
    white = np.full((48, 64, 3), 255, np.uint8)
    for name, frames in (("a", 12), ("b", [white] * 12), ("c", 16), ("d", 20)):
        write_video(tmp_path / f"{name}.avi", frames, codec="png")
    options = run.ExtractOptions((str(tmp_path),), str(tmp_path / "out.h5"), KillerOptions(), workers=2)
    report = run.extract(options)
    reason = "the process that read video 'b' was killed twice, probably because memory ran out"
    assert report.failures == [("b", reason)]
    assert (report.extracted, report.rows) == (3, 12)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".avi") == ["out.h5"]
    assert "a process that reads features was killed; going on with one" in capsys.readouterr().err
