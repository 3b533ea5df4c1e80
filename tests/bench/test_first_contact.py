"""bench/first_contact.py: the cost of a hang, a crash or an interruption, and a run on the CPU."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from contact.runner import Run
from contact.steps import STEPS, Step
from helpers.paths import ROOT
from helpers.sweeps import sweep

SCRIPT = ROOT / "bench" / "first_contact.py"
# Steps that end in every way but the right one; nothing here imports PyTorch.
FAULTS = """
import ctypes, os, subprocess, sys, time

def good(context):
    context.row(number=1)
    context.fact("name", "value")

def hang(context):
    context.row(number=1)
    time.sleep(1000)

def hang_with_lock(context):
    ctypes.PyDLL(None).sleep(1000)  # in C, with Python's lock held

def hang_beside_child(context):
    subprocess.Popen(["sleep", "1000"])
    subprocess.run(["sleep", "1000"])

def crash(context):
    context.row(number=1)
    print("about to abort", flush=True)
    os.abort()

def segfault(context):
    ctypes.string_at(0)

def leave(context):
    os._exit(3)

def left_behind(context):
    context.fact("child", subprocess.Popen(["sleep", "1000"]).pid)

def raises(context):
    context.row(number=1)
    raise ValueError("wrong size\\nsecond line")

def wrong(context):
    context.check(1 < 0, "one is not below zero")
    context.attempt("division", lambda: 1 / 0)
    context.row(number=float("nan"))

def lost(context):
    from contact.context import Stop
    raise Stop("no device")

def slow(context):
    context.attempt("first", lambda: context.row(number=1), seconds=0)
    context.attempt("second", lambda: context.row(number=2), seconds=1000)
"""


@pytest.fixture
def step(tmp_path):
    """Makes a step of one of the functions in FAULTS."""
    path = tmp_path / "faults.py"
    path.write_text(FAULTS)

    def make(function: str, **settings: object) -> Step:
        return Step(function, f"{path}:{function}", function, **{"seconds": 0.1, "limit": 30.0} | settings)

    return make


def run(steps: list[Step], out: Path, budget: float = 100.0) -> list[dict]:
    """The lines of results.jsonl, which must be those that the driver has in memory."""
    results = Run(steps, out, "cpu", budget, tell=lambda line: None).all()
    lines = read(out)
    assert [line["step"] for line in lines] == [result.step for result in results]
    return lines


def read(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@sweep("fault", ["hang_with_lock", "hang", "hang_beside_child"])
def test_a_hanging_step_ends_at_its_limit_and_the_next_one_runs(step, tmp_path, fault):
    hanging, good = run([step(fault, limit=1.0), step("good")], tmp_path / "out")
    assert hanging["status"] == "timeout" and hanging["reason"] == "killed after 1 s"
    assert 0.9 < hanging["seconds"] < 20
    assert good["status"] == "ok" and good["facts"] == {"name": "value"}
    # Where it hung: written by the process itself, shortly before.
    assert any(f"in {fault}" in line for line in hanging["output"])
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.index(f"### {fault}: timeout") < report.index("## Overview") < report.index("## good")


@pytest.mark.parametrize(
    ("fault", "reason", "said"),
    [
        ("crash", "signal SIGABRT", "about to abort"),
        ("segfault", "signal SIGSEGV", "in segfault"),
        ("leave", "exit status 3", ""),
    ],
)
def test_a_crashing_step_keeps_its_last_lines_and_the_next_one_runs(step, tmp_path, fault, reason, said):
    crashed, good = run([step(fault), step("good")], tmp_path / "out")
    assert (crashed["status"], crashed["reason"]) == ("crashed", reason)
    assert said in "\n".join(crashed["output"])
    assert good["status"] == "ok"


def test_what_a_step_found_before_its_fault_is_kept(step, tmp_path):
    lines = run([step("hang", limit=1.0), step("crash"), step("raises")], tmp_path / "out")
    assert [line["rows"] for line in lines] == 3 * [[{"number": 1}]]
    assert lines[2]["status"] == "failed" and lines[2]["reason"] == "ValueError: wrong size"
    assert any("ValueError: wrong size" in line for line in lines[2]["output"])


def test_checks_and_attempts_that_fail_fail_the_step(step, tmp_path):
    (line,) = run([step("wrong")], tmp_path / "out")
    assert line["status"] == "failed"
    assert line["failures"] == ["one is not below zero", "division: ZeroDivisionError: division by zero"]
    assert line["rows"] == [{"number": "nan"}]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "- division: ZeroDivisionError: division by zero" in report


def test_nothing_that_a_step_started_outlives_it(step, tmp_path):
    (line,) = run([step("left_behind")], tmp_path / "out")
    assert line["status"] == "ok"
    assert gone(line["facts"]["child"])


def test_parts_that_no_longer_fit_are_left_out_and_named(step, tmp_path):
    (line,) = run([step("slow")], tmp_path / "out")
    assert line["status"] == "ok" and line["rows"] == [{"number": 1}]
    assert line["notes"] == ["Left out for want of time: second."]


def test_the_faults_of_rivals_are_remarks(step, tmp_path):
    steps = [step("hang", limit=1.0, rival=True), step("crash", rival=True), step("good")]
    lines = run(steps, tmp_path / "out")
    assert [line["status"] for line in lines] == ["skipped", "skipped", "ok"]
    assert lines[0]["reason"] == "rival: timeout, killed after 1 s" and lines[0]["rows"] == [{"number": 1}]


def test_without_a_device_no_later_step_runs(step, tmp_path):
    lost, good = run([step("lost"), step("good")], tmp_path / "out")
    assert (lost["status"], lost["reason"]) == ("failed", "no device")
    assert (good["status"], good["reason"]) == ("skipped", "no device")


def test_a_step_that_hangs_does_not_take_the_time_of_later_ones(step, tmp_path):
    """The budget is 6 s. The two steps after it keep 1.5 s each; the fourth needs more than is left."""
    steps = [step("hang"), *(step("good", seconds=1.5) for _ in range(2)), step("good", seconds=60.0)]
    started = time.monotonic()
    lines = run(steps, tmp_path / "out", budget=6.0)
    assert time.monotonic() - started < 20
    assert [line["status"] for line in lines] == ["timeout", "ok", "ok", "skipped"]
    assert lines[0]["limit"] < 3.0
    assert lines[3]["reason"].startswith("budget: ")


def test_a_step_that_the_budget_cuts_off_has_not_failed(step, tmp_path):
    (line,) = run([step("hang", seconds=2.0)], tmp_path / "out", budget=2.0)
    assert line["status"] == "skipped" and line["reason"].startswith("budget: cut off after ")
    assert line["rows"] == [{"number": 1}]


@sweep("real_steps", [STEPS[::9], STEPS], ids=["some", "all"])
def test_every_step_of_the_real_run_ends_within_its_limit_when_it_hangs_or_crashes(step, tmp_path, real_steps):
    for fault, limit, status in (("hang", 0.4, "timeout"), ("crash", 30.0, "crashed")):
        target = step(fault).target
        steps = [dataclasses.replace(real, target=target, limit=limit, rival=False) for real in real_steps]
        lines = run(steps, tmp_path / fault, budget=1e4)
        assert [(line["step"], line["status"]) for line in lines] == [(real.name, status) for real in real_steps]
        assert all(line["seconds"] < limit + 10 for line in lines)


def command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(out), *flags]


def gone(process: int) -> bool:
    """Whether a process ends within a few seconds; an orphan may wait to be reaped."""
    for _ in range(100):
        try:
            os.kill(process, 0)
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.1)
    return False


DRIVER = """
import sys
from pathlib import Path
from contact.runner import Run, Interrupted
from contact.steps import Step
steps = [Step(name, f"{faults}:{{name}}", name, 0.1, 60.0) for name in ("good", "hang", "left_behind")]
try:
    Run(steps, Path({out!r}), "cpu", 100.0, tell=lambda line: print(line, flush=True)).all()
except Interrupted:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_driver_that_is_ended_leaves_all_that_is_known(step, tmp_path, number):
    out, faults = tmp_path / "out", step("good").target.partition(":")[0]
    program = DRIVER.format(faults=faults, out=str(out))
    env = os.environ | {"PYTHONPATH": str(ROOT / "bench")}
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=env)
    assert "good" in driver.stdout.readline()
    events = out / "logs" / "hang.events.jsonl"
    while not events.exists():  # until the second step is in its function
        time.sleep(0.05)
    (child,) = children(driver.pid, "hang")
    driver.send_signal(number)
    driver.communicate(timeout=60)
    lines = read(out)
    report = (out / "report.md").read_text()
    assert lines[0]["status"] == "ok" and "## good" in report
    assert gone(child)
    if number == signal.SIGKILL:
        assert driver.returncode == -number and len(lines) == 1
        assert json.loads(events.read_text()) == ["rows", {"number": 1}]
    else:
        assert driver.returncode == 130
        assert [line["reason"] for line in lines[1:]] == 2 * [f"interrupted: {number.name}"]
        assert lines[1]["rows"] == [{"number": 1}]


def children(driver: int, step: str) -> list[int]:
    """The processes of a step that a driver has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            arguments = (path / "cmdline").read_bytes().decode()
        except (OSError, ValueError):
            continue
        if parent == driver and f":{step}" in arguments:
            found.append(int(path.name))
    return found


@pytest.mark.slow  # .ci/run runs all steps by the command line
def test_some_steps_run_by_the_command_line(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        command(out, "--steps", "add_layer_norm", "environment"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = read(out)
    assert [line["step"] for line in lines] == ["environment", "add_layer_norm"]
    assert all(line["status"] == "ok" for line in lines)
    norm = lines[1]["rows"]
    assert {row["precision"] for row in norm} == {"fp32", "fp16", "bf16"}
    assert all(row["forward error"] <= row["bound"] and row["NaN memory"] for row in norm)
    report = (out / "report.md").read_text()
    assert report.startswith("# First contact with ") and "## Failures\n\nNone." in report


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--budget", "0"), "--budget: expected a number above 0, found 0"),
        (("--steps", "timings"), "found 'timings'"),
        (("--device", "tpu"), "--device"),
    ],
)
def test_bad_arguments_are_one_clear_line(tmp_path, flags, said):
    done = subprocess.run(command(tmp_path / "out", *flags), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def test_results_of_an_earlier_run_are_not_touched(tmp_path):
    earlier = tmp_path / "results.jsonl"
    earlier.write_text("{}\n")
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "expected a new or empty folder" in done.stderr
    assert earlier.read_text() == "{}\n"


def test_a_step_that_fails_sets_the_exit_code(tmp_path, monkeypatch):
    out = tmp_path / "out"
    flags = [sys.executable, str(SCRIPT), "--out", str(out), "--steps", "environment"]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(flags, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    (line,) = read(out)
    assert line["status"] == "failed" and "finds no CUDA device" in line["reason"]
