"""A checkout beside an installed package: the folder bcnet_fast hides the installed one, but not its extension."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.installs import NOT_EDITABLE
from helpers.paths import ROOT
from helpers.training import SIZES

from bcnet_fast import infer, train
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.inference.model import demo_checkpoint
from bcnet_fast.ops import native

ASK = (
    NOT_EDITABLE
    + "from bcnet_fast.ops import native; print(native.module and native.module.__file__); print(native.reason)"
)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout that was never built, beside the files of an installed wheel."""
    if native.module is None:
        pytest.skip(f"needs the native extension: {native.reason}")
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "bcnet_fast", folder / "bcnet_fast", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    for name in ("csrc", "kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "bcnet_fast" / "ops" / "__init__.py").write_text("")  # else it imports PyTorch
    shutil.copy(ROOT / "setup.py", folder)
    installed = tmp_path / "site"
    (installed / "bcnet_fast").mkdir(parents=True)
    shutil.copy(native.module.__file__, installed / "bcnet_fast")
    (installed / "bcnet_fast-0.0.dist-info").mkdir()
    (installed / "bcnet_fast-0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bcnet_fast\n")
    return folder


def asked(checkout: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout.parent / "site")}
    command = [sys.executable, "-W", "ignore", "-c", NOT_EDITABLE + ASK]
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_a_checkout_uses_the_extension_of_the_installed_package(checkout):
    installed = next((checkout.parent / "site" / "bcnet_fast").iterdir())
    assert asked(checkout) == [str(installed), "None"]


def test_an_installed_extension_of_other_sources_is_refused(checkout):
    with open(checkout / "csrc" / "cpu" / "soft_nms.cpp", "a") as file:
        file.write("\n")
    module, reason = asked(checkout)
    assert module == "None" and "was built from other sources" in reason


def test_commands_say_that_they_are_slow_without_the_extension(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "the native extension was not built")
    features, annotations = write_dataset(tmp_path, make_videos(2, seed=0, subset="training"))
    times = ["--features", str(features), "--device", "cpu"]
    infer.main([*times, "--checkpoint", str(demo_checkpoint()), "--output", str(tmp_path / "a.json"), "--fps", "25"])
    note = "note: the native extension was not built; until then PyTorch and Python do its work, several times slower\n"
    assert note in capsys.readouterr().err
    settings = [*SIZES["bcnet"], "train.epochs=1"]
    flags = [*times, "--preset", "synthetic", "--annotations", str(annotations), "--val-annotations", str(annotations)]
    train.main([*flags, "--val-subset", "training", "--output", str(tmp_path / "run"), "--set", *settings])
    assert note in capsys.readouterr().err
