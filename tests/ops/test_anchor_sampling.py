"""anchor_sampling and anchor_projection on the CPU, against float64 sums over the dense weights.

The Triton kernels are tested in test_anchor_sampling_triton.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.accuracy import BOUNDS, error
from helpers.sampling_plans import PLANS
from helpers.sweeps import sweep
from support.seeded import generator

from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import bmn_intervals, gtad_regions
from bcnet_fast.ops import anchor_projection, anchor_sampling, native, use_backend
from bcnet_fast.ops.anchor_groups import packed_plan
from bcnet_fast.ops.anchor_sampling import cheaper_strategy
from bcnet_fast.ops.sampling_plan import aligned_plan, interpolated_plan

STRATEGIES = ("project", "gather")
# batch, channels, outputs
SIZES = {"one": (1, 1, 1), "prime": (2, 7, 37), "blocks": (1, 64, 64), "past-blocks": (3, 33, 65)}


@pytest.fixture(params=["reference", "native"])
def backend(request):
    if request.param == "native" and native.module is None:
        pytest.skip(native.reason)
    with use_backend(request.param):
        yield request.param


def inputs(plan, size, dtype=torch.float32):
    """features, weight and bias, and gradients of the sampled and of the projected output."""
    batch, channels, outputs = size
    sources = [len(plan.bins)] if len(plan.bins) > 1 else []
    number, anchors = sum(plan.bins), plan.anchors
    shapes = (
        (batch, *sources, channels, plan.length),
        (number, channels, outputs),
        (outputs,),
        (batch, anchors, number, channels),
        (batch, anchors, outputs),
    )
    return [torch.randn(shape).to(dtype) for shape in shapes]


def exact(plan, features, weight, bias, grad_sampled, grad):
    """In float64, from the dense weights: sampled and its gradient; projected with ReLU, and its three gradients."""
    features, weight, bias = leaves = [t.double().requires_grad_() for t in (features, weight, bias)]
    source = torch.repeat_interleave(torch.arange(len(plan.bins)), torch.tensor(plan.bins))
    by_bin = (features if len(plan.bins) > 1 else features[:, None])[:, source]
    sampled = torch.einsum("pnt,bnct->bpnc", plan.dense().double(), by_bin)
    projected = (torch.einsum("bpnc,nco->bpo", sampled, weight) + bias).relu()
    of_sampled = torch.autograd.grad(sampled, features, grad_sampled.double(), retain_graph=True)
    return [sampled, *of_sampled], [projected, *torch.autograd.grad(projected, leaves, grad.double())]


def results(plan, features, weight, bias, grad_sampled, grad, strategy):
    features, weight, bias = leaves = [t.detach().clone().requires_grad_() for t in (features, weight, bias)]
    sampled = anchor_sampling(features, plan)
    projected = anchor_projection(features, plan, weight, bias, relu=True, strategy=strategy)
    return (
        [sampled, *torch.autograd.grad(sampled, features, grad_sampled)],
        [projected, *torch.autograd.grad(projected, leaves, grad)],
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", PLANS)
def test_agrees_with_dense_weights(backend, poisoned, name, size, strategy):
    for dtype in (torch.float32, torch.float64):
        plan = PLANS[name]().to(dtype=dtype)
        given = inputs(plan, size, dtype)
        for got, expected in zip(results(plan, *given, strategy), exact(plan, *given), strict=True):
            for result, value in zip(got, expected, strict=True):
                assert result.dtype == dtype and result.shape == value.shape and result.is_contiguous()
                assert error(result, value) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_precision_sums_in_float32(backend, strategy, dtype):
    plan = PLANS["gtad"]()
    given = inputs(plan, (2, 16, 24), dtype)
    for got, expected in zip(results(plan, *given, strategy), exact(plan, *given), strict=True):
        assert all(error(r, e) < BOUNDS[dtype] and r.dtype == dtype for r, e in zip(got, expected, strict=True))


@pytest.mark.parametrize("instruction_set", native.module.INSTRUCTION_SETS if native.module else [])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_instruction_set_and_number_of_threads(instruction_set, threads):
    for name in ("bcnet", "bmn", "any", "empty"):
        plan = PLANS[name]()
        features, weight, bias, _, grad = inputs(plan, (2, 5, 67))
        rows = features.mT.contiguous()
        projected = torch.einsum("btc,nco->bnto", rows, weight).contiguous()
        packed = packed_plan(plan)
        out, of_projected = torch.empty(grad.shape), torch.empty(projected.shape)
        run = native.module
        run.gather(projected.numpy(), packed, bias.numpy(), out.numpy(), False, threads, instruction_set)
        run.gather_backward(grad.numpy(), packed, of_projected.numpy(), threads, instruction_set)
        dense = plan.dense().double()
        expected = torch.einsum("pnt,bnto->bpo", dense, projected.double()) + bias
        assert error(out, expected) < 1e-6
        assert error(of_projected, torch.einsum("pnt,bpo->bnto", dense, grad.double())) < 1e-6


def test_bits_do_not_depend_on_threads(backend):
    plan = PLANS["gtad"]()
    given = inputs(plan, (2, 40, 130))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(results(plan, *given, "project"))
    finally:
        torch.set_num_threads(before)
    for got in found[1:]:
        # Products are made by PyTorch, which may cut them differently for another number of threads.
        for part, first in zip(got, found[0], strict=True):
            assert all(error(r, e.double()) < 1e-6 for r, e in zip(part, first, strict=True))
    assert all(torch.equal(a, b) for one, two in zip(*found[1:], strict=True) for a, b in zip(one, two, strict=True))


@sweep("strategy", STRATEGIES)
def test_projection_is_that_of_bmn(golden, backend, strategy):
    known = np.load(golden / "sampling" / "bmn_projection.npz")
    names = {"x_3d_p.0.weight": (512, 256, 32, 1, 1), "x_3d_p.0.bias": (512,)}
    draws = {name: generator(101, name).standard_normal(shape) for name, shape in names.items()}
    weight, bias = draws.values()
    weight = (weight * (math.sqrt(2) / math.sqrt(256 * 32))).astype(np.float32)[..., 0, 0]
    bias = (0.05 * bias).astype(np.float32)
    plan = interpolated_plan(bmn_intervals(100), 100)
    # A part of the outputs is stored: every 64th channel.
    weight, bias = torch.from_numpy(weight[::64]).permute(2, 1, 0), torch.from_numpy(bias[::64])
    features = torch.from_numpy(known["p1d_feature"])[None]
    # Sums of 8192 products, of size 1 to 5.
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        given = features.to(dtype), plan.to(dtype=dtype), weight.to(dtype), bias.to(dtype)
        out = anchor_projection(*given, relu=True, strategy=strategy)
        picked = out.double().view(100, 100, -1)[::7, ::7].permute(2, 0, 1)
        torch.testing.assert_close(picked, torch.from_numpy(known["p3d_sub"]), rtol=0, atol=bound)


def test_clip_features_are_laid_out_bin_by_bin(backend):
    plan = PLANS["bcnet"]()
    features = torch.randn(1, 3, plan.length)
    clip = anchor_sampling(features, plan).flatten(2)
    expected = torch.einsum("pnt,ct->pnc", plan.dense(), features[0])
    torch.testing.assert_close(clip[0, 4, 3:6], expected[4, 1])


def test_takes_any_strides(backend):
    plan = PLANS["gtad"]()
    given = inputs(plan, (2, 6, 8))
    strided = [
        given[0].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        given[1].mT.contiguous().mT,
        given[2].repeat_interleave(2)[::2],
        given[3].transpose(1, 3).contiguous().transpose(1, 3),
        torch.ones(()).expand_as(given[4]),
    ]
    assert not any(t.is_contiguous() for t in strided)
    for strategy in STRATEGIES:
        got = results(plan, *strided, strategy)
        plain = results(plan, *(t.contiguous() for t in strided), strategy)
        for one, two in zip(got, plain, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)


def test_no_bias_and_no_relu(backend):
    plan = PLANS["any"]()
    features, weight, *_ = inputs(plan, (1, 5, 9))
    expected = torch.einsum("pnt,bct,nco->bpo", plan.dense(), features, weight)
    for strategy in STRATEGIES:
        out = anchor_projection(features, plan, weight, strategy=strategy)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        assert (out < 0).any()


def test_gradients_agree_with_finite_differences(backend):
    plan = interpolated_plan(make_anchors(9, 6), 9, 3, 2, torch.float64)
    features, weight, bias = (t.requires_grad_() for t in inputs(plan, (2, 2, 3), torch.float64)[:3])
    assert torch.autograd.gradcheck(lambda f: anchor_sampling(f, plan), features)
    for strategy in STRATEGIES:
        project = lambda *t, s=strategy: anchor_projection(t[0], plan, *t[1:], strategy=s)  # noqa: E731
        assert torch.autograd.gradcheck(project, (features, weight, bias))


def test_the_cheaper_strategy_is_chosen():
    bmn = interpolated_plan(bmn_intervals(100), 100)
    few = interpolated_plan(bmn_intervals(100)[[5, 810, 1630, 2450]], 100)
    for device in ("cpu", "cuda"):
        assert cheaper_strategy(bmn, 256, 512, device) == "project"
        assert cheaper_strategy(few, 256, 512, device) == "gather"
    assert cheaper_strategy(aligned_plan(gtad_regions(256, 64), 256), 256, 512, "cpu") == "project"


@sweep(
    ("backend", "name"),
    [("native", "gtad"), ("reference", "gtad"), ("native", "bcnet"), ("reference", "bcnet")],
    indirect=["backend"],
)
def test_operators_pass_opcheck(backend, name):
    plan = PLANS[name]()
    features, weight, bias, grad_sampled, grad = inputs(plan, (2, 5, 8))
    arguments = plan.pack()
    ops = torch.ops.bcnet_fast
    torch.library.opcheck(ops.anchor_sampling, (features.requires_grad_(), *arguments))
    torch.library.opcheck(ops.anchor_sampling_backward, (grad_sampled, *arguments))
    leaves = [t.detach().requires_grad_() for t in (features, weight, bias)]
    for project_first in (True, False):
        torch.library.opcheck(ops.anchor_projection, (*leaves, *arguments, True, project_first))
    torch.library.opcheck(ops.anchor_projection, (*leaves[:2], None, *arguments, False, True))
    torch.library.opcheck(ops.anchor_projection_backward, (grad, features.detach(), weight, *arguments))


def test_compiles_to_one_graph_with_gradients(backend):
    plan = PLANS["gtad"]()
    features, weight, bias, _, grad = inputs(plan, (2, 5, 8))

    def layer(features, weight, bias):
        return anchor_projection(features, plan, weight, bias, relu=True) + anchor_sampling(features, plan).sum()

    found = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        leaves = [t.detach().clone().requires_grad_() for t in (features, weight, bias)]
        out = function(*leaves)
        found.append([out, *torch.autograd.grad(out, leaves, grad)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_exports_with_the_batch_left_open(backend):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.plan = PLANS["bmn"]()
            self.weight = torch.nn.Parameter(torch.randn(4, 5, 8))

        def forward(self, features):
            return anchor_projection(features, self.plan, self.weight, relu=True)

    model = Model()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (torch.randn(2, 5, 23),), dynamic_shapes=shapes)
    other = torch.randn(3, 5, 23)
    assert torch.equal(program.module()(other), model(other))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_autocast_casts_and_does_not_reach_inside(backend, strategy):
    plan = PLANS["gtad"]()
    features, weight, bias, _, grad = given = inputs(plan, (2, 6, 8))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = anchor_projection(features.bfloat16(), plan, weight, bias, strategy=strategy)
        sampled = anchor_sampling(features, plan)
    assert mixed.dtype == torch.bfloat16
    assert error(sampled, exact(plan, *given)[0][0]) < 1e-6
    leaf = features.clone().requires_grad_()
    out = anchor_projection(leaf, plan, weight, bias, relu=True, strategy=strategy)
    with torch.autocast("cpu", torch.bfloat16):
        (gradient,) = torch.autograd.grad(out, leaf, grad)
    assert error(gradient, exact(plan, *given)[1][1]) < 1e-6


def test_infinite_gradients_stop_at_relu(backend):
    plan = PLANS["any"]()
    features, weight, *_ = inputs(plan, (1, 3, 4))
    weight.requires_grad_()
    out = anchor_projection(features, plan, weight, torch.full((4,), -1e6), relu=True)
    assert not out.any()
    assert not torch.autograd.grad(out, weight, torch.full_like(out, torch.inf))[0].any()


def wrong(**changes):
    plan = PLANS["gtad"]()
    features, weight, bias, *_ = inputs(plan, (2, 5, 9))
    given = {"features": features, "plan": plan, "weight": weight, "bias": bias, "strategy": "project"}
    return {**given, **changes}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"features": [1.0]}, TypeError, "features is list, expected a tensor"),
        ({"plan": torch.zeros(3)}, TypeError, "plan is Tensor, expected a SamplingPlan"),
        ({"weight": None}, TypeError, "weight is NoneType, expected a tensor"),
        (
            {"features": torch.zeros(2, 5, 37)},
            ValueError,
            r"features has shape \[2, 5, 37\], expected \[B, 2, C, T\] with T = 37 as in the plan",
        ),
        ({"features": torch.zeros(2, 2, 5, 36)}, ValueError, r"features has shape \[2, 2, 5, 36\], .* T = 37"),
        ({"features": torch.zeros(2, 3, 5, 37)}, ValueError, r"features has shape \[2, 3, 5, 37\], expected"),
        ({"features": torch.zeros(0, 2, 5, 37)}, ValueError, r"features has shape \[0, 2, 5, 37\], .* and not empty"),
        ({"features": torch.zeros(2, 2, 5, 37).int()}, TypeError, "features is int32, expected float16, "),
        (
            {"features": torch.zeros(2, 2, 5, 37).double()},
            TypeError,
            r"plan is float32, expected float64 .* plan.to\(dtype=torch.float64\)",
        ),
        (
            {"weight": torch.zeros(8, 4, 9)},
            ValueError,
            r"weight has shape \[8, 4, 9\], expected \[8, 5, O\] to fit plan",
        ),
        (
            {"weight": torch.zeros(7, 5, 9)},
            ValueError,
            r"weight has shape \[7, 5, 9\], expected \[8, 5, O\] to fit plan",
        ),
        (
            {"weight": torch.zeros(8, 5, 0)},
            ValueError,
            r"weight has shape \[8, 5, 0\], expected \[8, 5, O\] to fit plan",
        ),
        ({"weight": torch.zeros(8, 5)}, ValueError, r"weight has shape \[8, 5\], expected \[8, 5, O\] to fit plan"),
        ({"weight": torch.zeros(8, 5, 9).half()}, TypeError, "weight is float16, expected float32 as features is"),
        ({"weight": torch.zeros(8, 5, 9).to("meta")}, ValueError, "weight is on meta, expected cpu as features is"),
        ({"bias": torch.zeros(8)}, ValueError, r"bias has shape \[8\], expected \[9\] to fit weight"),
        ({"bias": 1.0}, TypeError, "bias is float, expected a tensor"),
        ({"strategy": "dense"}, ValueError, "strategy is 'dense', expected auto, project or gather"),
    ],
)
def test_bad_input_is_named(backend, changes, kind, message):
    with pytest.raises(kind, match=message):
        anchor_projection(**wrong(**changes))
    if not changes.keys() & {"weight", "bias", "strategy"}:
        given = wrong(**changes)
        with pytest.raises(kind, match="anchor_sampling: .*" + message):
            anchor_sampling(given["features"], given["plan"])


def test_plan_on_another_device_is_refused(backend):
    given = wrong()
    with pytest.raises(ValueError, match="plan is on meta, expected cpu as features is"):
        anchor_sampling(given["features"], given["plan"].to("meta"))
