"""The emulation of a GPU's products (bench/support/gpu_arithmetic.py) against roundings worked out by hand."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.networks import BMN, CONFIGS, GTAD, TOLERANCES, difference, random_state
from support import gpu_arithmetic

from bcnet_fast import ops
from bcnet_fast.networks.engine.engine import Engine
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.ops.precision import gpu_products
from bcnet_fast.ops.sampling_plan import interpolated_plan

UNIT = 2.0**-10  # the last place of TF32 at 1
LAST = 2.0**-23  # that of float32
# 1 and almost two thirds of a unit, and half of one: float32 can hold it and TF32 cannot.
TIE, ABOVE, BELOW = 1 + UNIT / 2, 1 + UNIT - LAST, 1 + UNIT / 2 - LAST


@pytest.fixture
def gpu() -> ModuleType:
    return gpu_arithmetic


def numbers(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("value", "nearest", "truncated"),
    [
        (1.0, 1.0, 1.0),
        (-1 - UNIT, -1 - UNIT, -1 - UNIT),
        (TIE, 1 + UNIT, 1.0),  # to even it would be 1
        (-TIE, -1 - UNIT, -1.0),
        (1 + 1.5 * UNIT, 1 + 2 * UNIT, 1 + UNIT),
        (BELOW, 1.0, 1.0),
        (ABOVE, 1 + UNIT, 1.0),
        (2 - LAST, 2.0, 2 - UNIT),
        (0.75 * 2.0**-126 * UNIT, 2.0**-126 * UNIT, 0.0),  # no normal number
        ((2 - LAST) * 2.0**127, math.inf, (2 - UNIT) * 2.0**127),
        (-math.inf, -math.inf, -math.inf),
        (0.0, 0.0, 0.0),
    ],
)
def test_tf32_has_ten_bits_of_mantissa(gpu, value, nearest, truncated):
    assert gpu.nearest_tf32(numbers(value)).item() == nearest
    assert gpu.truncated_tf32(numbers(value)).item() == truncated


def test_what_is_no_number_stays_so(gpu):
    for bits in (0x7F800001, 0x7FFFFFFF, -1):
        nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
        assert gpu.nearest_tf32(nan).isnan().all() and gpu.truncated_tf32(nan).isnan().all()


SQUARE = TIE * TIE  # exact in float64, and more than float32 can hold
PRODUCTS = {
    "linear": lambda x: F.linear(x.view(1, 1), x.view(1, 1)),
    "linear, bias": lambda x: F.linear(x.view(1, 1), x.view(1, 1), torch.zeros(1, dtype=x.dtype)),
    "linear, batch": lambda x: F.linear(x.view(1, 1, 1), x.view(1, 1)),
    "matmul": lambda x: x.view(1, 1) @ x.view(1, 1),
    "bmm": lambda x: torch.bmm(x.view(1, 1, 1), x.view(1, 1, 1)),
}
CONVOLUTIONS = {
    "conv1d": lambda x: F.conv1d(x.view(1, 1, 1), x.view(1, 1, 1)),
    "conv1d, bias": lambda x: F.conv1d(x.view(1, 1, 1), x.view(1, 1, 1), torch.zeros(1, dtype=x.dtype)),
    "conv2d": lambda x: F.conv2d(x.view(1, 1, 1, 1), x.view(1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", [*PRODUCTS, *CONVOLUTIONS])
def test_the_switches_at_the_moment_decide_about_tf32(gpu, name):
    function = {**PRODUCTS, **CONVOLUTIONS}[name]
    with torch.inference_mode(), gpu.GPUArithmetic():
        for tf32, expected in ((False, np.float32(SQUARE)), (True, (1 + UNIT) ** 2), (False, np.float32(SQUARE))):
            with gpu_products(tf32=tf32):
                assert function(numbers(TIE)).item() == expected
        with gpu_products(tf32=True):
            assert function(numbers(TIE, dtype=torch.float64)).item() == SQUARE


def test_convolutions_have_a_switch_of_their_own(gpu):
    """PyTorch's defaults: convolutions alone use TF32."""
    found = {}
    with torch.inference_mode(), gpu.GPUArithmetic():
        for name, function in {**PRODUCTS, **CONVOLUTIONS}.items():
            found[name] = function(numbers(TIE)).item() == (1 + UNIT) ** 2
    assert found == dict.fromkeys(PRODUCTS, False) | dict.fromkeys(CONVOLUTIONS, True)


# Above 2048, float16 holds even numbers alone; above 256, bfloat16 does.
HALVES = [pytest.param(torch.float16, 2048.0, id="float16"), pytest.param(torch.bfloat16, 256.0, id="bfloat16")]


@pytest.mark.parametrize(("dtype", "large"), HALVES)
def test_sixteen_bits_are_summed_in_float32_and_rounded_once(gpu, dtype, large):
    row, ones = numbers(large, *[1.0] * 3, dtype=dtype).view(1, 4), torch.ones(1, 4, dtype=dtype)
    three = numbers(large, 1.0, 0.0, 0.0, dtype=dtype).view(1, 4)
    with torch.inference_mode(), gpu.GPUArithmetic():
        assert F.linear(row, ones).item() == large + 4  # from large + 3, a tie; in its own dtype it would stay large
        # The bias of a linear layer is added before the rounding, that of a convolution after it.
        assert F.linear(three, ones, ones[0, :1]).item() == large + 2
        assert F.conv1d(three.view(1, 4, 1), ones.view(1, 4, 1), ones[0, :1]).item() == large


@pytest.mark.parametrize(("dtype", "large"), HALVES)
def test_a_projection_rounds_what_it_keeps_in_memory(gpu, dtype, large):
    """The projected snippets, or the sampled features: here, a mean of two snippets."""
    plan = interpolated_plan(np.array([[0.0, 1.0]]), 2, bins=1, points_per_bin=2)
    features = torch.tensor([[[large, large], [1.0, 2.0]]], dtype=dtype)  # [B, C, T]
    weight = torch.ones(1, 2, 1, dtype=dtype)
    with torch.inference_mode(), gpu.GPUArithmetic():
        found = {s: ops.anchor_projection(features, plan, weight, strategy=s).item() for s in ("project", "gather")}
        assert ops.anchor_sampling(features, plan).flatten().tolist() == [large, 1.5]
    # Snippets give large + 1, rounded to large, and large + 2. Their mean is rounded again.
    assert found == {"project": large, "gather": large + 2}


def test_triton_truncates_and_libraries_round_to_nearest(gpu):
    plan = interpolated_plan(np.array([[0.0, 0.0]]), 1, bins=1, points_per_bin=1)
    x, one = numbers(ABOVE).view(1, 1, 1), torch.ones(1, 1, 1)
    with torch.inference_mode(), gpu.GPUArithmetic(), gpu_products(tf32=True):
        assert ops.anchor_projection(x, plan, one, strategy="gather").item() == 1.0
        assert ops.anchor_projection(x, plan, one, strategy="project").item() == 1 + UNIT  # by cuBLAS
        assert ops.anchor_sampling(x, plan).item() == np.float32(ABOVE)  # no product of matrices
        one, x = one[None], x[None]
        assert [y.item() for y in ops.difference_attention(one, one, x, -x)] == [1.0, -1.0]
        assert F.scaled_dot_product_attention(one, one, x).item() == 1 + UNIT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_attention_rounds_the_weights_before_it_divides(gpu, dtype):
    logit = -0.14  # one for which the order of rounding and division matters in both dtypes
    query, key = torch.ones(1, 1, 1, 1, dtype=dtype), numbers(0.0, logit, dtype=dtype).view(1, 1, 2, 1)
    value = numbers(0.0, 1.0, dtype=dtype).view(1, 1, 2, 1)
    weight = math.exp(key[0, 0, 1].item())
    rounded = numbers(weight, dtype=dtype).item()
    expected = numbers(rounded / (1 + weight), dtype=dtype).item()
    assert expected != numbers(weight / (1 + weight), dtype=dtype).item()
    with torch.inference_mode(), gpu.GPUArithmetic():
        assert F.scaled_dot_product_attention(query, key, value).item() == expected
        assert ops.difference_attention(query, key, value, -value)[1].item() == -expected


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.mv(x, x[0]),
        lambda x: torch.dot(x[0], x[0]),
        lambda x: torch.baddbmm(x[None], x[None], x[None]),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
        lambda x: torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], ""),
    ],
    ids=["mv", "dot", "baddbmm", "causal attention", "oneDNN"],
)
def test_what_is_not_emulated_is_refused(gpu, function):
    with pytest.raises(NotImplementedError, match="emulation"), torch.inference_mode(), gpu.GPUArithmetic():
        function(torch.ones(3, 3))


MODELS = {"bcnet": CONFIGS["many"].model, "bmn": BMN, "gtad": GTAD}


@pytest.mark.parametrize("name", MODELS)
def test_whole_networks_run_and_are_as_exact_as_their_precision(gpu, name):
    config = MODELS[name]
    if name == "bcnet":
        state = random_state(config)
    else:
        state = {n: t + 0.1 * torch.randn(t.shape) for n, t in NETWORKS[name](config).state_dict().items()}
    features = torch.randn(2, config.feature_dim, config.window)
    exact = Engine(config, state, torch.device("cpu"), "fp64", native=False)(features)
    errors = {}
    for precision in ("fp32", "tf32", "fp16", "bf16"):
        engine = Engine(config, state, torch.device("cpu"), precision, native=False)
        with gpu.GPUArithmetic():
            errors[precision] = difference(engine(features), exact)
    assert errors["fp32"] < TOLERANCES["fp32"] and 10 * errors["fp32"] < errors["tf32"] < 0.2
    assert errors["fp16"] < 0.2 and errors["fp16"] < errors["bf16"] < 0.6
