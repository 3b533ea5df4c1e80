"""Settings of `python -m bcnet_fast.train`, the data that they are fitted to, and flags that it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.training import SIZES, arguments, log_of

from bcnet_fast import train
from bcnet_fast.config import Config, TrainConfig
from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.errors import InputError
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.checkpoint import read_config
from bcnet_fast.training import options as training_options
from bcnet_fast.training import subsets
from bcnet_fast.training.options import fitted_epochs, resolve_config


def test_settings_come_from_preset_then_fit_then_file_then_flags(tmp_path, data):
    file = tmp_path / "own.toml"
    file.write_text("[model]\nwindow = 64\nmax_duration = 24\n[train]\nepochs = 5\nseed = 7\nema = 0\n")
    flags = ["--preset", "synthetic", "--config", str(file), "--set", "train.epochs=6", "data.stride=2"]
    flags += ["--set", "proposals.max_snippets=null", "proposals.iou_threshold=[0.1,0.2]"]
    config = resolve_config(train.parse(flags), {"model": {"feature_dim": 9, "window": 77}})
    preset = PRESETS["bcnet"]["synthetic"]
    assert (config.model.feature_dim, config.model.window, config.model.max_duration) == (9, 64, 24)
    assert (config.train.epochs, config.train.seed, config.train.ema) == (6, 7, 0.0)
    assert config.train.learning_rate == preset.train.learning_rate and config.data.stride == 2.0
    assert config.proposals.iou_threshold == (0.1, 0.2)


@pytest.mark.parametrize("model", PRESETS)
def test_every_preset_survives_json_and_older_checkpoints_are_read(model):
    for config in PRESETS[model].values():
        values = json.loads(json.dumps(config.to_dict()))
        assert Config.from_dict(values) == config
        del values["train"]
        assert Config.from_dict(values).model == config.model


def test_sizes_follow_from_the_data(data, tmp_path, capsys):
    flags = arguments(data, tmp_path, "--fit", model="bmn")
    flags = [*flags[: flags.index("--set") + 1], *SIZES["bmn"], "train.epochs=1", "train.batch_size=64"]
    assert train.main(flags) == 0
    config = read_config(tmp_path / "best.safetensors")
    # 5 s at 25 frames a second and 8 frames a snippet are 15.6 snippets: the limit of the longest instances.
    assert (config.model.feature_dim, config.model.max_duration, config.model.window) == (8, 16, 64)
    assert config.data.window_stride == 32


def test_a_width_that_the_data_does_not_tell_is_stated_beside_fit(data, tmp_path):
    alike = shutil.copytree(data, tmp_path / "data")
    for file in (alike / "features").iterdir():
        np.save(file, np.load(file)[:40])
    flags = arguments(alike, tmp_path / "out", "--fit", model="bmn")
    flags = [*flags[: flags.index("--set") + 1], *SIZES["bmn"], "train.epochs=1", "train.batch_size=64"]
    with pytest.raises(InputError, match=r"exactly one axis of the same length in all.*--set model.feature_dim=C"):
        train.main(flags)
    assert train.main([*flags, "model.feature_dim=8"]) == 0
    assert read_config(tmp_path / "out" / "best.safetensors").model.feature_dim == 8


@pytest.mark.parametrize(
    ("epochs", "batch", "windows", "fitted"),
    [
        (12, 16, 79, {"epochs": 30, "decay_every": 23}),  # 5 steps in each
        (12, 16, 1, {"epochs": 150, "decay_every": 113}),
        (12, 16, 197, {}),  # 13 steps, of which 12 epochs make 156
        (4, 16, 1600, {}),
    ],
)
def test_a_small_data_set_gets_enough_epochs_for_150_steps(epochs, batch, windows, fitted):
    assert fitted_epochs(TrainConfig(epochs=epochs), batch, windows) == fitted


def test_a_fitted_training_has_its_epochs_and_may_be_prolonged(data, tmp_path, monkeypatch):
    """Fitted settings do not depend on --set, so --resume may ask for more epochs."""
    monkeypatch.setattr(training_options, "FEWEST_STEPS", 14)
    flags = arguments(data, tmp_path, "--fit", model="bmn")
    flags = [*flags[: flags.index("--set") + 1], *SIZES["bmn"], "train.batch_size=64"]
    assert train.main(flags) == 0
    config = read_config(tmp_path / "last.safetensors").train
    assert (config.epochs, config.decay_every, len(log_of(tmp_path))) == (14, 11, 14)
    assert train.main([*flags, "train.epochs=15", "--resume"]) == 0
    assert len(log_of(tmp_path)) == 15


def test_synthetic_videos_take_the_statistics_of_annotations_that_are_given(tmp_path, monkeypatch):
    """Without features: every video has as many instances, as long and as far apart, as those of the subset named."""
    database = {
        name: {"subset": subset, "duration": 24.0, "annotations": [{"segment": [10.0, 14.0], "label": "x"}]}
        for name, subset in (("a", "Test"), ("b", "Test"), ("c", "training"))
    }
    database["c"]["annotations"] *= 2
    (tmp_path / "real.json").write_text(json.dumps({"database": database}))
    monkeypatch.setattr(subsets, "SYNTHETIC_VIDEOS", {"training": 6, "validation": 2})
    flags = ["--preset", "synthetic", "--annotations", tmp_path / "real.json", "--train-subset", "test"]
    flags += ["--output", tmp_path / "out", "--device", "cpu", "--set", "train.epochs=1"]
    assert train.main([str(flag) for flag in flags]) == 0
    videos = read_annotations(tmp_path / "out" / "data" / "annotations.json").values()
    assert len(videos) == 8
    for video in videos:
        (instance,) = video.instances
        assert instance.end - instance.start == pytest.approx(4) and instance.start == pytest.approx(10)
        assert video.duration == pytest.approx(24, abs=8 / 25)
    # Other statistics do not replace the videos of a training that is resumed.
    before = (tmp_path / "out" / "data" / "annotations.json").read_bytes()
    flags = ["--preset", "synthetic", "--output", tmp_path / "out", "--device", "cpu", "--resume"]
    assert train.main([str(flag) for flag in [*flags, "--set", "train.epochs=1"]]) == 0
    assert (tmp_path / "out" / "data" / "annotations.json").read_bytes() == before
    # Nor does a training that is refused.
    with pytest.raises(InputError, match="holds a training"):
        train.main([str(flag) for flag in flags[:-1]])
    assert (tmp_path / "out" / "data" / "annotations.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "thumos14", "--annotations", "real.json"], "--features is required"),
        (["--preset", "synthetic", "--val-subset", "test"], "--val-subset requires --features"),
        (["--preset", "synthetic", "--val-annotations", "a"], "--val-annotations requires --features"),
        (["--preset", "synthetic", "--train-subset", "test"], "--train-subset requires --annotations"),
        (["--preset", "synthetic", "--annotations", "gone.json"], "gone.json does not exist, expected ground truth"),
    ],
)
def test_flags_that_synthetic_videos_do_not_have_are_refused(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        train.main([*flags, "--output", "out", "--device", "cpu"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "model.widht=3"], "--set: there is no setting model.widht; did you mean model.width"),
        (["--set", "model.width=wide"], "--set: model.width is 'wide', expected a whole number"),
        (["--set", "train.ema=1.0"], "--set: train.ema is 1.0, expected a share from 0 to below 1"),
        (["--set", "train.precision=fp8"], "--set: train.precision is 'fp8', expected fp32, tf32 or bf16"),
        (["--set", "train.seed=-1"], "--set: train.seed is -1, expected a whole number from 0 to 2147483647"),
        (["--set", "train.learning_rate=0"], "--set: train.learning_rate is 0, expected a number above 0"),
        (["--set", "trian.epochs=3"], "--set: there is no section 'trian', .*; did you mean train"),
        (["--set", "epochs=3"], "--set is 'epochs=3', expected SECTION.NAME=VALUE"),
        (["--set", "model.name=bmn"], "--set: model.name is 'bmn', expected 'bcnet'"),
        (["--set", "model.max_duration=64"], "model.max_duration is 64, expected at most model.window = 32"),
        (["--set", "data.window_stride=64"], "data.window_stride is 64, expected at most model.window = 32"),
        (["--set", "model.max_duration=2"], "--set: model.max_duration is 2, expected at least 3 snippets"),
        (
            ["--set", "model.feature_dim=9"],
            r"has shape \[\d+, 8\], expected 9 channels; state the width by --set model.feature_dim=C",
        ),
        (["--config", "gone.toml"], "gone.toml does not exist, expected a TOML file"),
        (["--config", "broken.toml"], "broken.toml: invalid TOML: .*line 1"),
        (["--config", "typo.toml"], "typo.toml: there is no setting model.widht"),
        (["--config", "flat.toml"], "flat.toml: model is 3, expected an object with settings"),
        (["--features", "gone"], "gone does not exist, expected a file or folder of features"),
        (["--annotations", "gone.json"], "gone.json does not exist, expected ground truth"),
        (["--annotations", "other.json"], "has 13 videos, such as .*, expected training videos, such as 'elsewhere'"),
        (["--annotations", "idle.json"], "training: the 10 videos with features have no annotated instance"),
        (
            ["--annotations", "brief.json"],
            "snippets shows more than 90% of an instance, expected a longer model.window",
        ),
        (
            ["--annotations", "plain.json"],
            "plain.json has no subsets, expected 'training'; give the validation videos a file of their own",
        ),
        (["--train-subset", "test"], "has the subsets training, validation, expected 'test'"),
        (["--workers", "-1"], "--workers is -1, expected at least 0"),
        (["--stride", "-1"], "--stride is -1.0, expected a positive number"),
        (["--device", "meta"], "--device is 'meta', expected auto, cpu or cuda"),
        (["--nonsense"], "unknown flag --nonsense; see --help"),
        (["--output", "typo.toml"], "--output typo.toml is a file, expected a folder"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(data, tmp_path, flags, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("[model\n")
    Path("typo.toml").write_text("[model]\nwidht = 3\n")
    Path("flat.toml").write_text("model = 3\n")
    content = json.loads((data / "annotations.json").read_text())
    database = content["database"]
    elsewhere = {"subset": "training", "annotations": [{"segment": [1, 2], "label": "x"}]}
    Path("other.json").write_text(
        json.dumps({"database": {"elsewhere": elsewhere, "too": elsewhere | {"subset": "validation"}}})
    )
    for name, change in (
        ("idle", {"annotations": [{"segment": [3, 3], "label": "x"}]}),
        ("brief", {"annotations": [{"segment": [1, 24], "label": "x"}]}),
        ("plain", {"subset": None}),
    ):
        Path(f"{name}.json").write_text(json.dumps({"database": {k: v | change for k, v in database.items()}}))
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message) as error:
        train.main([*arguments(data, tmp_path / "out"), *flags])
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == before
