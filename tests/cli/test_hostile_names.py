"""Names from files that no terminal, subtitle or file system should get as they are: escaped there, exact in JSON."""

from __future__ import annotations

import io
import json
import sys

import h5py
import numpy as np
import pytest
import torch
from helpers.networks import SMALL

from bcnet_fast import evaluate, infer, inspect
from bcnet_fast.cli.parser import run
from bcnet_fast.config import Config, DataConfig
from bcnet_fast.errors import InputError
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.storage.checkpoint import save_checkpoint
from bcnet_fast.text import brief, failure_line, shown

NAMES = ["line\nbreak", "\x1b[31mred", "caf\udce9", "\u202ereversed", "x" * 300]


@pytest.fixture
def flags(tmp_path, rng) -> list[str]:
    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "net.safetensors",
        BCNet(SMALL).state_dict(),
        Config("small", model=SMALL, data=DataConfig(window_stride=12)),
    )
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in NAMES:
            file[name.encode("utf-8", "surrogateescape")] = rng.standard_normal((30, 10)).astype(np.float32)
        file[b"bad\xff\x1b"] = np.zeros((1, 10))
    scores = {name: {"a\n\n2\n00:00:00,000 --> 00:00:09,000\nforged": 0.5, "\x1b[0m\udce9": 0.4} for name in NAMES}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    flags = ["--checkpoint", tmp_path / "net.safetensors", "--features", tmp_path / "a.h5", "--fps", 25]
    flags += ["--output", tmp_path / "out.json", "--labels", tmp_path / "scores.json", "--top-k", 2, "--device", "cpu"]
    return [str(flag) for flag in [*flags, "--srt", tmp_path / "srt", "--plot", tmp_path / "plot"]]


def test_names_are_exact_in_json_and_escaped_everywhere_else(tmp_path, flags, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), "ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit, match="1"):
        run(lambda: infer.main(flags))
    monkeypatch.undo()
    printed = "".join(stream.detach().getvalue().decode("ascii") for stream in streams.values())
    assert all(line.isprintable() for line in printed.split("\n"))
    failed = [line for line in printed.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1 and failed[0].startswith(r"failed: bad\udcff\x1b: ") and "has 1 snippet" in failed[0]

    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert sorted(results) == sorted(NAMES)
    assert {entry["label"] for entry in results[NAMES[0]]} == set(
        json.loads((tmp_path / "scores.json").read_text())[NAMES[0]]
    )
    subtitles = sorted((tmp_path / "srt").iterdir())
    assert len(subtitles) == len(NAMES) == len(list((tmp_path / "plot").iterdir()))
    for path in subtitles:
        assert path.name.isprintable() and len(path.name) < 255
        blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
        assert len(blocks) == 10 and all(len(block.split("\n")) == 3 for block in blocks)


def test_reports_of_odd_names_are_plain_lines(tmp_path, flags, capsys):
    assert infer.main(flags) == 1
    truth = {
        name: {"annotations": [{"segment": [1, 2], "label": "\x1b[0m\udce9"}]} for name in [*NAMES, "m\n", "n\x1b"]
    }
    (tmp_path / "truth.json").write_text(json.dumps({"database": truth}))
    command = ["--proposals", tmp_path / "out.json", "--ground-truth", tmp_path / "truth.json", "--preset", "thumos14"]
    assert evaluate.main([str(part) for part in [*command, "--json", tmp_path / "n.json"]]) == 0
    assert inspect.main([str(tmp_path / "a.h5"), "--feature-dim", "10", "--all"]) == 1
    assert all(line.isprintable() for stream in capsys.readouterr() for line in stream.split("\n"))
    assert "\x1b[0m\udce9" in json.loads((tmp_path / "n.json").read_text())["mean_average_precision"]["AP_per_class"]


def test_an_error_is_one_printable_line():
    assert str(InputError("a\nb\x1b\udce9\u202e\u2028é")) == r"a\nb\x1b\udce9\u202e\u2028é"
    assert str(InputError(str(InputError("a\nb")))) == r"a\nb"
    assert shown("plain text, é and 漢字") == "plain text, é and 漢字"
    assert brief([1] * 1000) == "[" + "1, " * 26 + "1"


def test_an_error_line_has_a_bounded_length(capsys):
    def fail() -> int:
        raise InputError(f"a.json: video {'v' * 3_000_000!r} is wrong, expected a list")

    with pytest.raises(SystemExit, match="2"):
        run(fail)
    line = capsys.readouterr().err
    assert line.startswith("error: a.json: video 'vvv") and line.endswith("vvv' is wrong, expected a list\n")
    assert len(line) < 5000


def test_the_line_of_a_failed_video_is_one_and_not_endless():
    line = failure_line("v" * 10**6, "x\n" * 10**6)
    assert line.startswith("failed: vvv") and line.isprintable() and len(line) < 10_000
