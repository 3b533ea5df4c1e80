"""The demo: the first thing a newcomer sees works, and the bundled network has learned something."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

from bcnet_fast import infer
from bcnet_fast.cli import demo
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.checkpoint import read_config


def test_the_demo_finds_actions_that_random_weights_do_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # The clips have tests of their own.
    monkeypatch.setattr(demo, "watch", lambda *arguments: None)
    assert infer.main([]) == 0
    shown = capsys.readouterr().out
    recalls = {}
    for name in ("trained", "random"):
        line = next(line for line in shown.splitlines() if name in line and "%" not in line and line.count(".") >= 4)
        recalls[name] = [float(number) for number in re.findall(r"\d+\.\d", line)]
    for trained, random in zip(recalls["trained"], recalls["random"], strict=True):
        assert trained > random + 10
    results = json.loads((tmp_path / "bcnet_demo" / "proposals.json").read_text())["results"]
    pictures = {path.stem for path in (tmp_path / "bcnet_demo" / "pictures").glob("*.png")}
    assert results.keys() == pictures and all(results.values())


def test_the_bundled_network_is_one_of_the_preset_and_small():
    checkpoint = Path(str(resources.files("bcnet_fast") / "assets" / "demo.safetensors"))
    assert checkpoint.stat().st_size < 5e6
    assert read_config(checkpoint) == PRESETS["bcnet"]["synthetic"]
