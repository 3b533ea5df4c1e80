"""Builds the package and, where a C++ compiler works, its native extension. Imports no PyTorch.

BCNET_FAST_NATIVE=auto (the default) leaves the extension out when it cannot be compiled, 1 makes that an error, and 0
does not try. `python -m bcnet_fast.doctor` says what was built.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def files(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


def native_extension() -> list[Pybind11Extension]:
    wish = os.environ.get("BCNET_FAST_NATIVE", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"BCNET_FAST_NATIVE is {wish!r}, expected auto, 1 or 0")
    if wish == "0":
        return []
    flags = []
    if os.name != "nt":
        # Contraction to FMA would make results differ from machine to machine. Nothing looks at the floating-point
        # exception flags, nor passes vectors between functions that are not inlined (what psABI warnings are about).
        flags = ["-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-Wno-psabi", "-pthread"]
    return [
        Pybind11Extension(
            "bcnet_fast._C",
            ["csrc/bindings.cpp", *files("csrc/bindings/*.cpp"), *files("csrc/cpu/*.cpp")],
            include_dirs=["csrc/include"],
            depends=[*files("csrc/bindings/*.h"), *files("csrc/include/*.h")],
            extra_compile_args=flags,
            extra_link_args=["-pthread", "-ldl"] if os.name != "nt" else [],
            cxx_std=17,
            optional=wish == "auto",
        )
    ]


# kernels/ has no __init__.py, so that it cannot hide another package of that name, and is therefore named by hand.
kernels = ["bcnet_fast.kernels", *(f"bcnet_fast.kernels.{name}" for name in find_packages("kernels"))]

setup(
    packages=[*find_packages(include=["bcnet_fast", "bcnet_fast.*"]), *kernels],
    package_dir={"bcnet_fast.kernels": "kernels"},
    ext_modules=native_extension(),
)
