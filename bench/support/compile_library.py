"""Builds a C++ file of the benchmarks as a shared library."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from bcnet_fast.errors import InputError


def compile_library(source: Path, folder: Path) -> ctypes.CDLL:
    """Compile a file into `folder`, with the optimisation that setuptools gives public extensions, and load it.

    InputError without a C++ compiler (c++, or the one that CXX names).
    """
    library = folder / f"{source.stem}.so"
    command = [os.environ.get("CXX", "c++"), "-O3", "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(library)]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"{source}: expected a C++ compiler to build the baseline with, found: {error}") from error
    return ctypes.CDLL(str(library))
