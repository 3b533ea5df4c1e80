"""Inference and refinement take their share of busy cores, unless the user says how many threads they have; forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.processes import wait_until

import bcnet_fast
from bcnet_fast import threads
from bcnet_fast.errors import BackendError
from bcnet_fast.inference import refine, run
from bcnet_fast.threads import FairShare, others_running, share


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """Nothing is stated, and two threads are those of before."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("wanted", "others", "cores", "expected"),
    [(2, 0, 2, 2), (2, 1, 2, 1), (2, 4, 2, 1), (2, 6, 8, 2), (4, 4, 4, 2), (64, 64, 64, 32), (1, 9, 1, 1)],
)
def test_a_share_is_what_a_fair_scheduler_gives(wanted, others, cores, expected):
    assert share(wanted, others, cores) == expected


@pytest.mark.parametrize(("running", "expected"), [("1", 0), ("6", 5), ("0", 0), (None, 0), ("x", 0)])
def test_others_are_counted_where_the_system_counts_them(tmp_path, monkeypatch, running, expected):
    for name, state in (("1", "R"), ("2", "S")):
        (tmp_path / "task" / name).mkdir(parents=True)
        (tmp_path / "task" / name / "stat").write_text(f"{name} (a ) R b) {state} 1 2")
    if running is not None:
        (tmp_path / "loadavg").write_text(f"9.00 9.00 9.00 {running}/300 12345\n")
    monkeypatch.setattr(threads, "_LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(threads, "_OWN", tmp_path / "task")
    assert others_running() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what runs")
def test_a_busy_process_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            until = time.monotonic() + 30
            while others_running() < 1:
                assert time.monotonic() < until
        finally:
            busy.kill()


def test_the_number_follows_what_else_runs(monkeypatch):
    others, clock = [1000], [0.0]
    monkeypatch.setattr(threads, "others_running", lambda: others[0])
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock[0])
    with FairShare() as fair:
        assert torch.get_num_threads() == 1
        others[0] = 0
        fair.renew()
        assert torch.get_num_threads() == 1  # less than a second later
        clock[0] += 1
        fair.renew()
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("stated", "expected"), [(None, 1), ("OMP_NUM_THREADS", 2), ("MKL_NUM_THREADS", 2)])
def test_inference_shares_busy_cores_unless_the_user_states_a_number(monkeypatch, stated, expected):
    if stated:
        monkeypatch.setenv(stated, "2")
    monkeypatch.setattr(threads, "others_running", lambda: 1000)
    seen = []
    monkeypatch.setattr(run.Run, "_predict", lambda *_: seen.append(torch.get_num_threads()))
    monkeypatch.setattr(refine._Run, "_refine", lambda *_: seen.append(torch.get_num_threads()))
    run.Run.predict(object.__new__(run.Run), [])
    refine._Run.refine(object.__new__(refine._Run), [], [], set())
    assert seen == [expected, expected]
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", [1, 2])
def test_a_forked_process_computes_with_one_thread_and_refuses_more(number, monkeypatch):
    """With more, it would wait forever for the threads of its parent."""
    monkeypatch.setattr(threads._Use, "here", False)
    model = bcnet_fast.load("demo", device="cpu")
    features = torch.zeros(1, model.config.model.feature_dim, model.config.model.window)
    model(features)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(number)
        try:
            model(features)
            os._exit(1)
        except BackendError as error:
            os._exit(2 if "torch.set_num_threads(1)" in str(error) else 3)
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        ended.extend([status] if pid else [])
        return bool(pid)

    try:
        wait_until(has_ended)
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[0]) == number
