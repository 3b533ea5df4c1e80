"""The table of the second stage: the commands that it runs, in order, and the figures that it reads from their
results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import second_stage_table as bench

from bcnet_fast.errors import InputError


@pytest.fixture
def commands(monkeypatch):
    """Commands that are noted instead of run; an evaluation finds more with every one before it."""
    noted: list[list[str]] = []

    def note(log: Path, name: str, *arguments: object) -> None:
        noted.append([name, *map(str, arguments)])
        if name == "evaluate":
            report = Path(noted[-1][noted[-1].index("--json") + 1])
            share = len(noted) / 100
            found = {"tiou_thresholds": [0.5], "mAP": [share], "average_mAP": share / 2}
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(json.dumps({"mean_average_precision": found}))

    monkeypatch.setattr(bench, "command", note)
    monkeypatch.setattr(bench, "VIDEOS", {"training": 1, "validation": 1})
    return noted


def test_every_system_is_trained_and_evaluated(commands, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert bench.main(["--output", str(tmp_path / "runs"), "--seeds", "2", "--json", str(path)]) == 0
    first = commands[: len(commands) // 2]
    assert [line[0] for line in first] == [
        *("train", "infer", "train", "train", "evaluate"),
        *("refine", "evaluate") * 3,
    ]
    assert [line[line.index("--model") + 1] for line in first if "--model" in line] == ["pgcn", "muses"]
    assert {line[line.index("--checkpoint") + 1].split("/")[-1] for line in first if "--checkpoint" in line} == {
        "last.safetensors"
    }
    labels = json.loads((tmp_path / "runs" / "seed-0" / "own_labels.json").read_text())
    assert set(labels) == {"validation_0000"} and set(labels["validation_0000"].values()) == {1.0}
    seeds = json.loads(path.read_text())["seeds"]
    assert list(seeds) == list(bench.SYSTEMS)
    assert seeds["BCNet, own labels"][0] == {"mAP@0.5": pytest.approx(5.0), "mAP": pytest.approx(2.5)}
    assert "| BCNet + P-GCN |" in capsys.readouterr().out


def test_a_given_network_is_not_trained(commands, tmp_path):
    assert bench.main(["--output", str(tmp_path), "--seeds", "1", "--checkpoint", "demo"]) == 0
    assert [line[0] for line in commands][:3] == ["infer", "train", "train"]


def test_a_failed_command_is_named(tmp_path):
    with pytest.raises(InputError, match="expected a finished evaluate, found error: --ground-truth is required"):
        bench.command(tmp_path / "output.txt", "evaluate", "--proposals", "x")
