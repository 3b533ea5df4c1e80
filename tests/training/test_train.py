"""`python -m bcnet_fast.train` as a user runs it: it learns, resumes to the bit, and refuses what it cannot use."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.ddp import GRADIENTS, gradients
from helpers.networks import SWITCHES
from helpers.training import SIZES, arguments, log_of, make_trainer

import bcnet_fast
from bcnet_fast import infer, train
from bcnet_fast.config import Config, TrainConfig
from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import read_results
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.checkpoint import read_config, read_training_state, save_training_state
from bcnet_fast.training import options as training_options
from bcnet_fast.training import subsets
from bcnet_fast.training.options import fitted_epochs, resolve_config
from bcnet_fast.training.trainer import Trainer


@pytest.mark.parametrize("constraint", [True, False], ids=["constraint", "plain"])
@pytest.mark.parametrize("model", SIZES)
def test_every_system_learns(data, tmp_path, model, constraint):
    """The loss falls, and the proposals are far better than those of the first weights."""
    constraint = f"model.background_constraint={json.dumps(constraint)}"
    settings = (constraint, "train.epochs=8", "train.learning_rate=0.004")
    assert train.main(arguments(data, tmp_path, model=model, settings=settings)) == 0
    rows = log_of(tmp_path)
    assert rows[-1]["total"] < 0.8 * rows[0]["total"]
    still = ("train.epochs=1", "train.learning_rate=1e-12")
    train.main(arguments(data, tmp_path / "still", model=model, settings=(constraint, *still)))
    assert max(row["AUC"] for row in rows) > log_of(tmp_path / "still")[0]["AUC"] + 10


def test_the_log_and_the_checkpoints(data, tmp_path, capsys):
    """A row for every epoch; both checkpoints are what `load` and `infer` take; best is the one of the highest AUC."""
    settings = ("train.epochs=3", "train.decay_every=2", "train.ema=0.5", "train.gradient_clip=0.5")
    train.main(arguments(data, tmp_path, settings=settings))
    out = capsys.readouterr().out
    assert "10 videos, " in out and "epoch 3/3: loss " in out
    rows = log_of(tmp_path)
    parts = ["actionness", "start", "end", "frame_action", "frame_background", "regression", "classification"]
    parts += ["background", "boundary", "interaction", "total"]
    assert list(rows[0]) == ["epoch", "learning_rate", *parts, "AR@10", "AR@50", "AR@100", "AUC"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["learning_rate"] for row in rows] == pytest.approx([2e-3, 2e-3, 2e-4])
    for row in rows:
        assert row["total"] == pytest.approx(row["boundary"] + row["interaction"])
    config = read_config(tmp_path / "last.safetensors")
    assert (
        config.train.ema == 0.5 and config.model.window == 32 and config == read_config(tmp_path / "best.safetensors")
    )
    assert not list(tmp_path.glob(".*"))

    output = tmp_path / "proposals.json"
    flags = ["--checkpoint", tmp_path / "best.safetensors", "--features", data / "features", "--output", output]
    assert infer.main([str(flag) for flag in [*flags, "--times", data / "annotations.json", "--device", "cpu"]]) == 0
    assert len(read_results(output).video_names) == 13
    bcnet_fast.load(tmp_path / "last.safetensors", device="cpu")(torch.zeros(1, 8, 32))


def test_an_ablated_network_is_trained_and_run_like_the_whole_one(data, tmp_path):
    settings = tuple(f"model.{switch}=false" for switch in SWITCHES)
    train.main(arguments(data, tmp_path, settings=settings))
    rows = log_of(tmp_path)
    assert rows[1]["total"] < rows[0]["total"]
    assert "regression" in rows[0] and "frame_action" not in rows[0] and "frame_background" not in rows[0]
    output = tmp_path / "proposals.json"
    flags = ["--checkpoint", tmp_path / "last.safetensors", "--features", data / "features", "--output", output]
    assert infer.main([str(flag) for flag in [*flags, "--times", data / "annotations.json", "--device", "cpu"]]) == 0
    assert len(read_results(output).video_names) == 13


def test_the_mean_of_the_weights(data):
    """With decay d, the mean is d times the mean before plus 1 - d times the weights, after every step."""
    trainer, windows = make_trainer(data, "train.ema=0.75")
    before = {name: mean.clone() for name, mean in trainer.mean.items()}
    assert all(torch.equal(before[name], p) for name, p in trainer.parameters.items())
    trainer.config = trainer.config.override({"train": {"batch_size": 1000}}, "test")  # a single step
    trainer.epoch(windows, 0, 0)
    for name, parameter in trainer.parameters.items():
        torch.testing.assert_close(trainer.weights()[name], 0.75 * before[name] + 0.25 * parameter.detach())


def test_gradients_are_clipped(data):
    trainer, windows = make_trainer(data, "train.gradient_clip=1e-3")
    trainer.epoch(windows, 0, 0)
    norms = torch.stack([p.grad.norm() for p in trainer.network.parameters()])
    assert float(norms.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_learns_the_same(data):
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer, windows = make_trainer(data, f"train.precision={precision}")
        assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
        losses[precision] = trainer.epoch(windows, 0, 0)["total"]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)


@contextlib.contextmanager
def interrupted_in(epoch: int, monkeypatch):
    """A Ctrl-C in the middle of an epoch (from 0)."""
    original, steps = Trainer.step, []

    def step(trainer):
        original(trainer)
        steps.append(1)
        if trainer.optimizer.param_groups[0]["lr"] != trainer.learning_rate(0) and len(steps) % 3 == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("model", SIZES)
def test_an_interrupted_training_goes_on_to_the_same_bits(data, tmp_path, model, monkeypatch, capsys):
    settings = ("train.epochs=3", "train.decay_every=1", "train.ema=0.9")
    train.main(arguments(data, tmp_path / "whole", model=model, settings=settings))
    with interrupted_in(1, monkeypatch):
        train.main(arguments(data, tmp_path / "parts", model=model, settings=settings))
    assert len(log_of(tmp_path / "parts")) == 1
    flags = ("--resume", "--workers", 1)
    assert train.main(arguments(data, tmp_path / "parts", *flags, model=model, settings=settings)) == 0
    assert "resumed: 1 of 3 epochs" in capsys.readouterr().out
    for name in ("log.csv", "last.safetensors", "best.safetensors", "state.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_training_from_before_a_setting_goes_on_with_its_default(data, tmp_path):
    train.main(arguments(data, tmp_path, settings=("train.epochs=1",)))
    path = tmp_path / "state.safetensors"
    tensors, facts = read_training_state(path)
    for switch in SWITCHES:
        del facts["settings"]["config"]["model"][switch]
    save_training_state(path, tensors, facts)
    with pytest.raises(InputError, match=r"found other model.frame_level \(True, now False\)"):
        train.main(arguments(data, tmp_path, "--resume", settings=("model.frame_level=false",)))
    train.main(arguments(data, tmp_path, "--resume"))
    assert len(log_of(tmp_path)) == 2


def test_a_killed_training_goes_on_to_the_same_losses(data, tmp_path):
    settings = ("train.epochs=40",)
    command = [sys.executable, "-m", "bcnet_fast.train", *arguments(data, tmp_path, model="gtad", settings=settings)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "state.safetensors").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(read_training_state(tmp_path / "state.safetensors")[1]["rows"])
    assert 0 < done < 40
    settings = (f"train.epochs={done + 1}",)
    train.main(arguments(data, tmp_path, "--resume", model="gtad", settings=settings))
    train.main(arguments(data, tmp_path / "whole", model="gtad", settings=settings))
    assert (tmp_path / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


def test_what_is_in_the_folder_is_neither_lost_nor_mixed(data, tmp_path):
    train.main(arguments(data, tmp_path, "--resume", settings=("train.epochs=1",)))  # nothing there: a new one
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a training; go on with --resume, or take another --output"):
        train.main(arguments(data, tmp_path))
    with pytest.raises(InputError, match=r"state.safetensors: .* found other train.batch_size \(8, now 4\)"):
        train.main(arguments(data, tmp_path, "--resume", settings=("train.batch_size=4",)))
    with pytest.raises(InputError, match="found other windows"):
        train.main(arguments(data, tmp_path, "--resume", "--train-subset", "validation"))
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_another_seed_is_another_training(data, tmp_path):
    for seed in (0, 1):
        train.main(arguments(data, tmp_path / str(seed), settings=("train.epochs=1", f"train.seed={seed}")))
    assert log_of(tmp_path / "0")[0]["total"] != log_of(tmp_path / "1")[0]["total"]


def test_features_in_one_file_and_read_by_workers_train_the_same(data, tmp_path, monkeypatch):
    """Features that memory does not hold are read for every window, by each worker through its own open file."""
    settings = ("train.epochs=1",)
    train.main(arguments(data, tmp_path / "folder", settings=settings))
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for path in (data / "features").iterdir():
            file[path.stem] = np.load(path)
    monkeypatch.setattr(subsets, "KEPT_BYTES", 0)
    flags = arguments(data, tmp_path / "file", "--workers", 2, settings=settings)
    flags[flags.index(str(data / "features"))] = str(tmp_path / "features.h5")
    train.main(flags)
    assert log_of(tmp_path / "file") == log_of(tmp_path / "folder")


def test_two_processes_have_the_gradients_of_the_joint_batch(data, tmp_path):
    """By torchrun on gloo: gradients in float64, and a training of one epoch through the command."""
    flags = arguments(data, tmp_path / "two", settings=("train.epochs=1", "model.dropout=0.0"))
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    script = Path(__file__).parents[1] / "helpers" / "ddp.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, tmp_path], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in GRADIENTS:
        joint, found = gradients(name), torch.load(tmp_path / f"{name}.pt")
        assert joint.keys() == found.keys()
        for key, expected in joint.items():
            torch.testing.assert_close(found[key], expected, rtol=1e-9, atol=1e-12, msg=f"{name} {key}")
    assert done.stdout.count("epoch 1/1") == 1
    flags[flags.index(str(tmp_path / "two"))] = str(tmp_path / "one")
    train.main(flags)
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert two[0] == pytest.approx(one[0], rel=1e-4, abs=0.5)
    assert two[0]["total"] == pytest.approx(one[0]["total"], rel=1e-4)


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
    with pytest.raises(InputError, match=r"exactly one axis in common.*--set model.feature_dim=C"):
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
    """What is fitted is the same whatever --set says, so that --resume may ask for more epochs."""
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
    # Other statistics do not replace the videos of a training that goes on.
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
        (["--preset", "synthetic", "--annotations", "gone.json"], "gone.json: no such file, expected ground truth"),
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
        (["--set", "model.widht=3"], "--set: model: unknown widht; expected some of name, feature_dim"),
        (["--set", "model.width=wide"], "--set: model.width: expected int, found 'wide'"),
        (["--set", "train.ema=1.0"], "--set: train.ema: expected a share from 0 to below 1, found 1.0"),
        (["--set", "train.precision=fp8"], "--set: train.precision: expected one of fp32, tf32, bf16, found 'fp8'"),
        (["--set", "train.seed=-1"], "--set: train.seed: expected int from 0 to 2147483647, found -1"),
        (["--set", "train.learning_rate=0"], "--set: train.learning_rate: expected a number above 0, found 0"),
        (["--set", "trian.epochs=3"], "--set: expected settings of model, data, proposals, train; found trian"),
        (["--set", "epochs=3"], "--set is 'epochs=3', expected SECTION.NAME=VALUE"),
        (["--set", "model.name=bmn"], "--set: model.name: expected 'bcnet', found 'bmn'"),
        (["--set", "model.max_duration=64"], "model.max_duration is 64, expected at most model.window = 32"),
        (["--set", "data.window_stride=64"], "data.window_stride is 64, expected at most model.window = 32"),
        (["--set", "model.max_duration=2"], "model: expected sizes that go together, found no anchor fits"),
        (
            ["--set", "model.feature_dim=9"],
            r"has shape \[\d+, 8\], expected 9 channels; set model.feature_dim",
        ),
        (["--config", "gone.toml"], "gone.toml: no such file, expected a TOML file"),
        (["--config", "broken.toml"], "broken.toml: invalid TOML: .*line 1"),
        (["--config", "typo.toml"], "typo.toml: model: unknown widht"),
        (["--config", "flat.toml"], "flat.toml: model: expected an object with settings, found 3"),
        (["--features", "gone"], "gone: no such file or folder"),
        (["--annotations", "gone.json"], "gone.json: no such file, expected ground truth"),
        (["--annotations", "other.json"], "has 13 videos, such as .*, expected training videos, such as 'elsewhere'"),
        (["--annotations", "idle.json"], "training: expected annotated instances, found none in 10 videos"),
        (["--annotations", "brief.json"], "model.window: expected windows that show more than 90% of an instance"),
        (
            ["--annotations", "plain.json"],
            "plain.json has no subsets, expected 'training'; choose one with --train-subset",
        ),
        (["--train-subset", "test"], "has the subsets training, validation, expected 'test'"),
        (["--workers", "-1"], "--workers is -1, expected at least 0"),
        (["--stride", "-1"], "--stride is -1.0, expected a positive number"),
        (["--device", "meta"], "--device meta: expected auto, cpu or cuda"),
        (["--nonsense"], "unrecognized arguments: --nonsense; see --help"),
        (["--output", "typo.toml"], r"state\.safetensors is not writable"),
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


def test_a_loss_that_is_not_finite_stops_the_training(data, tmp_path):
    with pytest.raises(InputError, match=r"train\.learning_rate: expected one with which the loss stays finite"):
        train.main(arguments(data, tmp_path, settings=("train.learning_rate=1e30",)))
    assert not (tmp_path / "last.safetensors").exists()


def test_what_cannot_be_used_is_listed_and_the_rest_is_trained_on(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "data")
    features, annotations = tmp_path / "data" / "features", tmp_path / "data" / "annotations.json"
    (features / "training_0000.npy").unlink()
    np.save(features / "training_0001.npy", np.full((90, 8), np.nan, np.float32))
    content = json.loads(annotations.read_text())
    content["database"]["training_0002"]["annotations"] = []
    content["database"]["training_0003"]["annotations"] += [
        {"segment": [4.0, 4.0], "label": "x"},
        {"segment": [500.0, 501.0], "label": "x"},
    ]
    annotations.write_text(json.dumps(content))
    assert train.main(arguments(tmp_path / "data", tmp_path / "out", settings=("train.epochs=1",))) == 0
    found = capsys.readouterr()
    assert "training: 8 videos" in found.out
    for line in (
        "note: training: 1 videos without features (training_0000)",
        "note: training: 1 videos without instances (training_0002)",
        "training_0001.npy has 720 NaN",
        "note: training: 1 instances without extent dropped",
        "note: training: 1 instances lie where there are no features",
    ):
        assert found.err.count(line) == 1, line


def test_every_epoch_has_other_shifts_where_they_are_set(data):
    starts = {}
    for shift in ("true", "false"):
        trainer, windows = make_trainer(data, f"train.shift_windows={shift}", model="bmn")
        starts[shift] = [tuple(windows.starts)]
        for epoch in range(2):
            trainer.epoch(windows, epoch, 0)
            starts[shift].append(tuple(windows.starts))
    assert len(set(starts["true"])) == 3
    assert set(starts["false"]) == {starts["true"][0]}
