"""anchor_sampling and its projection: the Triton kernels against the dense sampling matrices in float64.

On a machine with a GPU the kernels run there; elsewhere in Triton's interpreter (see conftest.py).
"""

from __future__ import annotations

import csv
import itertools
import mmap

import numpy as np
import pytest
import torch
from helpers.accuracy import BOUNDS, dtype, error
from helpers.paths import ROOT
from helpers.sweeps import sweep

from bcnet_fast.errors import BackendError
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import bmn_intervals, gtad_regions
from bcnet_fast.ops import anchor_projection, anchor_sampling
from bcnet_fast.ops.backends import use_backend
from bcnet_fast.ops.sampling_plan import SamplingPlan, aligned_plan, interpolated_plan

pytest.importorskip("triton", minversion="3.2")
kernels = pytest.importorskip("bcnet_fast.kernels.anchor_sampling")
common = pytest.importorskip("bcnet_fast.kernels._common")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Plan, and B, C, O.
CASES = {
    # 10 of 21 bins empty, and half of the anchors
    "bmn-T7-N3": (lambda: interpolated_plan(bmn_intervals(7), 7, 3), (1, 19, 33)),
    "bcnet-T13-N2": (lambda: interpolated_plan(make_anchors(13, 9), 13, 2), (3, 64, 7)),
    "two-sources-T7": (lambda: aligned_plan(gtad_regions(7, 5), 7, (2, 1)), (1, 16, 80)),
    # the bin of the second sequence reads 23 snippets, those of the first 4 to 9
    "long-bin-T23": (lambda: aligned_plan(np.array([[0.0, 23], [5, 9], [-9, 3]]), 23, (3, 1)), (1, 5, 16)),
    "all-ones": (lambda: interpolated_plan(np.array([[0, 0]]), 1, 1, 1), (1, 1, 1)),
    "all-empty": (lambda: interpolated_plan(np.full((3, 2), np.nan), 5, 2), (1, 4, 3)),
}


@pytest.fixture(autouse=True)
def _triton():
    with use_backend("triton"):
        yield


# More anchors and snippets than these, which take as long as the others together.
LONG = ("bcnet-T13-N2", "long-bin-T23")


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in CASES])
def case(request):
    return inputs(request.param)


def inputs(name: str):
    """Plan, features, weight and bias."""
    build, (batch, channels, outputs) = CASES[name]
    plan = build()
    sources = plan.bins[1:] and (len(plan.bins),)
    features = torch.randn(batch, *sources, channels, plan.length)
    return plan, features, torch.randn(sum(plan.bins), channels, outputs), torch.randn(outputs)


def sampled(features, plan):
    """anchor_sampling in float64, from the dense matrices."""
    source = torch.repeat_interleave(torch.arange(len(plan.bins)), torch.tensor(plan.bins))
    rows = features.double().view(len(features), len(plan.bins), *features.shape[-2:])[:, source]
    return torch.einsum("pnt,bnct->bpnc", plan.dense().double(), rows)


def run(function, leaves, plan, grad=None, **options):
    """The output and the gradients of the leaves, and the gradient that was given to the output."""
    leaves = [t.detach().to(DEVICE).requires_grad_() for t in leaves]
    out = function(leaves[0], plan.to(DEVICE), *leaves[1:], **options)
    grad = torch.randn(out.shape).to(out) if grad is None else grad
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)], grad


def check_sampling(plan, features):
    got, grad = run(anchor_sampling, [features], plan)
    leaf = features.double().requires_grad_()
    out = sampled(leaf, plan)
    expected = out.detach(), *torch.autograd.grad(out, leaf, grad.cpu().double())
    for result, truth in zip(got, expected, strict=True):
        assert result.dtype == features.dtype and result.shape == truth.shape
        assert error(result, truth) < BOUNDS[features.dtype]


def check_projection(plan, features, weight, bias, **options):
    leaves = [features, weight] if bias is None else [features, weight, bias]
    got, grad = run(anchor_projection, leaves, plan, **options)
    exact = [t.double().requires_grad_() for t in leaves]
    out = torch.einsum("bpnc,nco->bpo", sampled(exact[0], plan), exact[1]) + sum(exact[2:])
    if options.get("relu"):
        # Where rounding decides whether an output is positive, gradients are those of the output that was given.
        out = out * (got[0] > 0).cpu()
        assert (got[0] >= 0).all()
    expected = out.detach(), *torch.autograd.grad(out, exact, grad.cpu().double())
    for result, truth in zip(got, expected, strict=True):
        assert result.dtype == features.dtype and result.shape == truth.shape
        assert error(result, truth) < BOUNDS[features.dtype]


@sweep("dtype", [dtype(torch.float32), dtype(torch.float16)])
def test_sampling_matches_float64(case, poisoned, dtype):
    plan, features, *_ = case
    check_sampling(plan, features.to(dtype))


@sweep("dtype", [dtype(torch.float32), dtype(torch.float16)])
@pytest.mark.parametrize("strategy", ["project", "gather"])
def test_projection_matches_float64(case, poisoned, dtype, strategy):
    plan, *tensors = case
    check_projection(plan, *(t.to(dtype) for t in tensors), relu=True, strategy=strategy)


def test_bfloat16_matches_float64(poisoned):
    # Without "gather": tl.dot on bfloat16 is wrong in Triton's interpreter.
    plan, *tensors = inputs("two-sources-T7")
    tensors = [t.bfloat16() for t in tensors]
    check_sampling(plan, tensors[0])
    check_projection(plan, *tensors, strategy="project")


@pytest.mark.parametrize("strategy", ["project", "gather"])
def test_projection_needs_no_bias_and_no_relu(poisoned, strategy):
    plan, features, weight, _ = inputs("two-sources-T7")
    check_projection(plan, features, weight, None, strategy=strategy)


@sweep("strategy", ["gather", "project"])
def test_takes_any_strides(strategy):
    plan, features, weight, bias = inputs("two-sources-T7")
    spread = [
        features.transpose(-1, -2).contiguous().transpose(-1, -2),
        weight.mT.contiguous().mT,
        bias.repeat_interleave(2)[::2],
    ]
    assert not any(t.is_contiguous() for t in spread)
    plain, grad = run(anchor_projection, [features, weight, bias], plan, strategy=strategy)
    leaves = [t.to(DEVICE).requires_grad_() for t in spread]
    assert not any(t.is_contiguous() for t in leaves)
    out = anchor_projection(leaves[0], plan.to(DEVICE), *leaves[1:], strategy=strategy)
    got = [out, *torch.autograd.grad(out, leaves, grad.mT.contiguous().mT)]
    for result, expected in zip(got, plain, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_repeats_to_the_bit():
    plan, *tensors = inputs("bmn-T7-N3")
    tensors = [t.half() for t in tensors]
    for function, leaves, options in (
        (anchor_sampling, tensors[:1], {}),
        (anchor_projection, tensors, {"strategy": "project"}),
        (anchor_projection, tensors, {"strategy": "gather", "relu": True}),
    ):
        first, grad = run(function, leaves, plan, **options)
        second, _ = run(function, leaves, plan, grad, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@sweep(
    ("target", "processors", "tf32", "dtype"),
    [
        (75, 0, False, torch.float16),
        (80, 10**9, False, torch.float16),
        (75, 10**9, False, torch.float32),
        (80, 0, True, torch.float32),
    ],
    ids=["sm75-fp16-full", "sm80-fp16-small", "sm75-fp32-small", "sm80-tf32-full"],
)
@pytest.mark.skipif(DEVICE == "cuda", reason="variants for other targets and grids than those of the GPU at hand")
def test_other_variants_agree(monkeypatch, target, processors, tf32, dtype):
    monkeypatch.setattr(kernels, "target_of", lambda device: target)
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: processors)
    # The interpreter multiplies in full precision all the same.
    monkeypatch.setattr(common, "float32_precision", lambda: "tf32" if tf32 else "ieee")
    plan, *tensors = inputs("two-sources-T7")
    tensors = [t.to(dtype) for t in tensors]
    check_sampling(plan, tensors[0])
    for strategy in ("project", "gather"):
        check_projection(plan, *tensors, relu=True, strategy=strategy)


@pytest.mark.parametrize("strategy", ["project", "gather"])
def test_nan_reaches_those_that_read_it(strategy):
    plan, features, weight, bias = inputs("bmn-T7-N3")
    features[0, 0, 3] = torch.nan
    reads = plan.dense()[:, :, 3].any(1)
    assert 0 < reads.sum() < len(reads)
    (out, *_), _ = run(anchor_projection, [features, weight, bias], plan, relu=True, strategy=strategy)
    assert torch.equal(out[0].isnan().all(1).cpu(), reads) and torch.equal(out.isnan().any(2)[0].cpu(), reads)


@pytest.mark.skipif(DEVICE == "cuda", reason="needs 4 GiB of address space, of memory on a GPU")
def test_offsets_pass_32_bits():
    # The pages between the few rows that are touched take no memory.
    rows, columns = 2**28, 16
    memory = torch.frombuffer(mmap.mmap(-1, 2 * rows * columns), dtype=torch.float16).view(1, rows, columns)
    memory[0, -2:] = torch.randn(2, columns)
    weights = torch.tensor([0.25, 0.5])
    expected = (weights[:, None] * memory[0, -2:].float()).sum(0)

    def int32(*values):
        return torch.tensor(values, dtype=torch.int32)

    matrix, transpose = (int32([rows - 2]), int32(0, 2), weights), (int32(0, 2), int32(rows - 2, rows - 1), weights)
    plan = SamplingPlan(rows, (1,), 2, *matrix, *transpose, order=int32(0))
    gathered, sampled, listed = (torch.empty(1, *ones, 16, dtype=torch.float16) for ones in ((1,), (1, 1), (1, 1)))
    kernels.launch_gather(memory[None], plan, None, False, gathered)
    kernels.launch_sampling(memory[None], plan, sampled)
    kernels.launch_gather_backward(memory, plan, listed)
    assert all(error(out.flatten(), expected.double()) < 1e-3 for out in (gathered, sampled, listed))


def test_without_tensor_cores_products_are_of_float32_copies(monkeypatch, poisoned):
    # Products of bfloat16 tiles themselves are wrong in Triton's interpreter.
    monkeypatch.setattr(kernels, "target_of", lambda device: 75)
    plan, *tensors = inputs("bcnet-T13-N2")
    check_projection(plan, *(t.bfloat16() for t in tensors), strategy="gather")


def test_double_precision_has_no_kernel():
    plan, *tensors = inputs("all-ones")
    plan, (features, weight, bias) = plan.to(dtype=torch.float64), (t.double() for t in tensors)
    with pytest.raises(BackendError, match="float64"):
        anchor_sampling(features, plan)
    with pytest.raises(BackendError, match="float64"):
        anchor_projection(features, plan, weight, bias)


def test_table_of_compiled_kernels_covers_every_variant():
    with (ROOT / "bench" / "results" / "aot.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["kernel"].startswith("anchor_sampling")]
    assert all(r["spill_bytes"] == "0" and r["blocks_per_sm"] != "0" for r in rows)
    compiled = {(r["kernel"], r["tiles"], r["warps"], r["stages"], r["target"]) for r in rows}
    for (name, _), variants in kernels.CONFIGS.items():
        for config, target in itertools.chain.from_iterable(((c, t) for t in c.targets) for c in variants):
            tiles = "x".join(str(v) for v in config.tiles.values())
            key = f"anchor_sampling_{name}", tiles, str(config.num_warps), str(config.num_stages), f"sm_{target}"
            assert key in compiled


def test_gradients_of_large_batches_are_rounded_once():
    plan = interpolated_plan(make_anchors(4, 3), 4, 2)
    features, weight = torch.randn(40, 3, 4).half(), torch.randn(2, 3, 5).half()
    (_, of_features, of_weight), grad = run(anchor_projection, [features, weight], plan)
    expected = torch.einsum("bpnc,bpo->nco", sampled(features, plan), grad.cpu().double())
    assert error(of_weight, expected) < 5e-4
    expected = torch.einsum("pnt,nco,bpo->bct", plan.dense().double(), weight.double(), grad.cpu().double())
    assert error(of_features, expected) < BOUNDS[torch.float16]
