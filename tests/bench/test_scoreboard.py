"""The scoreboard: its figures are those of the paper, and its last column comes from files only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import scoreboard
from helpers.paths import ROOT

from bcnet_fast.errors import InputError
from bcnet_fast.storage.files import read_toml

TRUTH = """video,type,type_idx,start,end,startFrame,endFrame
video_test_0000004,BaseballPitch,7,0,10,0,300
video_test_0000004,Ambiguous,0,20,30,600,900
"""
CONTENT = read_toml(scoreboard.DATA)


def row(text: str, system: str) -> list[str]:
    """The cells of a system's first row."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {system} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_published_figures_are_those_of_the_paper(shared: Path):
    paper = re.sub(r"\s+", " ", (shared / "paper/bcnet.txt").read_text(encoding="utf-8"))
    for table in CONTENT["tables"]:
        for one in table["rows"]:
            name = one["system"].replace("BCNet", "Ours")
            line = " ".join(filter(None, (name, one.get("features"), one["published"])))
            assert line in paper, line
            assert len(one["published"].split()) == len(table["measures"])


def test_the_page_of_the_documentation_is_the_one_without_files():
    assert scoreboard.main(["--check"]) == 0
    text = (ROOT / "docs/scoreboard.md").read_text(encoding="utf-8")
    assert text.count("no file") == sum(len(table["rows"]) for table in CONTENT["tables"])


def test_files_fill_the_last_column(tmp_path: Path, capsys):
    files, output = tmp_path / "files", tmp_path / "page.md"
    (files / "table2").mkdir(parents=True)
    (files / "table1").mkdir()
    (files / "thumos14.csv").write_text(TRUTH)
    line = "video_test_0000004 {} {} 7 {}\n"
    right, ambiguous = line.format(0, 10, 0.5), line.format(25, 29, 0.9)
    (files / "table2/turn.txt").write_text(ambiguous + line.format(0, 3.5, 0.5))
    (files / "table2/turn@0.5.txt").write_text(ambiguous + right)
    (files / "table2/bsn.txt").write_text(ambiguous + right)
    (files / "table1/rtd-net.json").write_text(json.dumps({"video_test_0000004": [[0, 10, 0.5]]}))
    assert scoreboard.main(["--files", str(files), "--output", str(output)]) == 0
    text = output.read_text()
    # The toolkit leaves out ambiguous detections; ActivityNet's metric does not.
    assert row(text, "TURN (TSN, th14)")[-1] == "100.00 / 0.00 / 100.00 / 0.00 / 0.00"
    assert row(text, "BSN (TSN)")[-1] == " / ".join(["50.00"] * 5)
    assert row(text, "RTD-Net")[-1] == " / ".join(["100.00"] * 5)
    assert row(text, "SSN (TSN, th14)")[-1] == "no file" and "thumos14.csv" in text
    capsys.readouterr()
    (files / "table2/bsn.txt").write_text("broken")
    assert scoreboard.main(["--files", str(files), "--output", str(output)]) == 1
    assert "error: Table 2, BSN: " in capsys.readouterr().err
    assert row(output.read_text(), "BSN (TSN)")[-1] == "the file cannot be used"
    assert row(output.read_text(), "TURN (TSN, th14)")[-1].startswith("100.00")


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="nowhere is no folder, expected the downloaded files"):
        scoreboard.main(["--files", str(tmp_path / "nowhere"), "--output", str(tmp_path / "page.md")])
