"""Runs of commands in processes that tests kill, on an archive that takes them a moment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from helpers.networks import SMALL

from bcnet_fast.config import Config, DataConfig
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.storage.checkpoint import save_checkpoint

VIDEOS = 8
PATIENCE_S = 120


def write_archive(folder: Path, videos: int = VIDEOS, window_stride: int = 12) -> Path:
    """Write weights.safetensors and features/ into a folder."""
    torch.manual_seed(0)
    config = Config("small", model=SMALL, data=DataConfig(window_stride=window_stride))
    save_checkpoint(folder / "weights.safetensors", BCNet(SMALL).state_dict(), config)
    (folder / "features").mkdir()
    draw = np.random.default_rng(0)
    for number in range(videos):
        # More than a pipe holds, so that a worker waits for its parent.
        np.save(folder / "features" / f"{number:02d}.npy", draw.standard_normal((2000, 10)).astype(np.float32))
    return folder


def inference(archive: Path, output: Path, *more: object) -> list[str]:
    """The flags of `infer` on the archive."""
    flags = ["--checkpoint", archive / "weights.safetensors", "--features", archive / "features", "--fps", 25]
    return [str(flag) for flag in [*flags, "--output", output, "--device", "cpu", *more]]


@contextlib.contextmanager
def started(command: str, flags: list[str], **options) -> Iterator[subprocess.Popen]:
    """A command in a process group of its own, which does not survive the test."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", f"bcnet_fast.{command}", *flags],
        env=environment,
        start_new_session=True,
        text=True,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def group_lives(number: int) -> bool:
    """Whether a process of the group runs, zombies apart."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = status.read_text().rpartition(")")[2].split()[:3]
            if int(group) == number and state != "Z":
                return True
    return False


def children(process: int) -> list[int]:
    """The processes that a process has started and that still run, but for Python's own, which counts resources."""
    try:
        started = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    found = []
    for child in started:
        with contextlib.suppress(OSError):  # it has ended
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def kill(process: int, whom: str) -> None:
    """Kill the group of a process, the process alone ("main") or one of its workers by -9, if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        if whom == "group":
            os.killpg(process, signal.SIGKILL)
        elif whom == "main":
            os.kill(process, signal.SIGKILL)
        else:
            for worker in children(process)[:1]:
                os.kill(worker, signal.SIGKILL)
