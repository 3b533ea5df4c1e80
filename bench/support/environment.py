"""The record of a benchmark's machine and software, and its start."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bcnet_fast.doctor import cpu_name
from bcnet_fast.errors import InputError
from bcnet_fast.storage.output import require_writable

ROOT = Path(__file__).resolve().parents[2]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def environment(device: str = "cpu") -> dict[str, Any]:
    """The columns of a CSV row that describe the machine and the software."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    commit = _git("rev-parse", "--short", "HEAD")
    return {
        "commit": commit + ("+" if commit and _git("status", "--porcelain") else ""),  # "+": with uncommitted changes
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def begin(threads: int | None, outputs: Iterable[str | os.PathLike | None], device: str = "cpu") -> dict[str, Any]:
    """Check the arguments that all benchmarks share, set the number of threads, and print and return the environment.

    InputError for a number of threads below 1 and for outputs (None: not wanted) that cannot be written.
    """
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads}: expected a number above 0")
    for path in filter(None, outputs):
        require_writable(path)
    if threads:
        torch.set_num_threads(threads)
    facts = environment(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value), flush=True)
    return facts
