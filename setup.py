"""Builds the package and, where a C++ compiler and nvcc work, its native extensions. Imports no PyTorch.

BCNET_FAST_NATIVE=auto (the default) leaves the extension for the CPU out when it cannot be compiled, 1 makes that an
error, and 0 does not try. BCNET_FAST_CUDA is the same for the CUDA extension, which is compiled where nvcc is found (in
CUDA_HOME, else on PATH; on Linux), whether there is a GPU or not. `python -m bcnet_fast.doctor` says what was built.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = SimpleNamespace(**runpy.run_path(str(ROOT / "csrc" / "digest.py")))
# Compute capabilities, those of the Triton kernels. Newer devices take the code of the last one, as PTX.
CUDA_TARGETS = (75, 80, 86, 89, 90, 100, 120)


def from_root(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def wish_in(variable: str) -> str:
    wish = os.environ.get(variable, "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"{variable} is {wish!r}, expected auto, 1 or 0")
    return wish


def native_extension() -> list[Pybind11Extension]:
    wish = wish_in("BCNET_FAST_NATIVE")
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
            from_root(CSRC.sources("_C")),
            include_dirs=["csrc"],
            define_macros=[("BCNET_SOURCES", CSRC.digest("_C"))],
            depends=from_root(CSRC.headers()),
            extra_compile_args=flags,
            extra_link_args=["-pthread", "-ldl"] if os.name != "nt" else [],
            cxx_std=17,
            optional=wish == "auto",
        )
    ]


def find_nvcc() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [*(str(Path(home) / "bin") for home in homes), os.environ.get("PATH", "")]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def cuda_extension() -> list[Extension]:
    wish = wish_in("BCNET_FAST_CUDA")
    found = sys.platform == "linux" and find_nvcc() is not None
    if wish == "1" and not found:
        sys.exit("BCNET_FAST_CUDA is 1, but there is no nvcc in CUDA_HOME or on PATH, or this is not Linux")
    if wish == "0" or not found:
        return []
    return [
        Extension(
            "bcnet_fast._C_cuda",
            from_root(CSRC.sources("_C_cuda")),
            define_macros=[("BCNET_SOURCES", CSRC.digest("_C_cuda"))],
            depends=from_root(CSRC.headers()),
            optional=wish == "auto",
        )
    ]


class BuildExtensions(build_ext):
    """Builds what was not built from these very sources, whatever the files' times say.

    The CUDA extension is left to nvcc as a whole: compiling, and linking with a static CUDA runtime.
    """

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        ((_, digest),) = ext.define_macros
        # An editable install builds into a new folder and copies the result into the package: the last one is there.
        earlier = ROOT / self.get_ext_filename(ext.name) if self.editable_mode else output
        if not self.force and earlier.exists() and digest.encode() in earlier.read_bytes():
            output.parent.mkdir(parents=True, exist_ok=True)
            if earlier != output:
                shutil.copy(earlier, output)
            return
        if ext.name == "bcnet_fast._C_cuda":
            self.run_nvcc(ext, output)
        else:
            self.force = True
            super().build_extension(ext)

    def run_nvcc(self, ext: Extension, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        includes = ["csrc", pybind11.get_include(), sysconfig.get_paths()["include"]]
        nvcc = find_nvcc()
        try:
            known = subprocess.run([nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
            targets = [t for t in CUDA_TARGETS if f"sm_{t}" in known]
            code = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in targets]
            code.append("-gencode=arch=compute_{0},code=compute_{0}".format(targets[-1]))
            # Without --fmad=false, results would not have the bits of the CPU's.
            flags = ["-std=c++17", "-O3", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off"]
            flags += ["--threads=0", "-shared", "-cudart=static", *code, *(f"-I{path}" for path in includes)]
            flags += [f"-D{name}={value}" for name, value in ext.define_macros]
            self.announce(f"nvcc for {', '.join(f'sm_{t}' for t in targets)}", level=2)
            subprocess.run([nvcc, *flags, *ext.sources, "-o", output], check=True)
        except (OSError, IndexError, subprocess.CalledProcessError) as error:
            # The kind of error that leaves an optional extension out.
            raise CompileError(f"nvcc failed: {error}") from error


ParallelCompile(default=0).install()  # a file on each core

# kernels/ has no __init__.py, so that it cannot hide another package of that name, and is therefore named by hand.
kernels = ["bcnet_fast.kernels", *(f"bcnet_fast.kernels.{name}" for name in find_packages("kernels"))]

setup(
    packages=[*find_packages(include=["bcnet_fast", "bcnet_fast.*"]), *kernels],
    package_dir={"bcnet_fast.kernels": "kernels"},
    ext_modules=[*native_extension(), *cuda_extension()],
    cmdclass={"build_ext": BuildExtensions},
)
