"""Soft-NMS on CUDA: the kernel under emulation, bit for bit against the CPU version; its build; its errors."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bcnet_fast.kernels._common import TARGETS
from helpers.paths import ROOT
from helpers.soft_nms import NATIVE_OPTIONS, OPTIONS, good, random_sets
from helpers.sweeps import sweep

from bcnet_fast import doctor
from bcnet_fast.errors import BackendError
from bcnet_fast.ops import backends, native, soft_nms, use_backend
from bcnet_fast.ops.soft_nms import METHODS

COMPILER = os.environ.get("CXX", "c++")
OP = sys.modules["bcnet_fast.ops.soft_nms"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
# All sets of the tests in shared memory; none but the smallest; and none at all.
LIMITS = {"shared": 99 * 1024, "mixed": 4000, "workspace": 1536}


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The CUDA extension, bindings and all, compiled for the CPU."""
    pybind11 = pytest.importorskip("pybind11")
    if sys.platform != "linux" or shutil.which(COMPILER) is None:
        pytest.skip("needs Linux and a C++ compiler")
    folder = tmp_path_factory.mktemp("emulated")
    includes = [ROOT / "tests/native/cuda_emulation", ROOT / "csrc", pybind11.get_include()]
    flags = [
        "-std=c++17",
        "-DBCNET_SOURCES=none",
        "-fPIC",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-U_FORTIFY_SOURCE",
        "-Wno-psabi",
    ]
    flags += [f"-I{path}" for path in (*includes, sysconfig.get_paths()["include"])]

    def compile_file(source: str, optimisation: str) -> Path:
        to = folder / f"{Path(source).stem}.o"
        subprocess.run([COMPILER, *flags, optimisation, "-c", "-x", "c++", ROOT / source, "-o", to], check=True)
        return to

    with ThreadPoolExecutor(2) as pool:
        files = ("csrc/python/bindings_cuda.cpp", "csrc/cuda/soft_nms.cu")
        objects = list(pool.map(compile_file, files, ("-O0", "-O1")))
    library = folder / f"_C_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([COMPILER, "-shared", *objects, "-o", library], check=True)
    specification = importlib.util.spec_from_file_location("_C_cuda", library)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def cuda_soft_nms(emulated, monkeypatch):
    """`soft_nms` by the emulated kernel, with this limit of shared memory."""

    def run(*args, limit="shared", **options):
        module = SimpleNamespace(**vars(emulated) | {"soft_nms_shared_limit": lambda device: LIMITS[limit]})

        def run_cuda(segments, scores, offsets, *rest):
            return [t.numpy() for t in OP._run_cuda(*map(torch.from_numpy, (segments, scores, offsets)), *rest, 0)]

        with monkeypatch.context() as patch:
            patch.setattr(native, "cuda", lambda: (module, None))
            patch.setattr(OP, "choose", lambda *_: "native")
            patch.setattr(OP, "_run_native", run_cuda)
            return soft_nms(*args, **options)

    return run


def assert_same(found, expected, *what):
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b), what


@DTYPES
@sweep("limit", ["mixed", "shared", "workspace"])
@pytest.mark.parametrize("grid", [True, False], ids=["ties", "continuous"])
def test_thousands_of_sets_have_the_bits_of_the_cpu(rng, cuda_soft_nms, dtype, limit, grid):
    for method, options in itertools.product(METHODS, OPTIONS):
        segments, scores, offsets = random_sets(rng, dtype, grid, count=40)
        expected = soft_nms(segments, scores, method=method, offsets=offsets, **options)
        found = cuda_soft_nms(segments, scores, method=method, offsets=offsets, limit=limit, **options)
        assert_same(found, expected, method, options)


@DTYPES
@sweep("limit", ["mixed", "shared"])
def test_sets_of_very_different_size_in_one_launch(rng, cuda_soft_nms, dtype, limit):
    sizes = [0, 1025, 1, 31, 5000, 32, 33, 0]
    segments, scores, offsets = random_sets_of(rng, sizes, dtype)
    options = {"offsets": offsets, "min_score": 0.01}
    expected = soft_nms(segments, scores, **options)
    assert len(expected[2]) > 800
    assert_same(cuda_soft_nms(segments, scores, limit=limit, **options), expected)


def random_sets_of(rng, sizes, dtype):
    """Sets of these sizes, with times and scores on a grid, so that many scores are equal and stay so."""
    n = sum(sizes)
    start = rng.integers(0, 400, n) / 4
    segments = torch.from_numpy(np.stack([start, start + rng.integers(0, 80, n) / 4], 1)).to(dtype)
    scores = torch.from_numpy(rng.integers(1, 65, n) / 64).to(dtype)
    return segments, scores, torch.tensor([0, *np.cumsum(sizes)])


@pytest.mark.parametrize("limit", LIMITS)
def test_padding_changes_nothing(rng, cuda_soft_nms, limit):
    sizes, padded = [40, 0, 100, 7], 300
    segments, scores, offsets = random_sets_of(rng, sizes, torch.float32)
    padded_segments, padded_scores = torch.zeros(4 * padded, 2), torch.zeros(4 * padded)
    for index, (first, last) in enumerate(itertools.pairwise(offsets.tolist())):
        place = slice(index * padded, index * padded + last - first)
        padded_segments[place], padded_scores[place] = segments[first:last], scores[first:last]
    expected = cuda_soft_nms(segments, scores, offsets=offsets)
    found = cuda_soft_nms(padded_segments, padded_scores, offsets=torch.arange(5) * padded, limit=limit)
    assert_same(found[:2], expected[:2])


def test_a_caller_with_fixed_sizes_needs_no_look_at_the_result(rng, emulated):
    # A captured CUDA graph works like this: everything is allocated beforehand, picks lie where the input's sets begin.
    segments, scores, offsets = random_sets_of(rng, [50, 50, 50], torch.float32)
    plan = emulated.plan_soft_nms_float32(150, 3, 50, emulated.soft_nms_shared_limit(0))
    indices, picked, counts = torch.full((150,), -7), torch.full((150,), -7.0), torch.full((3,), -7)
    inputs = (t.data_ptr() for t in (segments, scores, offsets))
    outputs = {"indices": indices, "picked_scores": picked, "counts": counts}
    outputs = {name: tensor.data_ptr() for name, tensor in outputs.items()}
    options = NATIVE_OPTIONS | {"min_score": 0.1, "max_proposals": 5}
    launch = {"candidates": 150, "sets": 3, "plan": plan, "device": 0, "stream": 0, "workspace": 0}
    emulated.soft_nms_float32(*inputs, **options, **launch, **outputs)
    expected = soft_nms(segments, scores, offsets=offsets, min_score=0.1, max_proposals=5, length_epsilon=0.0)
    assert counts.tolist() == [5, 5, 5]
    assert torch.equal(indices.view(3, 50)[:, :5].flatten(), expected[2])
    assert torch.equal(picked.view(3, 50)[:, :5].flatten(), expected[1])
    assert (indices.view(3, 50)[:, 5:] == -7).all()


def test_nothing_in_nothing_out(cuda_soft_nms):
    for offsets in (None, torch.tensor([0]), torch.tensor([0, 0, 0])):
        found = cuda_soft_nms(torch.empty(0, 2), torch.empty(0), offsets=offsets)
        assert [tuple(t.shape) for t in found] == [(0, 2), (0,), (0,)]


BAD_VALUES = [
    {"segments": torch.tensor([[0, 2], [3, 1.0]])},
    {"segments": torch.tensor([[0, np.nan], [1, 3]])},
    {"segments": torch.tensor([[0, 1], [1, np.inf]])},
    {"segments": torch.tensor([[-3e38, 3e38], [1, 2]])},
    {"scores": torch.tensor([0.5, np.nan])},
    {"scores": torch.tensor([np.inf, 0.5]), "offsets": torch.tensor([0, 1, 2])},
    {"scores": torch.tensor([-np.inf, 0.5]), "offsets": torch.tensor([0, 2, 0, 2])},
    {"offsets": torch.tensor([1, 2])},
    {"offsets": torch.tensor([0, 1])},
    {"offsets": torch.tensor([0, 2, 1, 2])},
]


@pytest.mark.parametrize("change", BAD_VALUES, ids=lambda change: " ".join(str(t.tolist()) for t in change.values()))
def test_bad_values_get_the_errors_of_the_cpu(cuda_soft_nms, change):
    with pytest.raises(ValueError, match="soft_nms: ") as expected:
        soft_nms(**(good() | change))
    with pytest.raises(ValueError, match="soft_nms: ") as found:
        cuda_soft_nms(**(good() | change))
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("name, size", [("float32", 4), ("float64", 8)])
def test_plans_fit_the_device_and_use_the_workspace_only_for_what_does_not(emulated, name, size):
    plan_of = getattr(emulated, f"plan_soft_nms_{name}")
    for largest, limit in itertools.product((1, 128, 129, 3000, 20000, 10**6), (48 * 1024, 99 * 1024, 227 * 1024)):
        plan = plan_of(3 * largest, 3, largest, limit)
        assert plan.shared_bytes <= limit
        assert plan.threads % 32 == 0 and plan.threads <= 512
        fits = largest <= plan.shared_candidates
        # Segment, score and index, and two bits.
        assert fits == (plan.workspace_bytes == 0) == ((3 * size + 4.25) * largest < limit - 2000)
        assert fits or plan.workspace_bytes >= (3 * size + 4.25) * 3 * largest
    with pytest.raises(ValueError, match="soft_nms: less shared memory than the"):
        plan_of(1, 1, 1, 1000)
    with pytest.raises(ValueError, match=r"soft_nms: a set has more than 2\^29 candidates"):
        plan_of(2**31, 1, 2**31, 99 * 1024)


def test_table_of_compiled_kernels_covers_every_target_without_spills():
    with (ROOT / "bench" / "results" / "aot.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kernel"] == "soft_nms"]
    assert all(row["spill_bytes"] == "0" and row["blocks_per_sm"] != "0" for row in rows)
    compiled = {(row["dtype"], row["target"]) for row in rows}
    assert compiled == {(dtype, f"sm_{target}") for dtype in ("fp32", "fp64") for target in TARGETS}


@pytest.mark.gpu
@pytest.mark.skipif(native.cuda()[0] is None, reason=str(native.cuda()[1]))
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@DTYPES
@pytest.mark.parametrize("grid", [True, False], ids=["ties", "continuous"])
def test_the_device_has_the_bits_of_the_cpu(rng, dtype, grid):
    for method, options in itertools.product(METHODS, OPTIONS):
        batches = random_sets(rng, dtype, grid), random_sets_of(rng, [0, 20000, 33, 30000, 15000], dtype)
        for segments, scores, offsets in batches:
            expected = soft_nms(segments, scores, method=method, offsets=offsets, **options)
            inputs = segments.cuda(), scores.cuda()
            with use_backend("native"):
                found = [soft_nms(*inputs, method=method, offsets=offsets.cuda(), **options) for _ in range(2)]
            assert_same(found[0], found[1])
            assert_same([t.cpu() for t in found[0]], expected, method, options)
    for change in BAD_VALUES:
        with use_backend("native"), pytest.raises(ValueError, match="soft_nms: "):
            soft_nms(**{name: tensor.cuda() for name, tensor in (good() | change).items()})


@pytest.mark.skipif(native.cuda()[0] is None, reason=str(native.cuda()[1]))
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_extension_loads_without_a_device_and_says_so_when_called():
    module, _ = native.cuda()
    plan = module.plan_soft_nms_float32(1, 1, 1, 48 * 1024)
    with pytest.raises(RuntimeError, match="soft_nms: CUDA: "):
        launch = {"candidates": 1, "sets": 1, "plan": plan, "device": 0, "stream": 0, "workspace": 0}
        outputs = dict.fromkeys(("indices", "picked_scores", "counts"), 0)
        module.soft_nms_float32(0, 0, 0, **NATIVE_OPTIONS, **launch, **outputs)
    why = backends.unusable("soft_nms", "native", torch.device("cuda", 0))
    assert "the CUDA extension cannot use the device (soft_nms: CUDA: " in why


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(native, "cuda", lambda: (None, "the CUDA extension was not built"))
    native.cuda_problem.cache_clear()
    backends._warn_of_reference.cache_clear()
    yield torch.device("cuda", 0)
    native.cuda_problem.cache_clear()
    backends._warn_of_reference.cache_clear()


def test_a_missing_extension_is_explained_and_the_native_code_of_the_host_takes_over(no_extension, monkeypatch):
    assert dict(doctor.facts())["CUDA extension"] == "no: the CUDA extension was not built"
    with use_backend("native"), pytest.raises(BackendError, match="the CUDA extension was not built"):
        backends.choose("soft_nms", no_extension)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if native.module is not None:
            assert backends.choose("soft_nms", no_extension) == "host"
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "the native extension was not built")
    with pytest.warns(UserWarning, match="soft_nms runs as plain PyTorch or NumPy on cuda:0.*: the CUDA extension was"):
        assert backends.choose("soft_nms", no_extension) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        assert backends.choose("soft_nms", no_extension) == "reference"


@pytest.mark.skipif(native.module is None, reason=str(native.reason))
def test_the_hosts_native_code_has_the_bits_of_the_cpu(rng, monkeypatch):
    """On a CPU tensor, since nothing but the copies differs on a GPU; the NumPy loop must not run."""
    segments, scores, offsets = random_sets(rng, torch.float32, grid=True, count=40)
    expected = soft_nms(segments, scores, offsets=offsets, sigma=0.4, min_score=0.01)
    monkeypatch.setattr(OP, "choose", lambda *_: "host")
    monkeypatch.setattr(OP, "_run_reference", None)
    assert_same(soft_nms(segments, scores, offsets=offsets, sigma=0.4, min_score=0.01), expected)


@pytest.mark.skipif(native.cuda()[0] is None, reason=str(native.cuda()[1]))
@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_extension_needs_no_cuda_toolkit_where_it_runs():
    """So a wheel that was built beside nvcc runs on machines that have a driver alone."""
    module, _ = native.cuda()
    table = subprocess.run(["readelf", "-d", module.__file__], capture_output=True, text=True, check=True).stdout
    needed = {line.partition("[")[2].partition(".so")[0] for line in table.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc", "libm", "libdl", "librt", "libpthread", "libgcc_s", "libstdc++", "ld-linux-x86-64"}


def build(tree: Path, path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", "out", "--build-temp", "work"]
    cleared = {"BCNET_FAST_NATIVE": "0", "CUDA_HOME": "", "CUDA_PATH": "", "PATH": path}
    return subprocess.run(
        command, cwd=tree, env=os.environ | cleared | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def tree(tmp_path) -> Path:
    """The files that a build needs, and a folder `bin` for a stand-in of nvcc."""
    (tmp_path / "bin").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("csrc", "bcnet_fast", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def write_nvcc(tree: Path, script: str) -> str:
    path = tree / "bin" / "nvcc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"{path.parent}:/usr/bin:/bin"


@pytest.mark.skipif(sys.platform != "linux", reason="the CUDA extension is for Linux")
def test_without_nvcc_the_build_leaves_the_extension_out_unless_it_must_be_built(tree):
    empty = str(tree / "bin")
    assert build(tree, empty).returncode == 0
    refused = build(tree, empty, BCNET_FAST_CUDA="1")
    assert refused.returncode != 0 and "BCNET_FAST_CUDA is 1, but there is no nvcc" in refused.stderr
    wrong = build(tree, empty, BCNET_FAST_CUDA="yes")
    assert wrong.returncode != 0 and "BCNET_FAST_CUDA is 'yes', expected auto, 1 or 0" in wrong.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the CUDA extension is for Linux")
@sweep("script", ["exit 1", '[ "$1" = --list-gpu-code ] && echo sm_80 || exit 1', "echo sm_35"])
def test_an_nvcc_that_fails_leaves_the_extension_out_unless_it_must_be_built(tree, script):
    path = write_nvcc(tree, script)
    assert build(tree, path).returncode == 0
    assert build(tree, path, BCNET_FAST_CUDA="0").returncode == 0
    refused = build(tree, path, BCNET_FAST_CUDA="1")
    assert refused.returncode != 0 and "nvcc failed" in refused.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the CUDA extension is for Linux")
def test_an_older_nvcc_compiles_for_the_devices_that_it_knows(tree):
    write_nvcc(tree, 'if [ "$1" = --list-gpu-code ]; then echo sm_70 sm_75 sm_80; else echo "$@" > arguments; fi')
    # The home wins over the path.
    done = build(tree, "/usr/bin:/bin", CUDA_HOME=str(tree), BCNET_FAST_CUDA="1")
    assert done.returncode == 0, done.stderr
    arguments = (tree / "arguments").read_text().split()
    assert [a for a in arguments if a.startswith("-gencode")] == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=compute_80",
    ]
    # The bits of the CPU, and a library that loads without a driver.
    assert {"--fmad=false", "-cudart=static", "csrc/cuda/soft_nms.cu"} <= set(arguments)
