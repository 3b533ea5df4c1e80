"""Fixtures that every test file shares."""

from __future__ import annotations

import os
from pathlib import Path

# Threads that wait by spinning make small networks ten times slower when other work shares the cores. The setting
# counts when torch is first imported, here and in the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch

# Without a GPU, Triton kernels run in its interpreter. The switch counts when triton is first imported, in some test
# module; this file comes before them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent


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
def shared() -> Path:
    """Real annotations, features and result files, which lie beside the checkout and are not part of it."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"the folder of real data ({path.name}/ beside the checkout) is not here")
    return path
