"""Damaged inputs of every kind end as docs/reliability.md promises, and the attack sees what breaks a promise."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from attack.kills import COMMANDS_KILLED, KINDS, Kills, Run
from attack.mutations import VALUES, dump
from attack.run import Outcome, problems_of
from attack.target import Target
from helpers.sweeps import sweep

QUICK = 76  # inputs, one of each kind


@sweep(("inputs", "kills"), [(QUICK, COMMANDS_KILLED), (4 * QUICK, 2 * len(KINDS))])
def test_no_damaged_input_and_no_kill_breaks_a_promise(request, tmp_path, inputs, kills):
    asked = {name: request.config.getoption(name, default=None) for name in ("attack", "kills")}
    if any(asked.values()) and inputs != QUICK:
        pytest.skip("--attack or --kills asks for another number")
    inputs, kills = asked["attack"] or inputs, asked["kills"] or kills
    command = [sys.executable, Path(__file__).parent / "run.py", "--json", tmp_path / "a.json"]
    command += ["--inputs", str(inputs), "--kills", str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["inputs"] == inputs == sum(facts["exit_codes"].values())
    assert inputs != QUICK or len(facts["targets"]) == QUICK
    assert facts["killed"] == kills == sum(of_kind["kills"] for of_kind in facts["kills"].values())
    assert facts["failures"] == facts["kill_failures"] == [] and min(facts["exit_codes"].values()) > 0


INFER = Target("features", "x", ("infer",), "features/bad.npy", (), ("features",), ("out.json",), ("good",))
EVALUATE = Target("result", "x", ("evaluate",), "bad.json", (), ("bad.json",), ("out.json",))
FINE = {"results": {"good": [1]}}


def judged(folder: Path, target: Target, code: int, err: str, **more) -> list[str]:
    facts = {"out": "", "events": [], "seconds": 0.0, "resident": 0} | more
    return problems_of(target, folder, Outcome(code, err=err, **facts), FINE["results"], idle=0)


@pytest.mark.parametrize(
    ("target", "code", "err", "more", "problem"),
    [
        (INFER, 70, "Traceback (most recent call last):\n", {}, "traceback"),
        (INFER, -11, "", {}, "signal SIGSEGV"),
        (INFER, -9, "", {}, "hang"),
        (INFER, 0, "", {"events": ["exec <code>"]}, "hook: exec <code>"),
        (INFER, 0, "", {"resident": 1 << 30}, "memory"),
        (INFER, 0, "\x1b[31m", {}, "control characters printed"),
        (INFER, 1, "", {}, "exit code 1 without a failure, or the other way round"),
        (INFER, 0, "failed: bad: ...", {}, "exit code 1 without a failure, or the other way round"),
        (EVALUATE, 2, "error: no name", {}, "error line without the name of the file"),
        (EVALUATE, 2, "error: bad.json\nmore", {}, "exit code 2 without one line that begins with error:"),
        (EVALUATE, 2, "bad.json", {}, "exit code 2 without one line that begins with error:"),
    ],
)
def test_every_kind_of_failure_is_seen(tmp_path, target, code, err, more, problem):
    if target is INFER:
        (tmp_path / "out.json").write_text(json.dumps(FINE))
    assert problem in judged(tmp_path, target, code, err, **more)


def test_other_results_and_outputs_left_behind_are_seen(tmp_path):
    (tmp_path / "out.json").write_text(json.dumps({"results": {"good": [2]}}))
    assert judged(tmp_path, INFER, 0, "") == ["a video that is good has other results"]
    assert judged(tmp_path, EVALUATE, 2, "error: bad.json") == ["exit code 2 leaves out.json"]
    (tmp_path / "out.json").write_text('{"results": {"good": [NaN]}}')
    assert judged(tmp_path, INFER, 0, "") == ["no results in the output (ZeroDivisionError)"]
    (tmp_path / "out.json").write_text(json.dumps(FINE))
    assert judged(tmp_path, INFER, 0, "") == []


def test_what_a_kill_leaves_loses_or_changes_is_seen(tmp_path):
    kills = object.__new__(Kills)
    kills.compared, kills.orphans = Counter(), []
    run = Run("infer", "main", [], tmp_path / "found", tmp_path / "expected")
    for folder in (run.output, run.expected):
        folder.mkdir()
        (folder / "out.json").write_text("1")
    assert kills.of_parts(run) == kills.of_files(run) == []
    (run.output / "out.json").write_text("2")
    (run.output / "out.json.partial").touch()
    (run.expected / "out.srt").touch()
    assert kills.of_parts(run) == ["out.json after a kill is not whole"]
    assert kills.of_files(run) == ["out.json.partial is left", "out.srt is missing", "out.json differs"]
    with subprocess.Popen(["sleep", "100"], start_new_session=True) as process:
        kills.orphans = [(process.pid, time.monotonic())]
        assert kills.of_orphans() == ["workers outlive their parent"]


def test_hostile_values_are_written_as_json():
    for value in VALUES:
        if value != 10**4000:
            assert repr(json.loads(dump({"a": [value, {}]}))) == repr({"a": [value, {}]})
    assert len(dump(10**4000)) == 4001
