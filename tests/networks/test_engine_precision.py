"""The arithmetic that products request from a GPU: PyTorch's switches during every product, and afterwards."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from helpers.networks import CONFIGS, map_config, objective, random_state
from helpers.paths import ROOT
from helpers.precision_switches import (
    NEW,
    SUMS,
    all_switches,
    set_precision,
    sums,
    tf32_of_convolutions,
    tf32_of_products,
)
from helpers.sweeps import sweep
from torch.utils._python_dispatch import TorchDispatchMode

import bcnet_fast
from bcnet_fast.config import Config
from bcnet_fast.errors import InputError
from bcnet_fast.inference import model as loading
from bcnet_fast.networks.engine.engine import Engine
from bcnet_fast.networks.graph import nearest
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.ops import precision as switches
from bcnet_fast.ops.precision import gpu_products
from bcnet_fast.protocols import DEFAULT
from bcnet_fast.training import trainer as training
from bcnet_fast.training.trainer import Trainer

CPU = torch.device("cpu")
SYSTEMS = {"bcnet": CONFIGS["small"], "bmn": map_config("bmn"), "gtad": map_config("gtad")}
MULTIPLYING = ("mm", "mv", "matmul", "linear", "conv", "dot", "attention", "mkldnn", "bcnet_fast")


class Product(NamedTuple):
    """A product with the switches that were in force when it began."""

    name: str
    dtype: torch.dtype  # of its first tensor
    tf32: bool  # of matrix products and of convolutions, which are alike
    rough_sums: bool  # of 16-bit products


class Products(TorchDispatchMode):
    """Lists every product inside a `with` block, those of a backward too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(part in str(function) for part in MULTIPLYING):
            tf32 = {tf32_of_products(), tf32_of_convolutions()}
            assert len(tf32) == 1, f"{function}: products and convolutions differ"
            first = next(a for a in args if isinstance(a, torch.Tensor))
            self.found.append(Product(str(function), first.dtype, *tf32, any(sums())))
        return function(*args, **(kwargs or {}))


def allow(*names: str) -> None:
    for name in names:
        if hasattr(torch.backends.cuda.matmul, name):
            setattr(torch.backends.cuda.matmul, name, True)


# Settings of a program before it calls the package.
USER: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "matmul precision high": lambda: torch.set_float32_matmul_precision("high"),
    "allow_tf32": lambda: (allow("allow_tf32"), setattr(torch.backends.cudnn, "allow_tf32", True)),
    "no TF32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "16-bit sums": lambda: allow(*SUMS),
}
if NEW:
    USER |= {
        "products by the new name": lambda: set_precision(torch.backends.cuda.matmul),
        "all of CUDA": lambda: set_precision(torch.backends.cudnn),
        "all of PyTorch": lambda: set_precision(torch.backends),
        "IEEE for all of PyTorch": lambda: set_precision(torch.backends, "ieee"),
    }


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    """Leave PyTorch's switches as other tests expect them."""
    before = {name: getattr(torch.backends.cuda.matmul, name, None) for name in SUMS}
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for owner in (torch.backends, torch.backends.cudnn) if NEW else ():
            set_precision(owner, "none")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        for name, value in before.items():
            if value is not None:
                setattr(torch.backends.cuda.matmul, name, value)


@pytest.fixture(params=USER)
def user(request) -> list[Any]:
    """`all_switches` after a program's settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that names are old
        USER[request.param]()
    return all_switches()


def state_of(config: Config) -> dict[str, torch.Tensor]:
    if config.model.name == "bcnet":
        return random_state(config.model)
    return NETWORKS[config.model.name](config.model).state_dict()


def features_of(config: Config) -> torch.Tensor:
    return torch.randn(2, config.model.feature_dim, config.model.window)


def products_of_engine(config: Config, precision: str) -> list[Product]:
    engine = Engine(config.model, state_of(config), CPU, precision, native=False)
    with Products() as products:
        engine(features_of(config))
    return products.found


def products_of_reference(config: Config, precision: str) -> list[Product]:
    model = bcnet_fast.load(config, device="cpu", precision=precision, backend="reference")
    with Products() as products:
        model(features_of(config))
    return products.found


def products_of_training(config: Config, precision: str) -> list[Product]:
    """Products of a step, including its backward."""
    trainer = Trainer(config.override({"train": {"precision": precision}}, "test"), DEFAULT, CPU)
    loss = objective(config.model, [[[2.0, 8.0]], [[5.0, 9.0]]])
    trainer.loss = lambda output, targets, draws: {"total": loss(output)}
    with Products() as products:
        trainer.backward(features_of(config), (), torch.empty(0), [2])
    return products.found


@sweep("products_of", [products_of_engine, products_of_reference, products_of_training])
@pytest.mark.parametrize("name", SYSTEMS)
def test_fp32_multiplies_in_float32_whatever_a_program_has_set(user, name, products_of):
    products = products_of(SYSTEMS[name], "fp32")
    assert any("conv" in p.name for p in products) and len({p.name for p in products}) > 2
    assert not [p for p in products if p.tf32 or p.rough_sums or p.dtype != torch.float32]
    assert all_switches() == user


@pytest.mark.parametrize("tf32", [False, True], ids=["float32", "TF32"])
def test_switches_are_as_before_after_a_block_and_after_an_error(user, tf32):
    with gpu_products(tf32=tf32):
        assert tf32_of_products() is tf32_of_convolutions() is tf32
        assert not any(sums())
        with gpu_products(tf32=not tf32):
            assert tf32_of_products() is tf32_of_convolutions() is not tf32
        assert tf32_of_products() is tf32_of_convolutions() is tf32
    assert all_switches() == user
    with pytest.raises(KeyError), gpu_products(tf32=tf32):
        raise KeyError
    assert all_switches() == user


@pytest.mark.skipif(not NEW, reason="older than PyTorch 2.9: the switches are independent")
@pytest.mark.slow  # a process of its own
def test_a_switch_that_follows_a_general_one_goes_on_doing_so():
    """In a process of its own: PyTorch's defaults follow, but a switch that was set explicitly does not."""
    program = """
import contextlib, itertools, sys, torch
sys.path.append("tests")
from helpers.precision_switches import all_switches, set_precision
from bcnet_fast.ops.precision import gpu_products

def later(general, start, block):
    set_precision(general, start)
    with block:
        pass
    set_precision(general, "ieee")
    values = all_switches()
    set_precision(general, "none")
    return values

for general, start in itertools.product((torch.backends, torch.backends.cudnn), ("none", "tf32")):
    expected = later(general, start, contextlib.nullcontext())
    for tf32 in (False, True):
        found = later(general, start, gpu_products(tf32))
        assert found == expected, (general, start, tf32, found, expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_pytorch_before_2_9_has_other_switches(monkeypatch):
    rough = dict.fromkeys(SUMS[:2], True)  # and only two of these
    matmul, cudnn = SimpleNamespace(allow_tf32=True, **rough), SimpleNamespace(allow_tf32=True)
    backends = SimpleNamespace(cuda=SimpleNamespace(matmul=matmul), cudnn=cudnn)
    monkeypatch.setattr(switches, "torch", SimpleNamespace(backends=backends))
    for tf32 in (False, True):
        with pytest.raises(KeyError), gpu_products(tf32=tf32):
            assert matmul.allow_tf32 is cudnn.allow_tf32 is tf32
            assert not any(getattr(matmul, name) for name in rough)
            raise KeyError
        assert vars(matmul) == {"allow_tf32": True, **rough} and vars(cudnn) == {"allow_tf32": True}


# ---- The layers that stay in float32


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_the_frame_level_begins_in_float32(precision, monkeypatch):
    """Its convolutions and its attention unit. Everything else has the precision that was asked for."""
    config = SYSTEMS["bcnet"]
    engine = Engine(config.model, state_of(config), CPU, precision, native=False)
    network, kernels, begins = engine.network, engine.kernels, []
    original = kernels.feed_forward_each

    def what_follows(*arguments: Any, **options: Any) -> torch.Tensor:
        begins.append(len(products.found))
        return original(*arguments, **options)

    monkeypatch.setattr(kernels, "feed_forward_each", what_follows)
    with kernels.arithmetic(), torch.inference_mode(), Products() as products:
        network._boundary_level(features_of(config))
        boundary = len(products.found)
        network._frame_level(features_of(config))
    careful, others = products.found[boundary : begins[0]], products.found[:boundary] + products.found[begins[0] :]
    streams = len(network.frame_positions)
    assert sum("conv" in p.name for p in careful) == 3 * streams
    assert sum("attention" in p.name for p in careful) == streams
    assert {(p.dtype, p.tf32) for p in careful} == {(torch.float32, False)}
    dtype = {"tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert {(p.dtype, p.tf32) for p in others} == {(dtype, precision == "tf32")}
    assert not any(p.rough_sums for p in products.found)
    assert others[-1].name.startswith("aten.matmul") and len(others) > boundary > 10


@pytest.mark.parametrize("part", ["engine", "training"])
def test_the_graph_of_g_tad_is_built_in_float32(part, monkeypatch):
    """Distances are differences of larger numbers. Products elsewhere are in TF32."""
    place = "engine.gtad.nearest" if part == "engine" else "trainable.gtad.graph_of"
    found = []
    monkeypatch.setattr(f"bcnet_fast.networks.{place}", lambda *a: found.append(tf32_of_products()) or nearest(*a))
    monkeypatch.setattr(training, "require_units", lambda *_: None)
    products_of = products_of_engine if part == "engine" else products_of_training
    products = products_of(SYSTEMS["gtad"], "tf32")
    assert len(found) >= 3 and not any(found)
    exact = [p for p in products if not p.tf32]
    assert len(exact) == len(found) and len(products) > 3 * len(exact)


@pytest.mark.parametrize("name", ["bcnet", "bmn"])
def test_training_in_tf32_uses_it_everywhere(name, user, monkeypatch):
    monkeypatch.setattr(training, "require_units", lambda *_: None)
    products = products_of_training(SYSTEMS[name], "tf32")
    assert products and all(p.tf32 and not p.rough_sums for p in products)
    assert all_switches() == user


# ---- Devices


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs of some compute capability, of which the second is the current one; nothing runs on them."""

    def install(capability: tuple[int, int]) -> list[tuple[Any, ...]]:
        made: list[tuple[Any, ...]] = []
        for name, value in {
            "is_available": True,
            "device_count": 2,
            "current_device": 1,
            "get_device_capability": capability,
            "get_device_name": "Some GPU",
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
        monkeypatch.setattr(loading, "Engine", lambda *a, **options: made.append((*a[2:], options["native"])))
        return made

    return install


@pytest.mark.parametrize("name", ["cuda", "auto", torch.device("cuda")], ids=str)
def test_a_network_knows_the_index_of_its_gpu(gpus, name):
    made = gpus((8, 0))
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        model = bcnet_fast.load(SYSTEMS["bmn"], device=name, precision=precision)
        assert model.device == made[-1][0] == torch.device("cuda", 1)
        assert made[-1][1:] == (precision, False)
    assert loading.resolve_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_a_gpu_without_the_units_is_refused(gpus, precision):
    made = gpus((7, 5))
    message = rf"precision is '{precision}' on Some GPU of compute capability 7.5, expected 8.0 or later"
    with pytest.raises(InputError, match=message):
        bcnet_fast.load(SYSTEMS["bcnet"], device="cuda", precision=precision)
    config = SYSTEMS["bcnet"].override({"train": {"precision": precision}}, "test")
    with pytest.raises(InputError, match=message):
        Trainer(config, DEFAULT, torch.device("cuda", 1))
    bcnet_fast.load(SYSTEMS["bcnet"], device="cuda", precision="fp16")
    assert len(made) == 1


def test_a_cpu_has_no_tf32():
    with pytest.raises(InputError, match="precision is 'tf32' on cpu, expected a CUDA device"):
        bcnet_fast.load(SYSTEMS["bcnet"], device="cpu", precision="tf32")
    with pytest.raises(InputError, match="precision is 'tf32' on cpu, expected a CUDA device"):
        Trainer(SYSTEMS["bcnet"].override({"train": {"precision": "tf32"}}, "test"), DEFAULT, CPU)
