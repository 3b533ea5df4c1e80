"""Runs that are killed at random moments and resumed: the result is that of an undisturbed run.

BCNET_FAST_KILLS=100 python -m pytest -n 0 tests/attack/test_kills.py kills each run 100 times; whom it kills at random
moments is the process alone, one of its workers, or all of them.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest
from helpers.processes import PATIENCE_S, group_lives, inference, kill, started, wait_until, write_archive
from helpers.training import EASY, arguments

from bcnet_fast import infer, train
from bcnet_fast.data.synthetic import make_videos, write_dataset

# The quick tests kill a run once each: test_processes.py, and tests/training/test_train_resume.py.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="signals as on Linux")]
KILLS = int(os.environ.get("BCNET_FAST_KILLS", "1"))


def killed_until_done(command: str, flags: list[str], whom: str, begun: Path, draw: random.Random) -> None:
    """Kill a run KILLS times within its first seconds of work, resume it each time, and let the last one end."""
    for number in range(KILLS + 1):
        with started(command, [*flags, "--resume"]) as process:
            if number < KILLS:
                wait_until(lambda: begun.exists() or process.poll() is not None)
                time.sleep(draw.random())
                if process.poll() is None:
                    kill(process.pid, whom)
            if number < KILLS and whom != "worker":
                process.wait(PATIENCE_S)
                wait_until(lambda: not group_lives(process.pid))
            else:
                errors = process.communicate(timeout=PATIENCE_S)[1]
                assert process.returncode == 0, errors


@pytest.mark.parametrize("whom", ["main", "worker", "group"])
def test_inference(tmp_path, whom):
    write_archive(tmp_path)
    expected, output = tmp_path / "expected.json", tmp_path / "out" / "out.json"
    assert infer.main(inference(tmp_path, expected)) == 0
    flags = inference(tmp_path, output, "--workers", 2)
    killed_until_done("infer", flags, whom, output.with_name("out.json.partial"), random.Random(whom))
    assert output.read_bytes() == expected.read_bytes()
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("whom", ["main", "worker", "group"])
def test_training(tmp_path, whom):
    subsets = (("training", 4), ("validation", 2))
    videos = [v for name, count in subsets for v in make_videos(count, seed=1, subset=name, config=EASY)]
    write_dataset(tmp_path, videos)
    settings = ("train.epochs=5",)
    train.main(arguments(tmp_path, tmp_path / "expected", model="gtad", settings=settings))
    flags = arguments(tmp_path, tmp_path / "run", "--workers", 1, model="gtad", settings=settings)
    killed_until_done("train", flags, whom, tmp_path / "run" / "log.csv", random.Random(whom))
    for name in ("log.csv", "best.safetensors", "last.safetensors", "state.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".bcnet")]
