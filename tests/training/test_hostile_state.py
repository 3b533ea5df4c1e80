"""Damaged training states and settings are one line that names the file."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers.training import arguments

from bcnet_fast import train
from bcnet_fast.errors import InputError
from bcnet_fast.storage.checkpoint import read_training_state, save_training_state


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train.main(arguments(data, folder, settings=("train.epochs=1",)))
    return folder


def without(tensors, facts, prefix):
    name = next(name for name in tensors if name.startswith(prefix))
    del tensors[name]
    return f"missing: {name}"


DAMAGE = {
    "settings": lambda tensors, facts: facts.update(settings=[1]) or "cannot be read",
    "config": lambda tensors, facts: facts["settings"].pop("config") and "is None, expected an object with settings",
    "no rows": lambda tensors, facts: facts.pop("rows") and "cannot be read",
    "rows": lambda tensors, facts: facts.update(rows=[{"epoch": 1}]) or "has a damaged row 1 of the log",
    "few": lambda tensors, facts: facts.update(rows=[{"epoch": 1, "AUC": 50}]) or "has a damaged row 1 of the log",
    "order": lambda tensors, facts: facts["rows"][0].update(epoch=2) or "has a damaged row 1 of the log",
    "numbers": lambda tensors, facts: facts["rows"][0].update(AUC="x") or "has no finite numbers in row 1",
    "network": lambda tensors, facts: without(tensors, facts, "network."),
    "moments": lambda tensors, facts: without(tensors, facts, "adam.0."),
    "name": lambda tensors, facts: tensors.update({"adam.x.step": torch.zeros(1)}) or "unknown: adam.x.step",
    "part": lambda tensors, facts: tensors.update(other=torch.zeros(1)) or "unknown: other",
    "shape": lambda tensors, facts: tensors.update({"adam.0.exp_avg": torch.zeros(3)}) or "misshaped: adam.0.exp_avg",
    "kind": lambda tensors, facts: tensors.update({"adam.0.step": torch.tensor(3)}) or "not float32: adam.0.step",
    "nan": lambda tensors, facts: (
        tensors["adam.1.exp_avg"].fill_(torch.nan) is not None and "not finite: adam.1.exp_avg"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_one_line(data, trained, tmp_path, damage):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "state.safetensors"
    tensors, facts = read_training_state(path)
    message = DAMAGE[damage](tensors, facts)
    save_training_state(path, tensors, facts)
    with pytest.raises(InputError, match=r"state\.safetensors") as error:
        train.main(arguments(data, tmp_path / "run", "--resume", settings=("train.epochs=2",)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1" * 5000, "expected fewer digits or levels"),
        ("[" * 100_000, "expected fewer digits or levels"),
        ("[" * 900 + "]" * 900, "model.window is .*, expected a whole number"),
    ],
    ids=["digits", "levels", "list"],
)
def test_settings_that_cannot_be_written_are_one_line(data, tmp_path, text, message):
    with pytest.raises(InputError, match=rf"--set.*{message}"):
        train.main(arguments(data, tmp_path, settings=(f"model.window={text}",)))


@pytest.mark.parametrize(
    "value",
    ["1" * 5000, "0x" + "f" * 9000, "[" * 5000 + "]" * 5000, "1979-05-27", "{a = 1}"],
    ids=lambda value: value[:8],
)
def test_toml_that_cannot_be_written_is_one_line(data, tmp_path, value):
    path = tmp_path / "a.toml"
    path.write_text(f"[model]\nwindow = {value}\n")
    with pytest.raises(InputError, match=r"a\.toml"):
        train.main(arguments(data, tmp_path, "--config", path))
