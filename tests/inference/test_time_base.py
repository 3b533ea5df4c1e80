"""A trained checkpoint knows the times of its features: inference uses them, and refuses contradicting values."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.training import EASY, arguments, log_of

import bcnet_fast
from bcnet_fast import evaluate, infer, train
from bcnet_fast.config import Config, TimeBase
from bcnet_fast.data.annotations import VideoAnnotation
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.data.timing import TimeFlags, TimeResolver
from bcnet_fast.errors import InputError
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.checkpoint import read_config, save_checkpoint

SUBSETS = {"training": 8, "validation": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Features whose annotations state no frame rate and no stride, as published ones do not."""
    folder = tmp_path_factory.mktemp("data")
    videos = [v for name, count in SUBSETS.items() for v in make_videos(count, seed=3, subset=name, config=EASY)]
    write_dataset(folder, videos)
    annotations = json.loads((folder / "annotations.json").read_text())
    for entry in annotations["database"].values():
        for key in ("fps", "frame", "frames", "duration_frame", "feature_stride", "feature_offset", "stride", "offset"):
            entry.pop(key, None)
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return folder


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory) -> Path:
    """Trained on 25 frames a second, a row for every 8 frames from frame 4 on, and every second row in use."""
    output = tmp_path_factory.mktemp("run")
    times = ("--fps", 25, "--stride", 8, "--offset", 4, "--every", 2)
    train.main(arguments(data, output, *times, settings=("train.epochs=1",)))
    return output / "best.safetensors"


def infer_with(checkpoint: Path, data: Path, output: Path, *more: object) -> dict[str, list]:
    flags = ["--checkpoint", checkpoint, "--features", data / "features", "--output", output, "--device", "cpu"]
    infer.main([str(flag) for flag in [*flags, "--overwrite", *more]])
    return json.loads(output.read_text())["results"]


def test_the_checkpoint_stores_the_times_of_its_training(checkpoint):
    config = read_config(checkpoint)
    assert config.trained_on == TimeBase(fps=25.0, row_stride=8.0, offset=4.0, every=2)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_inference_takes_the_times_of_the_training(checkpoint, data, tmp_path, capsys):
    expected = infer_with(
        checkpoint, data, tmp_path / "a.json", "--fps", 25, "--stride", 8, "--offset", 4, "--every", 2
    )
    capsys.readouterr()
    assert infer_with(checkpoint, data, tmp_path / "b.json") == expected
    note = "25 frames per second and 8 video frames between rows, as in the training of"
    assert note in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fps", 30), "best.safetensors: --fps is 30, expected 25, the frame rate of the training"),
        (("--stride", 30), "--stride is 30, so that snippets are 60 video frames apart with one in 2 rows used"),
        (("--offset", 0), "--offset is 0, expected 4, the offset of the training"),
        (("--every", 1), "rows of 8 frames, so that snippets are 8 video frames apart; expected 16, the stride of the"),
    ],
)
def test_flags_that_contradict_the_training_are_refused(checkpoint, data, tmp_path, flags, message):
    with pytest.raises(InputError, match=re.escape(message)):
        infer_with(checkpoint, data, tmp_path / "out.json", *flags)
    assert not list(tmp_path.iterdir())


def test_the_same_snippets_from_thinner_files_are_accepted(checkpoint, data, tmp_path):
    """Every second row was used; files that hold only those rows have twice the stride."""
    expected = infer_with(checkpoint, data, tmp_path / "a.json")
    thin = tmp_path / "features"
    thin.mkdir()
    for file in (data / "features").glob("*.npy"):
        np.save(thin / file.name, np.load(file)[::2])
    flags = ["--checkpoint", checkpoint, "--features", thin, "--output", tmp_path / "b.json", "--device", "cpu"]
    infer.main([str(flag) for flag in [*flags, "--stride", 16, "--every", 1]])
    assert json.loads((tmp_path / "b.json").read_text())["results"] == expected


def test_a_video_of_another_stride_fails_alone(checkpoint, data, tmp_path, capsys):
    names = sorted(file.stem for file in (data / "features").glob("*.npy"))
    table = tmp_path / "times.csv"
    rows = [f"{name},{30 if name == names[0] else 25},{30 if name == names[1] else 8}" for name in names]
    table.write_text("video,fps,stride\n" + "\n".join(rows))
    results = infer_with(checkpoint, data, tmp_path / "out.json", "--times", table)
    assert sorted(results) == sorted({*names} - {names[1]})  # another frame rate is a fact about a video
    assert "rows of 30 frames, so that snippets are 60 video frames apart" in capsys.readouterr().err


def test_nothing_is_assumed_for_a_training_on_several_strides():
    base = TimeBase(fps=None, row_stride=None, offset=0.0)
    config = Config("small", trained_on=base)
    with pytest.raises(InputError, match="no known stride, which is required because the training had several"):
        TimeResolver(config, TimeFlags(fps=25)).resolve("a", 100)
    assert TimeResolver(config, TimeFlags(fps=25, stride=3)).resolve("a", 100).stride == 3


def test_times_that_all_videos_of_a_training_share():
    config = PRESETS["bcnet"]["thumos14"]
    table = {"a": VideoAnnotation("a", fps=30.0), "b": VideoAnnotation("b", fps=29.97)}
    table |= {"c": VideoAnnotation("c", fps=25.0, feature_stride=8.0)}
    times = TimeResolver(config, TimeFlags(offset=2), table)
    assert times.base_of(["a", "b"]) == TimeBase(fps=30.0, row_stride=5.0, offset=2.0)  # the preset's stride
    assert times.base_of(["a", "c"]) == TimeBase(fps=None, row_stride=None, offset=2.0)
    rescaled = TimeResolver(PRESETS["bmn"]["activitynet13"], None, table)
    assert rescaled.base_of(["a", "b"]).row_stride is None  # no fact about rescaled features


def test_a_network_for_rescaled_videos_takes_any_stride():
    config = PRESETS["bmn"]["activitynet13"]
    config = Config(config.preset, config.model, config.data, config.proposals, trained_on=TimeBase(30.0, 16.0, 0.0))
    assert TimeResolver(config, TimeFlags(fps=25, stride=8)).resolve("a", 50).duration == 16
    assert TimeResolver(config).resolve("a", 50).duration == pytest.approx(50 * 16 / 30)


def test_checkpoints_of_earlier_versions_are_read(checkpoint, tmp_path):
    values = PRESETS["bcnet"]["synthetic"].to_dict()
    del values["trained_on"]
    assert Config.from_dict(values).trained_on is None
    with pytest.raises(InputError, match=r"trained_on.row_stride"):
        Config.from_dict(values | {"trained_on": {"row_stride": -1.0}})
    model = bcnet_fast.load(checkpoint, device="cpu", backend="reference")
    save_checkpoint(
        tmp_path / "old.safetensors",
        model.network.state_dict(),
        Config.from_dict(values | {"model": model.config.to_dict()["model"]}),
    )
    assert read_config(tmp_path / "old.safetensors").trained_on is None


def test_infer_and_evaluate_on_a_subset_give_the_recall_of_the_training_log(checkpoint, data, tmp_path, capsys):
    infer_with(checkpoint, data, tmp_path / "one.json", "--times", data / "annotations.json", "--subset", "validation")
    infer_with(checkpoint, data, tmp_path / "all.json")
    logged = log_of(checkpoint.parent)[0]
    for name, left_out in (("one", 0), ("all", SUBSETS["training"])):
        flags = ["--proposals", tmp_path / f"{name}.json", "--ground-truth", data / "annotations.json"]
        flags += ["--preset", "activitynet13", "--json", tmp_path / "numbers.json"]
        capsys.readouterr()
        evaluate.main([str(flag) for flag in flags])
        numbers = json.loads((tmp_path / "numbers.json").read_text())
        recall = numbers["average_recall"]
        assert recall["AUC_percent"] == logged["AUC"]
        for an in (10, 50, 100):
            assert 100 * recall["curve"][an - 1] == logged[f"AR@{an}"]
        assert numbers["videos_left_out"] == left_out
        assert ("left out      8 videos with proposals, of other subsets" in capsys.readouterr().out) == bool(left_out)
