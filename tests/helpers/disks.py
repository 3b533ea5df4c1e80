"""Small disks, and files that cannot grow."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FULL = "No space left on device|File too large|os error 28|os error 27"
PLENTY = 64 << 20  # bytes
Disk = Callable[[int], None]  # sets its size in bytes


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """A disk in memory, which only root may mount."""
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True) and None
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def limited(folder: Path) -> Iterator[Disk]:
    """A limit on the size of each file of this process."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
