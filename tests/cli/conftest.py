"""Fixtures that the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.infer import CONFIG, LENGTHS
from helpers.networks import SMALL

from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.storage.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)  # gives regression scores above 0, hence proposals, for every video
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_checkpoint(path, BCNet(SMALL).state_dict(), CONFIG)
    return path


@pytest.fixture
def features(tmp_path, rng) -> Path:
    folder = tmp_path / "features"
    folder.mkdir()
    for video, length in LENGTHS.items():
        np.save(folder / f"{video}.npy", rng.standard_normal((length, 10)).astype(np.float32))
    return folder


@pytest.fixture
def checkpoint_of_proposals(checkpoint) -> Path:
    """The same, where a test has checkpoints of second-stage networks too."""
    return checkpoint
