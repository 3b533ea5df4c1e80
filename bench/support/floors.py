"""The least work that a network has after the exact rewrites, and the rate at which this processor multiplies.

The work is that of the matrix products and of the gathering of projected samples; softmax, LayerNorm and activations
are left out, and so is memory, so that the floor errs towards too little. Savings of Strassen's algorithm have a
separate function. The rate is that of large square matrices, by the fastest code that PyTorch has for the precision:
its own product, or oneDNN with weights packed beforehand.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable

import torch

from bcnet_fast.config import BCNetConfig, BMNConfig, GTADConfig, ModelConfig, MUSESConfig, PGCNConfig
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import proposal_map, sampling_plan
from bcnet_fast.networks.engine.native import STRASSEN_FROM
from bcnet_fast.networks.reference.muses import BINS, BRANCHES, INNER_BINS, tap_offsets
from bcnet_fast.ops.sampling_plan import interpolated_plan


def network_work(model: ModelConfig, matched: float = 1.0) -> dict[str, float]:
    """Multiply-adds of one window by stage; `matched` is the share of BCNet's anchors that a boundary pair matches."""
    return bcnet_work(model, matched) if isinstance(model, BCNetConfig) else map_work(model)


def map_work(model: BMNConfig | GTADConfig) -> dict[str, float]:
    """Work of BMN and G-TAD on valid cells; the others, which convolutions read across the diagonal, are overhead."""
    t, width, sampled, cell = model.window, model.base_channels, model.sampled_channels, model.map_channels
    first = 3 * t * model.feature_dim * width / math.gcd(4, model.feature_dim, width)
    if isinstance(model, BMNConfig):
        sequence = first + 3 * 3 * t * width * width / math.gcd(4, width) + 2 * t * width + 3 * t * width * width
        kernel = 3
    else:
        hidden, groups, edges = model.block_channels, model.block_groups, model.neighbours
        # The first layer on edges is made for the nodes, of which there are fewer.
        along = 2 * width * hidden + 3 * hidden * hidden / groups
        across = 2 * width * hidden + edges * (hidden * hidden / groups + hidden * width)
        sequence = first + 4 * t * (along + across) + 3 * t * t * width + 2 * t * width
        kernel = model.map_kernel
    cells = proposal_map(model).valid.ravel().nonzero()[0]
    plan = sampling_plan(model, cells)
    bins, count = plan.first.shape[1], len(cells)
    projection = min(bins * t * width * sampled + plan.taps * sampled, count * bins * width * sampled)
    scores = 3 if model.background_constraint else 2
    layers = count * (sampled * cell + 2 * kernel * kernel * cell * cell + scores * cell)
    return {"sequence": sequence, "sampling and its projection": projection, "layers over the map": layers}


def bcnet_work(model: BCNetConfig, matched: float = 1.0) -> dict[str, float]:
    """Multiply-adds of one window by stage, where `matched` is the share of anchors that a boundary pair matches."""
    t, d, inner, hidden = model.window, model.width, model.heads * model.head_dim, model.feedforward
    anchors = make_anchors(model.window, model.max_duration)
    taps = interpolated_plan(anchors, t, model.bins, model.points_per_bin).taps
    p, clip = len(anchors), model.bins * model.clip_channels

    def convolution(channels_in: int, channels_out: int) -> float:
        return 3 * t * channels_in * channels_out / math.gcd(4, channels_in, channels_out)

    def of_samples(outputs: int) -> int:
        """A linear layer on the sampled vectors of all anchors: projected before they are gathered, or after."""
        return min(t * clip * outputs + taps * outputs, p * clip * outputs)

    base = model.base_channels
    backbone = convolution(model.feature_dim, base) + convolution(base, base) + convolution(base, d)

    attention = 3 * t * d * inner + 2 * t * t * inner + t * inner * d
    feedforward = 2 * t * d * hidden
    # Three attentions a layer; in the first one F_i is F_o, so two of them are the same.
    boundary = (3 * model.boundary_layers - 1) * attention + model.boundary_layers * feedforward + 3 * t * d

    # Both streams start from the same sequence, so they share one self-attention.
    difference = 4 * t * d * inner + 3 * t * t * inner + 2 * t * inner * d
    frame = attention + 4 * feedforward + difference + 2 * t * d + 2 * convolution(d, model.clip_channels)

    sampling = taps * model.clip_channels
    self_attention = of_samples(3 * inner) + 2 * p * p * inner + p * inner * clip
    # W1 LN(out + x) = (W1 out + W1 x - mean W1 1) / std: W1 times the output projection is made once, and W1 x is a
    # linear layer on samples.
    first_layer = min(p * inner * hidden + of_samples(hidden), p * clip * hidden)
    keys_and_values = 3 * p * clip * inner
    every = 2 * (sampling + self_attention + first_layer + p * hidden * clip) + keys_and_values

    q = matched * p
    needed = q * clip * inner + 3 * q * p * inner + 2 * q * inner * clip + 4 * q * clip * hidden + 3 * q * clip
    return {
        "backbones": 2 * backbone,
        "boundary prediction": boundary,
        "frame level": frame,
        "clip level, every anchor": every,
        "clip level, matched anchors": needed,
    }


def attention_work(model: BCNetConfig, matched: float = 1.0) -> float:
    """The share of attention: products of queries with keys and of maps with values, float32 even in int8."""
    t, inner, p = model.window, model.heads * model.head_dim, len(make_anchors(model.window, model.max_duration))
    frames = 2 * (3 * model.boundary_layers - 1) + 2 + 3
    return inner * (frames * t * t + 4 * p * p + 3 * matched * p * p)


def strassen_work(model: BCNetConfig, matched: float = 1.0) -> float:
    """The share of products with large weights, of which C++ in float32 saves about an eighth (Rewrites.strassen).

    For networks all of whose sizes are large; none is counted for others.
    """
    t, d, inner, hidden = model.window, model.width, model.heads * model.head_dim, model.feedforward
    p, clip, layers = (
        len(make_anchors(model.window, model.max_duration)),
        model.bins * model.clip_channels,
        model.boundary_layers,
    )
    if min(d, inner, hidden, clip) < STRASSEN_FROM:
        return 0.0
    sequence = 4 * t * d * inner * (3 * layers - 1) + 2 * t * d * hidden * (layers + 4) + 6 * t * d * inner
    every = 2 * p * (inner * clip + inner * hidden + hidden * clip) + 3 * p * clip * inner
    return sequence + every + matched * p * (3 * clip * inner + 4 * clip * hidden)


def float_products(size: int, dtype: torch.dtype) -> list[Callable[[], torch.Tensor]]:
    """Products of two matrices by each way that PyTorch has for them here, which have run once."""
    return _usable(_float_products(size, dtype))


def _usable(makers: list[Callable[[], Callable]]) -> list[Callable[[], torch.Tensor]]:
    usable = []
    for make in makers:
        # Skip products that this build of PyTorch, or this processor, lacks.
        with contextlib.suppress(AttributeError, RuntimeError):
            call = make()
            call()
            usable.append(call)
    return usable


def _float_products(size: int, dtype: torch.dtype) -> list[Callable[[], Callable]]:
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def packed():
        weight = torch.ops.mkldnn._reorder_linear_weight(b, size)
        return lambda: torch.ops.mkldnn._linear_pointwise(a, weight, None, "none", [], "")

    return [lambda: functools.partial(torch.mm, a, b, out=out), packed]


def _int8_products(size: int) -> list[Callable[[], Callable]]:
    a = torch.randint(0, 128, (size, size), dtype=torch.uint8)
    b = torch.randint(-127, 128, (size, size), dtype=torch.int8)

    def packed():
        weight = torch.ops.onednn.qlinear_prepack(b, [size, size])
        scales, zeros = torch.ones(size), torch.zeros(size, dtype=torch.int64)
        options = None, 1.0, 0, torch.float32, "none", [], ""
        return lambda: torch.ops.onednn.qlinear_pointwise(a, 0.1, 3, weight, scales, zeros, *options)

    return [lambda: functools.partial(torch._int_mm, b, b), packed]


@functools.cache
def cpu_tflops(precision: str, seconds: float = 0.25) -> float:
    """TFLOP/s of the fastest product in fp32, bf16 or int8 (there integer operations), a multiply-add counted as 2.

    A precision that this processor has no instructions for can be calculated in float32, so float32 is the least.
    """
    best = 0.0 if precision == "fp32" else cpu_tflops("fp32", seconds)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for size in (1024, 2048):
        makers = _int8_products(size) if precision == "int8" else _float_products(size, dtypes[precision])
        for call in _usable(makers):
            until = time.perf_counter() + seconds
            while (started := time.perf_counter()) < until:
                call()
                best = max(best, 2e-12 * size**3 / (time.perf_counter() - started))
    return best


def second_stage_work(case: str, proposals: int, rows: int) -> float:
    """Multiply-adds of a second-stage network's products after the exact rewrites, for THUMOS14.

    Sums along edges, cosines and maxima are left out, as are the savings of short filters and Strassen's algorithm.
    """
    if case == "MUSES-Net":
        model = MUSESConfig()
        inner, outer = model.channels
        taps = 2 * max(max(tap_offsets(*branch)) for branch in BRANCHES) + 1
        convolutions = rows * taps * (model.feature_dim * inner + inner * outer)
        bins = BINS + len(range(BINS)[INNER_BINS])
        return convolutions + proposals * model.head_width * (bins * outer + 4 * model.classes + 1)
    model = PGCNConfig()
    heads = (model.feature_dim + model.hidden) * (model.classes + 1) + (3 * model.feature_dim + model.hidden) * 3 * (
        model.classes
    )
    return proposals * (4 * model.feature_dim * model.hidden + heads)
