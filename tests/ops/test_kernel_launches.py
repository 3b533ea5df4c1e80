"""Triton on a GPU: the number of kernels that a network launches, and the fallback where none can be launched."""

from __future__ import annotations

import importlib
import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.backends import needs_triton
from helpers.networks import BMN, CONFIGS, GTAD, CountedOperations, random_state

from bcnet_fast import doctor
from bcnet_fast.errors import BackendError
from bcnet_fast.networks.engine.engine import Engine
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.ops import backends, use_backend

layer_norm_operator, sampling_operators, attention_operator = (
    importlib.import_module(f"bcnet_fast.ops.{name}")  # `from bcnet_fast.ops import` gives functions of these names
    for name in ("add_layer_norm", "anchor_sampling", "difference_attention")
)
pytestmark = needs_triton("difference_attention")
common = pytest.importorskip("bcnet_fast.kernels._common")
device_check = pytest.importorskip("bcnet_fast.kernels._device_check")
add_layer_norm = pytest.importorskip("bcnet_fast.kernels.add_layer_norm")
GPU = torch.device("cuda", 0)
MODELS = {"bcnet": CONFIGS["small"].model, "bcnet, many anchors": CONFIGS["many"].model, "bmn": BMN, "gtad": GTAD}


IMPLEMENTATIONS = {
    torch.ops.bcnet_fast.add_layer_norm.default: layer_norm_operator._run,
    torch.ops.bcnet_fast.anchor_sampling.default: sampling_operators._run_sampling,
    torch.ops.bcnet_fast.anchor_projection.default: sampling_operators._run_projection,
    torch.ops.bcnet_fast.difference_attention.default: attention_operator._run,
}


class EveryOperation(CountedOperations):
    """Counts the operations inside the package's operators instead of the operators themselves."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        run = IMPLEMENTATIONS.get(function)
        if run is None:
            return super().__torch_dispatch__(function, types, args, kwargs)
        with self:
            return run(*args)


@pytest.mark.parametrize("name", MODELS)
def test_launches_do_not_grow_with_the_batch(name, monkeypatch):
    """Kernels and PyTorch's operations together. Kernels are counted, not run: results are whatever memory holds."""
    config, launches = MODELS[name], []
    state = random_state(config) if config.name == "bcnet" else NETWORKS[config.name](config).state_dict()
    engine = Engine(config, state, torch.device("cpu"), "fp32", native=False)
    monkeypatch.setattr(common.Launch, "run", lambda launch: launches.append(launch.kernel))
    counts = []
    for batch in (1, 8):
        with torch.inference_mode(), use_backend("triton"), EveryOperation() as counted:
            engine.network(torch.randn(batch, config.feature_dim, config.window))
        counts.append((len(launches), sum(counted.counts.values())))
        launches.clear()
    assert counts[0] == counts[1]
    assert counts[0][0] >= (1 if config.name != "bcnet" else 20)


# ---- The probe, on a GPU that is a CPU


class PretendGPU:
    """PyTorch, with the CPU in place of every CUDA device."""

    def __init__(self, shared_kib: int = 227) -> None:
        properties = SimpleNamespace(shared_memory_per_block_optin=shared_kib << 10)
        self.cuda = SimpleNamespace(get_device_properties=lambda _: properties)

    def device(self, *_: Any) -> torch.device:
        return torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def no_compiler(*_: Any) -> None:
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nAnd a longer text.")


PROBLEMS = {
    "no compiler": (
        ("launch", no_compiler),
        r"Triton cannot run a kernel \(RuntimeError: Failed to find C compiler. Please specify via CC environment "
        r"variable.\); it needs a C compiler and Python's headers",
    ),
    "wrong result": (
        ("launch", lambda x, residual, out, rstd, eps: out.fill_(1.0)),
        "a Triton kernel gave a wrong result",
    ),
    "nothing written": (("launch", lambda *_: None), "a Triton kernel gave a wrong result"),
    "little memory": (("shared_kib", 64), "the kernels for sm_120 take up to 99 KiB of shared memory, found 64"),
}


@pytest.fixture
def probe(monkeypatch):
    """Install a fault, or none; the probe and its warnings happen anew."""

    def forget() -> None:
        device_check.launch_problem.cache_clear()
        backends._warn_of_reference.cache_clear()

    def install(kind: str = "", value: Any = None) -> None:
        for module in (common, device_check):
            monkeypatch.setattr(module, "torch", PretendGPU(**({kind: value} if kind == "shared_kib" else {})))
        if kind == "launch":
            monkeypatch.setattr(add_layer_norm, "launch", value)

    forget()
    yield install
    forget()


OPERATORS = ("difference_attention", "anchor_sampling", "add_layer_norm", "match_proposals")


def test_a_gpu_that_can_run_kernels_gets_them(probe):
    probe()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [backends.choose(op, GPU) for op in OPERATORS] == ["triton"] * 4
        assert backends.choose("add_layer_norm", GPU, torch.float64) == "reference"  # which Triton never does


@pytest.mark.parametrize("problem", PROBLEMS)
def test_where_no_kernel_runs_the_reference_does_and_one_warning_says_why(probe, problem):
    fault, reason = PROBLEMS[problem]
    probe(*fault)
    with pytest.warns(UserWarning, match=f"add_layer_norm runs as plain PyTorch or NumPy on cuda:0, .*: {reason}"):
        assert backends.choose("add_layer_norm", GPU) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.choose("add_layer_norm", GPU) == "reference"
    with use_backend("triton"), pytest.raises(BackendError, match=f"backend 'triton' cannot be used: {reason}"):
        backends.choose("add_layer_norm", GPU)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_doctor_shows_why(probe, problem, monkeypatch):
    fault, reason = PROBLEMS[problem]
    probe(*fault)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "_self_test", lambda *_: "PASS")
    with pytest.warns(UserWarning, match="runs as plain PyTorch"):
        rows = {(op, kind, backend): remark for op, kind, backend, remark in doctor.backends()}
    for op in OPERATORS:
        assert re.match(reason, rows[op, "cuda", "triton"])
        assert rows[op, "cuda", "reference (chosen)"] == "PASS"


def test_a_kernel_is_tried_once_per_device(probe):
    runs = []
    probe("launch", lambda *_: runs.append(1))
    for index in (0, 1, 0, 1):
        device_check.launch_problem(index)
    assert len(runs) == 2
