"""bench/compilers.py: its printed and written results, beside the same build."""

from __future__ import annotations

import json

import compilers
import pytest
from support import extension_cases

from bcnet_fast.errors import BackendError
from bcnet_fast.ops import native


@pytest.mark.skipif(native.module is None, reason="the native extension is not built")
def test_every_function_is_timed_by_both_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compilers, "build", lambda compiler, folder: native.module.__file__)
    monkeypatch.setattr(compilers, "ROUNDS", 2)
    path = tmp_path / "compilers.json"
    assert compilers.main(["--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["compilers"] == [native.module.COMPILER] * 2
    assert [row["function"] for row in written["rows"]] == list(extension_cases.cases(native.module, 1))
    assert all(row["ms"] > 0 and row["ratio"] == row["other_ms"] / row["ms"] for row in written["rows"])
    assert native.module.COMPILER in capsys.readouterr().out


def test_a_compiler_that_is_missing_is_named(tmp_path):
    with pytest.raises(BackendError, match="no-such-compiler cannot build the extension: "):
        compilers.build("no-such-compiler", str(tmp_path))
