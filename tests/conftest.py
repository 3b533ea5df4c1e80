"""Fixtures that every test file shares."""

from __future__ import annotations

import os
from pathlib import Path

# Threads that wait by spinning make small networks ten times slower when other work shares the cores. The setting
# counts when torch is first imported, here and in the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# With a process for each core (pytest-xdist), more threads would only take turns.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from support import seeded

# Without a GPU, Triton kernels run in its interpreter. The switch counts when triton is first imported, in some test
# module; this file comes before them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bcnet_fast import convert
from bcnet_fast.ops import backends as _dispatch

ROOT = Path(__file__).resolve().parent.parent
# Largest allowed `error` of an operator, for outputs and gradients alike: 4 to 8 roundings of the dtype.
BOUNDS = {torch.float64: 2e-15, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """||result - exact|| relative to ||exact||, or absolute where that is zero."""
    exact = exact.detach().cpu()
    return float((result.detach().cpu().double() - exact).norm() / (exact.norm() or 1.0))


def dtype(value: torch.dtype):
    """A parameter of a test, named like the dtype."""
    return pytest.param(value, id=str(value).removeprefix("torch."))


def needs_triton(op: str) -> pytest.MarkDecorator:
    """Skips a test of an operator's Triton kernel where Triton is missing or older than the kernels ask for."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    why = _dispatch.unusable(op, "triton", device)
    return pytest.mark.skipif(why is not None, reason=str(why))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="all of the long sweeps, instead of one case of each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    seen, left_out = set(), set()
    for item in [item for item in items if item.get_closest_marker("slow")]:
        sweep = item.nodeid.partition("[")[0]
        if sweep in seen:
            left_out.add(item)
        seen.add(sweep)
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240521)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Computed reference figures that are committed with the tests."""
    return Path(__file__).resolve().parent / "golden"


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
