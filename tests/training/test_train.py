"""`python -m bcnet_fast.train` as a user runs it: it learns, and names unusable input."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import ddp
from helpers.ddp import GRADIENTS, gradients
from helpers.networks import SWITCHES
from helpers.sweeps import sweep
from helpers.training import arguments, log_of, make_trainer

import bcnet_fast
from bcnet_fast import infer, train
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import read_results
from bcnet_fast.storage.checkpoint import read_config
from bcnet_fast.training import subsets


@sweep(
    ("model", "constraint"),
    [("bcnet", True), ("gtad", False), ("bmn", True), ("bmn", False), ("bcnet", False), ("gtad", True)],
)
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
    """A row for every epoch; `load` and `infer` take both checkpoints; best has the highest AUC."""
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


def test_another_seed_is_another_training(data, tmp_path):
    for seed in (0, 1):
        settings = ("train.epochs=1", f"train.seed={seed}")
        train.main(arguments(data, tmp_path / str(seed), model="bmn", settings=settings))
    assert log_of(tmp_path / "0")[0]["total"] != log_of(tmp_path / "1")[0]["total"]


def test_features_in_one_file_and_read_by_workers_train_the_same(data, tmp_path, monkeypatch):
    """Features that memory does not hold are read for every window, by each worker through its own open file."""
    settings = ("train.epochs=1",)
    train.main(arguments(data, tmp_path / "folder", model="bmn", settings=settings))
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for path in (data / "features").iterdir():
            file[path.stem] = np.load(path)
    monkeypatch.setattr(subsets, "KEPT_BYTES", 0)
    flags = arguments(data, tmp_path / "file", "--workers", 2, model="bmn", settings=settings)
    flags[flags.index(str(data / "features"))] = str(tmp_path / "features.h5")
    train.main(flags)
    assert log_of(tmp_path / "file") == log_of(tmp_path / "folder")


def by_torchrun(folder: Path) -> str:
    """The output of two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ddp.__file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, folder], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_forking(folder: Path) -> str:
    if torch.cuda.is_available():
        pytest.skip("a fork of a process that has used PyTorch's GPU threads cannot train")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(folder / "printed.txt", "w+") as printed, contextlib.redirect_stdout(printed):
        torch.multiprocessing.start_processes(ddp.forked, (folder, port), nprocs=2, start_method="fork")
    return (folder / "printed.txt").read_text()


@sweep("start", [by_forking, by_torchrun])
def test_two_processes_have_the_gradients_of_the_joint_batch(data, tmp_path, start):
    """On gloo: gradients in float64, and a training of one epoch through the command."""
    flags = arguments(data, tmp_path / "two", settings=("train.epochs=1", "model.dropout=0.0"))
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    printed = start(tmp_path)
    for name in GRADIENTS:
        joint, found = gradients(name), torch.load(tmp_path / f"{name}.pt")
        assert joint.keys() == found.keys()
        for key, expected in joint.items():
            torch.testing.assert_close(found[key], expected, rtol=1e-9, atol=1e-12, msg=f"{name} {key}")
    assert printed.count("epoch 1/1") == 1
    flags[flags.index(str(tmp_path / "two"))] = str(tmp_path / "one")
    train.main(flags)
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert two[0] == pytest.approx(one[0], rel=1e-4, abs=0.5)
    assert two[0]["total"] == pytest.approx(one[0]["total"], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_training(data, tmp_path):
    with pytest.raises(InputError, match=r"the loss is nan in epoch 1 .*; lower --learning-rate"):
        train.main(arguments(data, tmp_path, settings=("train.learning_rate=1e30",)))
    assert not (tmp_path / "last.safetensors").exists()


def test_a_loss_that_features_make_infinite_names_their_video(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data" / "features" / "training_0001.npy"
    np.save(path, np.load(path) + np.float32(3e38) * (np.arange(8) == 3))
    with pytest.raises(InputError, match=r"the largest feature value is 3e\+38, of video 'training_0001'"):
        train.main(arguments(tmp_path / "data", tmp_path / "run"))


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
        "note: training: 1 video without features (training_0000)",
        "note: training: 1 video without instances (training_0002)",
        "training_0001.npy has 720 NaN",
        "note: training: dropped 1 instance without extent",
        "note: training: dropped 1 instance outside of the features",
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
