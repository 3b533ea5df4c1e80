"""bench/compat.py: its printed and written results, on few and small sets."""

from __future__ import annotations

import json
import os
import shutil

import compat
import pytest

from bcnet_fast.errors import InputError
from bcnet_fast.ops import native

pytestmark = [
    pytest.mark.skipif(native.module is None, reason="the native extension is not built"),
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"),
]


def test_every_function_is_compared_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compat, "SIZES", (60,))
    monkeypatch.setattr(compat, "LEAST_RUN", 0.0)
    path = tmp_path / "compat.json"
    assert compat.main(["--pairs", "2", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert [(row["set"], row["function"]) for row in written["rows"]] == [
        (name, function) for name in compat.SETS for function in ("nms", *compat.METHODS)
    ]
    assert all(0 < row["kept"] <= 60 and row["ours_ms"] > 0 and row["loop_ms"] > 0 for row in written["rows"])
    assert len(written["rate_gflops"]) == 2
    assert "GFLOP/s before" in capsys.readouterr().out


def test_no_pair_is_refused():
    with pytest.raises(InputError, match="--pairs 0: expected a number above 0"):
        compat.main(["--pairs", "0"])
