"""`python -m bcnet_fast.train` that is interrupted: it goes on to the same bits, and loses and mixes nothing."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time

import pytest
from helpers.networks import SWITCHES
from helpers.sweeps import sweep
from helpers.training import SIZES, arguments, log_of

from bcnet_fast import train
from bcnet_fast.errors import InputError
from bcnet_fast.storage.checkpoint import read_training_state, save_training_state
from bcnet_fast.training.trainer import Trainer


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


@sweep("model", SIZES)
def test_an_interrupted_training_goes_on_to_the_same_bits(data, tmp_path, model, monkeypatch, capsys):
    settings = ("train.epochs=2", "train.decay_every=1", "train.ema=0.9")
    train.main(arguments(data, tmp_path / "whole", model=model, settings=settings))
    with interrupted_in(1, monkeypatch):
        train.main(arguments(data, tmp_path / "parts", model=model, settings=settings))
    assert len(log_of(tmp_path / "parts")) == 1
    flags = ("--resume", "--workers", 1)
    assert train.main(arguments(data, tmp_path / "parts", *flags, model=model, settings=settings)) == 0
    assert "resumed: 1 of 2 epochs" in capsys.readouterr().out
    for name in ("log.csv", "last.safetensors", "best.safetensors", "state.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_training_from_before_a_setting_goes_on_with_its_default(data, tmp_path):
    train.main(arguments(data, tmp_path, settings=("train.epochs=1",)))
    path = tmp_path / "state.safetensors"
    tensors, facts = read_training_state(path)
    for switch in SWITCHES:
        del facts["settings"]["config"]["model"][switch]
    save_training_state(path, tensors, facts)
    with pytest.raises(InputError, match=r"expected the same: .*model.frame_level \(True, now False\)"):
        train.main(arguments(data, tmp_path, "--resume", settings=("model.frame_level=false",)))
    train.main(arguments(data, tmp_path, "--resume"))
    assert len(log_of(tmp_path)) == 2


def test_a_killed_training_goes_on_to_the_same_bits(data, tmp_path):
    settings = ("train.epochs=40",)
    command = [sys.executable, "-m", "bcnet_fast.train", *arguments(data, tmp_path, model="gtad", settings=settings)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (tmp_path / "state.safetensors").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(read_training_state(tmp_path / "state.safetensors")[1]["rows"])
    assert 0 < done < 40
    settings = (f"train.epochs={done + 1}",)
    train.main(arguments(data, tmp_path, "--resume", model="gtad", settings=settings))
    train.main(arguments(data, tmp_path / "whole", model="gtad", settings=settings))
    for name in ("log.csv", "last.safetensors", "best.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_is_in_the_folder_is_neither_lost_nor_mixed(data, tmp_path):
    train.main(arguments(data, tmp_path, "--resume", settings=("train.epochs=1",)))  # nothing there: a new one
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a training; continue it with --resume, or choose another --output"):
        train.main(arguments(data, tmp_path))
    with pytest.raises(InputError, match=r"state.safetensors is .* expected the same: .*train.batch_size \(8, now 4\)"):
        train.main(arguments(data, tmp_path, "--resume", settings=("train.batch_size=4",)))
    with pytest.raises(InputError, match="expected the same: windows"):
        train.main(arguments(data, tmp_path, "--resume", "--train-subset", "validation"))
    assert (tmp_path / "state.safetensors").read_bytes() == before
