"""`load` in several threads at once, beside threads that build modules of their own."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from helpers.sweeps import sweep
from torch import nn

import bcnet_fast
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.networks.reference.layers import shapes_only
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.checkpoint import save_checkpoint

THREADS = 8
NARROW = {"base_channels": 32, "width": 24, "heads": 2, "head_dim": 8, "feedforward": 32, "bins": 4}
MODULES = {
    "Linear": lambda: nn.Linear(64, 64),
    "Conv1d": lambda: nn.Conv1d(16, 16, 3),
    "Embedding": lambda: nn.Embedding(64, 64),
}


@pytest.fixture
def checkpoint(tmp_path):
    config = PRESETS["bcnet"]["thumos14"]
    config = replace(config, model=replace(config.model, feature_dim=16, window=32, max_duration=8, **NARROW))
    torch.manual_seed(0)
    state = NETWORKS["bcnet"](config.model).state_dict()
    save_checkpoint(tmp_path / "weights.safetensors", state, config)
    return tmp_path / "weights.safetensors", config


def is_initialised(module: nn.Module) -> bool:
    """Whether the weights are spread as PyTorch's initialisation spreads them, and on the default device."""
    weight = module.weight.detach()
    return weight.device.type == "cpu" and bool(weight.isfinite().all()) and 0.01 < weight.std().item() < 2


@sweep("kind", MODULES)
def test_modules_built_during_load_are_initialised(checkpoint, kind):
    path, config = checkpoint
    done, wrong = threading.Event(), []

    def build():
        # Not zeros: memory that the allocator returns as it is must not pass for a weight.
        while not done.is_set():
            torch.full((64, 64), torch.nan)
            module = MODULES[kind]()
            if not is_initialised(module):
                wrong.append(module.weight.detach().clone())

    builder = threading.Thread(target=build)
    builder.start()
    features = torch.randn(1, config.model.feature_dim, config.model.window)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            loaded = list(pool.map(lambda _: bcnet_fast.load(path, device="cpu"), range(THREADS)))
    finally:
        done.set()
        builder.join()
    assert not wrong
    first, *others = (model(features).columns() for model in loaded)
    assert all(torch.equal(scores, first[name]) for other in others for name, scores in other.items())


def test_shapes_only_concerns_its_own_thread():
    inside, built = threading.Event(), threading.Event()

    def hold():
        with shapes_only():
            inside.set()
            built.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(10)
    modules = [make() for make in MODULES.values()]
    built.set()
    holder.join()
    assert all(map(is_initialised, modules))


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_only_has_the_shapes_and_no_memory(name):
    config = PRESETS[name]["thumos14"].model
    with shapes_only():
        network = NETWORKS[name](config)
    assert all(tensor.device.type == "meta" for tensor in network.state_dict().values())
    small = replace(config, window=32)
    with shapes_only():
        shapes = {name: tensor.shape for name, tensor in NETWORKS[name](small).state_dict().items()}
    real = {name: tensor.shape for name, tensor in NETWORKS[name](small).state_dict().items()}
    assert shapes == real


@pytest.mark.slow  # a process of its own
def test_shapes_only_imports_next_to_nothing():
    """The random functions of the device "meta" import hundreds of modules."""
    code = (
        "import sys; from bcnet_fast.networks.reference import NETWORKS; from bcnet_fast.presets import PRESETS;"
        "from bcnet_fast.networks.reference.layers import shapes_only; before = set(sys.modules)\n"
        "with shapes_only():\n    [NETWORKS[name](PRESETS[name]['thumos14'].model) for name in NETWORKS]\n"
        "print(len(set(sys.modules) - before))"
    )
    added = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(added) < 10
