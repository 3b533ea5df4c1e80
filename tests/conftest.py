"""Fixtures that every test file shares."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

# Threads that wait by spinning make small networks ten times slower when other work shares the cores. The setting
# counts when torch is first imported, here and in the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# With more processes than cores (pytest-xdist), more threads would only take turns.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, which some tests send to themselves.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN, ROOT
from support import seeded
from xdist.scheduler import LoadScopeScheduling

# Without a GPU, Triton kernels run in its interpreter. The switch counts when triton is first imported, in some test
# module; this file comes before them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bcnet_fast import convert
from bcnet_fast.training import learning_curve

# Test modules and their child processes read compiled modules instead of compiling all of them again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests of such a file share things that take seconds to make: object files, an extension, a wheel, outputs of networks.
ONE_PROCESS = (
    "native/test_sanitizers",
    "ops/test_soft_nms_cuda",
    "packaging/test_packaging",
    "networks/test_reference",
    "training/test_hostile_state",
)

DRAW = learning_curve.learning_curve

# Tests with these words in their names need PyTorch's compiler, which takes seconds to import.
COMPILER = ("one_graph", "opcheck")


class Scheduling(LoadScopeScheduling):
    """Shares out tests with all their parameters, and some files and the tests of the compiler as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if any(word in nodeid for word in COMPILER):
            return "compiler"
        return file if any(f"tests/{name}" in file for name in ONE_PROCESS) else nodeid.partition("[")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int:
    """One more than cores: a quarter of the time, a test waits for processes that it has started."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Imported modules stay, so garbage collections during the tests need not scan them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240521)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _trainings_without_pictures():
    """A learning curve takes as long to draw as a small training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning_curve, "learning_curve", lambda rows, path: None)
        yield


@pytest.fixture
def learning_curves(monkeypatch) -> None:
    """Trainings draw their learning curve, as they do outside the tests."""
    monkeypatch.setattr(learning_curve, "learning_curve", DRAW)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Computed reference figures that are committed with the tests."""
    return GOLDEN


@pytest.fixture(scope="session")
def released(tmp_path_factory, golden) -> Path:
    """A checkpoint of the released sizes, with seeded weights, converted from files as the release has them."""
    folder = tmp_path_factory.mktemp("release")
    bpm, abi = seeded.release_files(folder, golden, seed=101)
    output = folder / "bcnet.safetensors"
    assert convert.main(["--bpm", str(bpm), "--abi", str(abi), "--output", str(output)]) == 0
    bpm.unlink()
    abi.unlink()
    return output


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real annotations, features and result files, which lie beside the checkout and are not part of it."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"the folder of real data ({path.name}/ beside the checkout) is not here")
    return path


@pytest.fixture
def poisoned():
    """Fresh memory holds NaN and the largest integers, so that an element which is not written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def triton():
    module = pytest.importorskip("triton", minversion="3.2")
    if not torch.cuda.is_available():
        pytest.importorskip("bcnet_fast.kernels._common")
    return module
