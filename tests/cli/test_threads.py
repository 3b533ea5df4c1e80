"""Commands take their share of the cores, and waiting threads sleep soon, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bcnet_fast import infer
from bcnet_fast.cli import threads

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Ends when torch is about to be imported, which is when its OpenMP runtime starts.
BEFORE_TORCH = """
import importlib.abc, os, runpy, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("command", ["infer", "train", "evaluate"])
@pytest.mark.parametrize(
    ("stated", "expected"),
    [({}, threads.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing", "spins", "policy"],
)
def test_waiting_threads_sleep_soon_in_commands_unless_the_user_says_otherwise(command, stated, expected):
    call = [sys.executable, "-c", BEFORE_TORCH, f"bcnet_fast.{command}"]
    done = subprocess.run(call, env=os.environ | stated, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == expected, done.stderr


def test_a_program_that_imports_torch_itself_keeps_its_environment():
    threads.spin_briefly()  # torch is imported here
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("wanted", "others", "cores", "expected"),
    [
        (2, 0, 2, 2),
        (2, 1, 2, 1),
        (2, 4, 2, 1),
        (2, 6, 8, 2),
        (4, 4, 4, 2),
        (64, 64, 64, 32),
        (1, 9, 1, 1),
        (8, 0, 2, 2),
    ],
)
def test_a_command_has_as_many_threads_as_a_fair_scheduler_gives_it_cores(wanted, others, cores, expected):
    assert threads.share(wanted, others, cores) == expected


@pytest.mark.parametrize(
    ("running", "expected"),
    [("1", 0), ("5", 4), ("0", 0), (None, 0), ("x", 0)],
)
def test_others_are_counted_where_the_system_counts_them(tmp_path, monkeypatch, running, expected):
    load = tmp_path / "loadavg"
    if running is not None:
        load.write_text(f"9.00 9.00 9.00 {running}/300 12345\n")
    monkeypatch.setattr(threads, "_LOAD", load)
    assert threads.others_running() == expected


@pytest.mark.parametrize(("stated", "expected"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)], ids=["busy", "stated"])
def test_inference_shares_busy_cores_and_leaves_the_number_of_threads_as_it_was(monkeypatch, stated, expected):
    before = torch.get_num_threads()
    for name, value in stated.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "others_running", lambda: 1000)
    seen = []

    def noted(options):
        seen.append(torch.get_num_threads())
        return SimpleNamespace(summary=lambda: "", profile=None, failures=())

    monkeypatch.setattr(infer, "infer", noted)
    torch.set_num_threads(2)
    try:
        assert infer.main(["--features", "x", "--output", "y"]) == 0
        assert seen == [expected] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
