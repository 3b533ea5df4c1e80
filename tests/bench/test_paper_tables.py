"""bench/paper_tables.py as a user runs it on data of their own, with networks of a few channels."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import paper_tables
import pytest
import torch
from helpers.training import EASY, SIZES, SMALL

from bcnet_fast import train
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.errors import InputError


@pytest.fixture
def tables():
    threads = torch.get_num_threads()
    yield paper_tables
    torch.set_num_threads(threads)  # other tests compare the bits of processes


def in_this_process(command: list[str], *, stdout, **_: object) -> SimpleNamespace:
    """`subprocess.run` of a training, without the time that a process takes to import PyTorch."""
    assert command[1:3] == ["-m", "bcnet_fast.train"]
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        try:
            return SimpleNamespace(returncode=train.main(command[3:]))
        except InputError as error:
            print(f"error: {error}")
            return SimpleNamespace(returncode=2)


def test_a_table_of_two_variants_is_made_once_and_printed_again(tables, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "subprocess", SimpleNamespace(run=in_this_process, STDOUT=None))
    subsets = (("training", 2), ("validation", 2))
    videos = [v for name, count in subsets for v in make_videos(count, seed=1, subset=name, config=EASY)]
    features, annotations = write_dataset(tmp_path / "data", videos)
    flags = ["--features", features, "--annotations", annotations, "--output", tmp_path / "runs", "--tables", "6"]
    flags += [
        "--seeds",
        "1",
        "--jobs",
        "1",
        "--json",
        tmp_path / "table.json",
        "--set",
        *SMALL,
        *SIZES["bcnet"],
        "train.epochs=1",
    ]
    printed = []
    for _ in range(2):
        assert tables.main([str(flag) for flag in flags]) == 0
        printed.append(capsys.readouterr().out.partition("Table 6")[2])
    assert printed[0] == printed[1]
    lines = printed[0].strip().splitlines()
    columns = ["AR@10", "AR@50", "AR@100", "AUC", *(f"AP@{tiou}" for tiou in (0.3, 0.4, 0.5, 0.6, 0.7))]
    assert [cell.strip() for cell in lines[0].strip("|").split("|")][1:] == columns
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["BCNet, no frame level", "BCNet"]
    figures = json.loads((tmp_path / "table.json").read_text())["seeds"]
    assert figures.keys() == {"BCNet", "BCNet, no frame level"}
    for name, (of_seed,) in figures.items():
        assert list(of_seed) == columns and all(0 <= value <= 100 for value in of_seed.values()), name


def test_mean_and_deviation(tables):
    table = tables.table({"a": [{"AUC": 1.0}, {"AUC": 2.0}, {"AUC": 6.0}]}, ("a",))
    assert table.splitlines()[-1] == "| a | 3.0 ± 2.6 |"


def test_a_failed_training_is_named_with_its_reason(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "subprocess", SimpleNamespace(run=in_this_process, STDOUT=None))
    flags = ["--features", str(tmp_path / "gone"), "--annotations", str(tmp_path / "gone.json")]
    with pytest.raises(InputError, match=r"output\.txt: expected a finished training, found error: .*gone"):
        tables.main([*flags, "--output", str(tmp_path / "runs"), "--tables", "6", "--seeds", "1", "--jobs", "1"])
    with pytest.raises(InputError, match="--features, --annotations: expected both or none"):
        tables.main(["--output", str(tmp_path), "--features", "x"])
