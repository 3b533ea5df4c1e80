"""Sampling plans: the weights of both public sampling rules, and what else a plan says about them."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from helpers.backends import needs_native
from helpers.sampling_plans import PLANS

from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import bmn_intervals, gtad_regions
from bcnet_fast.networks.reference.dense_sampling import sampling_weights
from bcnet_fast.ops import anchor_groups as anchor_groups_module
from bcnet_fast.ops.anchor_groups import anchor_groups, packed_plan
from bcnet_fast.ops.sampling_plan import GROUP, SamplingPlan, aligned_plan, interpolated_plan


@pytest.fixture(params=PLANS)
def plan(request) -> SamplingPlan:
    return PLANS[request.param]()


@pytest.mark.parametrize(("length", "longest", "bins"), [(256, 64, 32), (61, 30, 7)])
def test_bcnet_weights_are_those_of_the_release(length, longest, bins):
    anchors = make_anchors(length, longest)
    expected = torch.from_numpy(sampling_weights(anchors, length, bins, 3)).permute(2, 1, 0)
    assert torch.equal(interpolated_plan(anchors, length, bins, 3).dense(), expected)


def test_bmn_weights_are_those_of_the_release(golden):
    known = np.load(golden / "sampling" / "bmn_sample_mask.npz")
    dense = interpolated_plan(bmn_intervals(100), 100).dense().view(100, 100, 32, 100)
    for (start, end), mask in zip(known["pairs"], known["mask"], strict=True):
        assert np.array_equal(dense[start, end].numpy().T, mask)
    dense = dense.double().numpy()
    moments = np.einsum("sent,t,n->se", dense, np.arange(100), np.arange(1, 33))
    np.testing.assert_allclose(dense.sum((2, 3)), known["sum_map"], atol=1e-12)
    np.testing.assert_allclose(np.square(dense).sum((2, 3)), known["sq_map"], atol=1e-12)
    np.testing.assert_allclose(moments, known["moment_map"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("bins", "points"), [(16, 0), (32, 0), (4, 0), (7, 2), (16, 1), (1, 0)])
def test_aligned_weights_are_those_of_align1d(golden, bins, points):
    known = np.load(golden / "sampling" / "align1d.npz")
    features, regions = known["x"], known["rois"]
    dense = aligned_plan(regions[:, 1:], features.shape[2], (bins,), points, torch.float64).dense().numpy()
    sampled = np.einsum("pnt,pct->pcn", dense, features[regions[:, 0].astype(int)])
    np.testing.assert_allclose(sampled, known[f"out_P{bins}_r{points}"], atol=1e-14)


def test_rules_differ_at_the_ends():
    def read(plan):
        return plan.dense().flatten(1)

    points = np.array([-1.5, -1.0, -0.5, 0.25, 3.0, 3.25, 4.0, 5.0])
    ends = torch.tensor([[0, 0], [0, 0], [1, 0], [0.75, 0], [0, 1], [0, 0.75], [0, 0], [0, 0]])
    interpolated = read(interpolated_plan(np.stack([points, points], 1), 4, 1, 1))
    assert torch.equal(interpolated[:, [0, 3]], ends)
    # A region of length 1 in one bin with one point reads its own middle.
    ends = torch.tensor([[0, 0], [1, 0], [1, 0], [0.75, 0], [0, 1], [0, 1], [0, 1], [0, 0]])
    aligned = read(aligned_plan(np.stack([points - 0.5, points - 0.5], 1), 4, (1,), 1))
    assert torch.equal(aligned[:, [0, 3]], ends)


def test_gtad_cells_beyond_the_sequence_are_all_alike():
    dense = aligned_plan(gtad_regions(12, 12), 12).dense().view(12, 12, 32, 12)
    duration, start = np.indices((12, 12))
    beyond = dense[torch.from_numpy(start + duration >= 12)]
    assert (beyond == beyond[0]).all() and beyond[0].any()


def test_lists_by_snippet_hold_the_same_weights(plan):
    dense = torch.zeros(plan.anchors, sum(plan.bins) * plan.length)
    row = torch.repeat_interleave(torch.arange(dense.shape[1]), plan.by_snippet_offsets.diff())
    dense.index_put_((plan.by_snippet_anchor.long(), row), plan.by_snippet_weight, accumulate=True)
    assert torch.equal(dense.view(plan.anchors, -1, plan.length), plan.dense())


def test_groups_hold_the_same_weights(plan):
    """Every anchor is in one group, and its taps are those common to the group, moved, and those of its own."""
    assert torch.equal(plan.order[plan.order >= 0].sort().values, torch.arange(plan.anchors, dtype=torch.int32))
    dense = torch.zeros(plan.anchors, sum(plan.bins) * plan.length)
    groups = anchor_groups(plan)
    rows, weights = torch.from_numpy(groups.rows).long(), torch.from_numpy(groups.weights)
    lists, ends = (bounds.reshape(-1, GROUP + 1) for bounds in (groups.offsets[:-1], groups.offsets[1:]))
    for group, step, begin, end in zip(groups.order.tolist(), groups.step.tolist(), lists, ends, strict=True):
        members = [anchor for anchor in group if anchor >= 0]
        assert len(group) == GROUP and members == group[: len(members)]
        for place, anchor in enumerate(members):
            for taps, moved in ((slice(begin[0], end[0]), place * step), (slice(begin[1 + place], end[1 + place]), 0)):
                assert torch.equal((rows[taps] + moved) // plan.length, rows[taps] // plan.length)
                dense[anchor].index_add_(0, rows[taps] + moved, weights[taps])
    assert torch.equal(dense.view(plan.anchors, -1, plan.length), plan.dense())
    assert plan.longest == plan.offsets.diff().max()


@pytest.mark.parametrize("name", ["bcnet", "gtad"])
def test_most_anchors_of_the_public_systems_share_their_taps(name):
    plan = {
        "bcnet": lambda: interpolated_plan(make_anchors(256, 64), 256, 8),
        "gtad": lambda: aligned_plan(gtad_regions(128, 32), 128, (8, 8)),
    }[name]()
    assert len(anchor_groups(plan).rows) < plan.taps / 4


@needs_native
def test_plans_are_packed_once_and_forgotten_with_their_tensors():
    plan = PLANS["bmn"]()
    packed = packed_plan(plan)
    assert packed_plan(SamplingPlan.unpack(*plan.pack())) is packed
    assert type(packed_plan(plan.to(dtype=torch.float64))) is not type(packed)
    kept, before = weakref.ref(packed), len(anchor_groups_module._known)
    del plan, packed
    gc.collect()
    assert kept() is None and len(anchor_groups_module._known) < before


def test_a_plan_survives_packing():
    plan = PLANS["gtad"]()
    tensors, sizes = plan.pack()
    assert sizes == [plan.length, plan.longest, *plan.bins]
    unpacked = SamplingPlan.unpack(tensors, sizes)
    assert vars(unpacked).keys() == vars(plan).keys()
    assert all(value is vars(plan)[name] or value == vars(plan)[name] for name, value in vars(unpacked).items())


def test_a_plan_moves_and_converts():
    plan = PLANS["bmn"]()
    assert plan.to("cpu") is plan and plan.to(dtype=torch.float32) is plan
    double = plan.to(dtype=torch.float64)
    assert {t.dtype for t in (double.weights, double.by_snippet_weight)} == {torch.float64}
    assert double.first.dtype == torch.int32 and torch.equal(double.dense().float(), plan.dense())
    assert plan.to("meta").weights.device.type == "meta"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: interpolated_plan(np.zeros((3, 3)), 5),
            r"intervals has shape \[3, 3\], expected \[P, 2\] with P >= 1",
        ),
        (
            lambda: interpolated_plan(np.zeros((0, 2)), 5),
            r"intervals has shape \[0, 2\], expected \[P, 2\] with P >= 1",
        ),
        (lambda: interpolated_plan(np.zeros((3, 2)), 0), "length is 0, expected at least 1"),
        (lambda: interpolated_plan(np.zeros((3, 2)), 5, 0), "bins is 0, expected at least 1"),
        (lambda: interpolated_plan(np.zeros((3, 2)), 5, 4, 0), "points_per_bin is 0, expected at least 1"),
        (lambda: aligned_plan(np.zeros((3, 2)), 5, (4, 0)), r"bins is \(4, 0\), expected at least 1"),
        (lambda: aligned_plan(np.zeros((3, 2)), 5, ()), r"bins is \(\), expected at least 1"),
        (lambda: aligned_plan(np.zeros((3, 2)), 5, (4,), -1), "points_per_bin is -1, expected at least 0"),
        (
            lambda: aligned_plan(np.array([[0, 1], [0, np.nan]]), 5),
            r"regions is \[0.0, nan\] in row 1 of 2, expected finite n",
        ),
        (
            lambda: interpolated_plan(np.full((3, 2), np.inf), 5),
            r"intervals is \[inf, inf\] in row 0 of 3, expected finite numbers or NaN",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: interpolated_plan(np.zeros((3, 2)), 5, 2.0), "bins is 2.0, expected an integer"),
        (lambda: aligned_plan(np.zeros((3, 2)), 5, (4, "x")), r"bins is \(4, 'x'\), expected integers"),
        (
            lambda: interpolated_plan(np.zeros((3, 2)), 5, dtype=torch.float16),
            "dtype is float16, expected float32 or float64",
        ),
    ],
)
def test_arguments_of_another_kind_are_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()
