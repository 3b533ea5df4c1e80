"""The C++ code under the address, undefined-behaviour and thread sanitizers, kernels for CUDA under emulation.

The programs also run on 64-bit ARM, cross-compiled and emulated, and must give the same results there as here.
Debian has the tools: g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.sweeps import sweep

COMPILER = os.environ.get("CXX", "c++")

GEMM = ["gemm/int8_product.cpp", "gemm/packed_weight.cpp", "gemm/strassen.cpp"]
# Each program, tests/native/sanitized/NAME.cpp, and the files of csrc that it runs.
PROGRAMS = {
    "add_layer_norm": ["cpu/add_layer_norm.cpp"],
    "anchor_sampling": ["cpu/anchor_sampling.cpp"],
    "layers": ["cpu/attention.cpp", "cpu/layers.cpp", *GEMM],
    "match_proposals": ["cpu/match_proposals.cpp"],
    "nms_1d": ["cpu/nms_1d.cpp", "cpu/soft_nms.cpp"],
    "parallel": [],
    "soft_nms": ["cpu/soft_nms.cpp"],
    "soft_nms_cuda": ["cpu/soft_nms.cpp", "cuda/soft_nms.cu"],
}
# Without optimisation, GCC compiles vectors with checks in a tenth of the time. Address checks as calls, and no
# duplicate checks by the other sanitizer, reduce this to a third. The thread sanitizer needs real threads from the
# emulation; it knows no fences, as it says in a warning. The other gets the code for older devices.
ADDRESS, THREAD = "address,undefined", "thread"
ADDRESS_FLAGS = [
    *("-O0", "-fno-sanitize-recover=undefined", "-fno-sanitize=null,object-size,pointer-overflow"),
    *("--param=asan-instrumentation-with-call-threshold=0", "-D__CUDA_ARCH__=750"),
]
THREAD_FLAGS = ["-O1", "-DBCNET_EMULATE_WITH_THREADS", "-Wno-tsan"]
# The code for AVX takes three times as long to compile as the rest, and shares out its work by the same code.
BASELINE = ["-include", str(ROOT / "tests/native/sanitized/baseline.h")]
# Each build: its sanitizer and the flags.
BUILDS = {
    "address": (ADDRESS, [*ADDRESS_FLAGS, *BASELINE]),
    "thread": (THREAD, [*THREAD_FLAGS, *BASELINE]),
    "address, every instruction set": (ADDRESS, ADDRESS_FLAGS),
}
FLAGS = ["-std=c++17", "-g1", "-Wno-psabi", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-pthread"]
FOLDERS = [f"-I{ROOT / folder}" for folder in ("csrc", "tests/native/cuda_emulation", "tests/native/sanitized")]


@pytest.fixture(scope="session")
def build(request, tmp_path_factory) -> str:
    """The name of a build whose sanitizer works here."""
    folder = tmp_path_factory.mktemp("sanitizer")
    (folder / "empty.cpp").write_text("int main() {}")
    name, _ = BUILDS[request.param]
    if sys.platform != "linux" or shutil.which(COMPILER) is None:
        pytest.skip("needs Linux and a C++ compiler")
    try:
        command = [COMPILER, f"-fsanitize={name}", folder / "empty.cpp", "-o", folder / "empty"]
        subprocess.run(command, check=True, capture_output=True)
        subprocess.run([folder / "empty"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no {name} sanitizer here: {error.stderr.decode()[-200:]}")
    return request.param


def sources(name: str) -> list[Path]:
    return [ROOT / "tests" / "native" / "sanitized" / f"{name}.cpp", *(ROOT / "csrc" / file for file in PROGRAMS[name])]


@pytest.fixture(scope="session")
def compiled(build, tmp_path_factory):
    """A function from source files to object files, each compiled once for the build."""
    folder, objects = tmp_path_factory.mktemp("objects"), {}

    def compile_file(path: Path) -> Path:
        to = folder / f"{path.parent.name}_{path.name}.o"
        sanitizer, more = BUILDS[build]
        flags = [*FLAGS, *FOLDERS, f"-fsanitize={sanitizer}", *more]
        # `-x c++`, because a .cu file is C++ only to the emulation.
        command = [COMPILER, *flags, "-c", "-x", "c++", path, "-o", to]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return to

    def compile_files(paths: list[Path]) -> list[Path]:
        for path in paths:
            if path not in objects:
                objects[path] = pool.submit(compile_file, path)
        return [objects[path].result() for path in paths]

    pool = ThreadPoolExecutor(2)
    yield compile_files
    pool.shutdown(cancel_futures=True)


def run(name: str, build: str, objects: list[Path], folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / name
    subprocess.run(
        [COMPILER, f"-fsanitize={BUILDS[build][0]}", *objects, "-o", program, "-pthread", "-ldl"], check=True
    )
    # Leaks are looked for with ptrace, which many containers forbid.
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([program], env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="session")
def finished(build, compiled, tmp_path_factory):
    """A function from a program's name to the program when it has run."""
    folder = tmp_path_factory.mktemp("programs")
    return functools.cache(lambda name: run(name, build, compiled(sources(name)), folder))


# Those that compile in few seconds. After a change in csrc/, all of this file is worth its three minutes.
ALWAYS = [("address", "add_layer_norm"), ("thread", "parallel")]
OTHERS = [(build, name) for build in BUILDS for name in PROGRAMS if (build, name) not in ALWAYS]


@sweep(("build", "name"), ALWAYS + OTHERS, keep=len(ALWAYS), indirect=["build"])
def test_no_bad_access_no_undefined_behaviour_and_no_race(name, finished):
    done = finished(name)
    assert done.returncode == 0, done.stderr


# A mistake in the kernel for each sanitizer to find: a read beyond the array; one buffer instead of two.
MISTAKES = {
    "address": ("set.move(nth_survivor(rank)", "set.move(nth_survivor(rank) + 100000", "AddressSanitizer"),
    "thread": ("bitmaps + picks % 2 * words", "bitmaps + 0 * picks", "data race"),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", MISTAKES, indirect=True)
def test_sanitizers_see_a_mistake_in_a_kernel(build, compiled, tmp_path):
    right, wrong, message = MISTAKES[build]
    text = (ROOT / "csrc/cuda/soft_nms.cu").read_text(encoding="utf-8")
    assert text.count(right) == 1
    mistaken = tmp_path / "soft_nms.cu"
    mistaken.write_text(text.replace(right, wrong), encoding="utf-8")
    driver, on_cpu, _ = sources("soft_nms_cuda")
    done = run("mistaken", build, compiled([driver, on_cpu, mistaken]), tmp_path)
    assert done.returncode != 0
    assert message in done.stderr


ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# Programs whose bits do not depend on whether the processor rounds a product and a sum once or twice.
SAME_BITS = {"add_layer_norm", "match_proposals", "parallel", "soft_nms"}
# The CUDA kernels are not for a CPU.
ON_ARM = [name for name in PROGRAMS if name != "soft_nms_cuda"]


@pytest.fixture(scope="session")
def compiled_for_arm(tmp_path_factory):
    """A function from source files to object files for ARM, each compiled once; all are begun with the first."""
    missing = [tool for tool in (ARM_COMPILER, EMULATOR) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    folder = tmp_path_factory.mktemp("arm_objects")
    every = sorted({path for name in ON_ARM for path in sources(name)}, key=lambda path: -path.stat().st_size)

    def compile_file(path: Path) -> Path:
        to = folder / f"{path.parent.name}_{path.name}.o"
        command = [ARM_COMPILER, *FLAGS, *FOLDERS, "-O1", "-g0", "-c", path, "-o", to]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = {path: pool.submit(compile_file, path) for path in every}
        yield lambda paths: [objects[path].result() for path in paths]


@pytest.mark.slow
@pytest.mark.arm
@pytest.mark.parametrize("build", ["address"], indirect=True)
@pytest.mark.parametrize("name", ON_ARM)
def test_arm_computes_what_this_machine_computes(name, finished, compiled_for_arm, tmp_path):
    # Static, because the emulator would look for the libraries of ARM on this machine.
    program = tmp_path / name
    objects = compiled_for_arm(sources(name))
    subprocess.run([ARM_COMPILER, "-static", *objects, "-o", program, "-pthread", "-ldl"], check=True)
    done = subprocess.run([EMULATOR, program], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    hash_arm, magnitude_arm = done.stdout.split()
    hash_here, magnitude_here = finished(name).stdout.split()
    if name in SAME_BITS:
        assert hash_arm == hash_here
    assert float(magnitude_arm) == pytest.approx(float(magnitude_here), rel=1e-5)
