"""Flags of `train`: short names of settings, the list of settings, the preset for own data, log lines and pictures."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.sweeps import sweep
from helpers.training import EASY

import bcnet_fast
from bcnet_fast import train
from bcnet_fast.config import meanings, section_kinds
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.errors import InputError
from bcnet_fast.presets import PRESET_NAMES, PRESETS
from bcnet_fast.progress import clock
from bcnet_fast.storage.checkpoint import read_config
from bcnet_fast.training import options as training_options
from bcnet_fast.training.options import resolve_config
from bcnet_fast.training.run_folder import Run

OWN = ["--preset", "small", "--device", "cpu", "--workers", "0"]
TINY = ["model.base_channels=16", "model.sampled_channels=16", "model.map_channels=16", "model.bins=4"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Flags of own data: features of 7 channels, which no number of groups but one divides."""
    folder = tmp_path_factory.mktemp("own")
    config = dataclasses.replace(EASY, feature_dim=7)
    subsets = (("training", 4), ("validation", 2))
    videos = [v for name, number in subsets for v in make_videos(number, seed=1, subset=name, config=config)]
    features, annotations = write_dataset(folder, videos)
    return ["--features", str(features), "--annotations", str(annotations)]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(training_options, "FEWEST_STEPS", 1)


def run(own, output, *flags, model="bmn"):
    sizes = ["--set", *TINY] if model == "bmn" else []
    return train.main([*OWN, "--model", model, *own, "--output", str(output), *flags, *sizes])


def test_short_flags_override_preset_file_and_fit(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text("[train]\nepochs = 5\nseed = 7\nema = 0.5\n")
    short = ["--epochs", "6", "--batch-size", "3", "--learning-rate", "0.25", "--seed", "0"]
    options = train.parse(["--preset", "synthetic", "--config", str(file), *short, "--set", "train.decay_every=2"])
    found = resolve_config(options, {"train": {"epochs": 40}}).train
    assert (found.epochs, found.batch_size, found.learning_rate, found.seed) == (6, 3, 0.25, 0)
    assert (found.ema, found.decay_every) == (0.5, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "5", "--set", "train.epochs=6"], "--epochs is 5, but --set train.epochs=6: expected only one"),
        (["--learning-rate", "1", "--set", "train.learning_rate=x"], "--learning-rate is 1, but --set .*=x"),
        (["--epochs", "0"], "--epochs is 0, expected at least 1"),
        (["--batch-size", "0"], "--batch-size is 0, expected at least 1"),
        (["--seed", "-1"], "--seed is -1, expected at least 0"),
        (["--workers", "1025"], "--workers is 1025, expected at most 1024"),
        (["--learning-rate", "0"], "--learning-rate is 0, expected a number above 0"),
        (["--learning-rate", "nan"], "--learning-rate is nan, expected a number above 0"),
        (["--set", "epochs=3"], r"--set is 'epochs=3', expected SECTION.NAME=VALUE; did you mean train.epochs=3\?"),
    ],
)
def test_a_flag_that_is_wrong_or_contradicts_a_setting_is_one_line(flags, message):
    with pytest.raises(InputError, match=message):
        train.parse(["--preset", "synthetic", *flags])


def test_a_flag_and_a_setting_that_agree_are_one():
    flags = ["--preset", "synthetic", "--epochs", "6", "--set", "train.epochs=6"]
    assert train.parse(flags).settings == {"train": {"epochs": 6}}


def test_a_training_needs_a_preset_and_says_which():
    with pytest.raises(InputError, match="--preset is required: small for your own features, synthetic for generated"):
        train.parse(["--features", "f", "--annotations", "a"])


@pytest.mark.parametrize("model", PRESETS)
@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_every_setting_is_listed_with_its_default_and_meaning(capsys, monkeypatch, model, preset):
    monkeypatch.setenv("COLUMNS", "200")
    assert train.main(["--model", model, "--preset", preset, "--list-settings"]) == 0
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines() if line}
    config = PRESETS[model][preset]
    for section, kind in section_kinds(model).items():
        for field in dataclasses.fields(kind):
            default, meaning = lines[f"{section}.{field.name}"]
            assert meaning == meanings(kind)[field.name] and meaning
            if field.name != "name":  # the system, which --model selects
                # The default is written as --set takes it.
                flags = ["--model", model, "--preset", preset, "--set", f"{section}.{field.name}={default}"]
                assert resolve_config(train.parse(flags)) == config
    assert ("--preset" in lines) == (preset == "small")


def test_the_list_needs_no_preset_and_wraps_to_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert train.main(["--list-settings"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "model bcnet, preset small" in lines[0] and max(len(line) for line in lines[1:-1]) <= 80


@pytest.mark.parametrize("model", PRESETS)
def test_the_preset_for_own_data_is_the_synthetic_one_with_fit(model):
    small, synthetic = PRESETS[model]["small"], PRESETS[model]["synthetic"]
    assert dataclasses.replace(small, preset="synthetic") == synthetic
    assert train.parse(["--preset", "small"]).fits and train.parse(["--preset", "synthetic", "--fit"]).fits
    assert not train.parse(["--preset", "synthetic"]).fits


@sweep("model", PRESETS)
def test_own_features_of_any_width_are_trained_on_and_run(own, tmp_path, capsys, model):
    assert run(own, tmp_path / "run", "--epochs", "1", model=model) == 0
    config = read_config(tmp_path / "run" / "best.safetensors")
    # 5 s at 25 frames a second and 8 frames a snippet are 15.6 snippets: the limit of the longest instances.
    assert (config.preset, config.model.feature_dim, config.model.max_duration, config.model.window) == (
        "small", 7, 16, 64,
    )  # fmt: skip
    network = bcnet_fast.load(tmp_path / "run" / "best.safetensors", device="cpu")
    features = np.random.default_rng(0).standard_normal((90, 7), np.float32)
    assert len(network.propose(features, fps=25, stride=8).scores)


def test_a_log_has_one_line_for_each_epoch_with_the_time_that_is_left(own, tmp_path, capsys):
    assert not sys.stderr.isatty()
    assert run(own, tmp_path / "run", "--epochs", "3", "--batch-size", "1") == 0
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [bool(re.search(r"AUC [\d.]+( \(best\))?, \d+ s, \d+:\d\d left$", line)) for line in lines[:2]] == [True] * 2
    assert len(lines) == 3 and lines[2].endswith(" s")
    assert "steps of epoch" not in err
    assert "epochs: 3, learning rate 0.002\n" in out
    assert "videos read" not in err  # short work
    decay = tmp_path / "decay.toml"
    decay.write_text("[train]\ndecay_every = 2\n")
    assert run(own, tmp_path / "again", "--epochs", "3", "--config", str(decay)) == 0
    assert "epochs: 3, learning rate 0.002, multiplied by 0.1 every 2 epochs\n" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (32, "0:32"), (725, "12:05"), (3725, "1:02:05")])
def test_time_reads_like_a_clock(seconds, text):
    assert clock(seconds) == text


@pytest.mark.usefixtures("learning_curves")
def test_the_learning_curve_is_drawn_at_the_end_and_after_resuming(own, tmp_path):
    picture = tmp_path / "run" / "learning_curve.png"
    assert run(own, tmp_path / "run", "--epochs", "1") == 0
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert run(own, tmp_path / "run", "--epochs", "2", "--resume") == 0
    assert picture.read_bytes() != first


@pytest.mark.usefixtures("learning_curves")
def test_without_matplotlib_one_line_stands_in_for_the_picture(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert run(own, tmp_path / "run", "--epochs", "1") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "learning_curve.png" in line]
    assert len(notes) == 1 and "matplotlib" in notes[0]
    assert not (tmp_path / "run" / "learning_curve.png").exists()


def without_strides(own):
    """Own data of the same features, whose annotations do not state the stride."""
    path = Path(own[3])
    content = json.loads(path.read_text())
    for entry in content["database"].values():
        del entry["feature_stride"]
    bare = path.with_name("bare.json")
    bare.write_text(json.dumps(content))
    return [*own[:3], str(bare)]


@pytest.mark.parametrize(
    "preset", [["--preset", "small"], ["--preset", "synthetic"], ["--preset", "thumos14", "--fit"]], ids="-".join
)
def test_a_stride_that_nothing_states_is_required(own, tmp_path, preset):
    bare = without_strides(own)
    with pytest.raises(InputError) as error:
        train.main([*OWN, *preset, *bare, "--set", "model.feature_dim=7", "--output", str(tmp_path / "run")])
    text = str(error.value)
    assert text.startswith("--stride is required: ") and "bare.json does not state" in text and "\n" not in text
    assert f"`bcnet inspect {own[1]} --times {bare[3]}` shows" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stated", [["--stride", "8"], ["--set", "data.stride=8"]], ids="-".join)
def test_a_trained_network_knows_the_stride_that_was_stated(own, tmp_path, stated):
    assert run(without_strides(own), tmp_path / "run", "--epochs", "1", *stated, model="gtad") == 0
    base = read_config(tmp_path / "run" / "best.safetensors").trained_on
    assert base is not None and (base.fps, base.row_stride) == (25, 8)


@pytest.mark.parametrize("left", ["state.safetensors", "best.safetensors"])
def test_an_existing_training_is_refused_before_anything_is_read(tmp_path, monkeypatch, left):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).touch()
    flags = [*OWN, "--features", "gone", "--annotations", "gone.json", "--output", str(tmp_path / "run")]
    with pytest.raises(InputError, match="run holds a training; continue it with --resume, or choose another --output"):
        train.main(flags)
    with pytest.raises(InputError, match=r"gone\.json does not exist"):
        train.main([*flags, "--resume"])


def test_the_folder_of_a_training_cannot_be_a_file(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match="run is a file, expected a folder for the training"):
        train.main([*OWN, "--features", "gone", "--annotations", "gone.json", "--output", str(tmp_path / "run")])
    with pytest.raises(InputError, match="run is a file"):
        Run(tmp_path / "run", PRESETS["bcnet"]["small"], {}).begin(resume=True)
