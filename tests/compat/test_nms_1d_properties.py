"""compat.nms_1d_cpu returns the bits of the plain definition, whatever the segments are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.nms_1d import expf, plain_nms, plain_softnms
from hypothesis import given, settings
from hypothesis import strategies as st

from bcnet_fast.compat import nms_1d_cpu
from bcnet_fast.ops import native, use_backend

# Halves, so that starts, ends, lengths and scores are often equal.
grid = st.tuples(
    st.integers(-20, 20).map(lambda n: n / 2),
    st.integers(0, 12).map(lambda n: n / 2),
    st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0]),
)
smooth = st.tuples(st.floats(0, 50, width=32), st.floats(0, 20, width=32), st.floats(0, 1, width=32))
# Lengths may be negative here, and everything NaN, infinite, or too large for the sum of two lengths.
wild = st.tuples(st.floats(width=32), st.floats(width=32), st.floats(width=32))
regular = st.lists(grid, min_size=1, max_size=40) | st.lists(smooth, min_size=1, max_size=40)
candidates = regular | st.lists(wild, min_size=1, max_size=12)
thresholds = st.sampled_from([-1.0, 0.0, 1e-30, 0.1, 1 / 3, 0.5, 1.0, 2.0])
options = st.fixed_dictionaries(
    {
        "iou_threshold": thresholds,
        "sigma": st.sampled_from([0.004, 0.3, 0.5, 2.0]),
        "min_score": st.sampled_from([-1.0, 0.0, 0.001, 0.3]),
        "method": st.sampled_from([0, 1, 2, 3] if expf else [0, 1]),
        "t1": st.sampled_from([-0.5, 0.0, 0.2]),
        "t2": st.sampled_from([-0.01, 0.0, 0.05]),
    }
)
properties = settings(max_examples=80, deadline=None, derandomize=True)
needs_native = pytest.mark.skipif(native.module is None, reason="the native extension is not built")
INSTRUCTION_SETS = native.module.INSTRUCTION_SETS if native.module else ()


def tensors(rows: list[tuple[float, float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    table = np.array(rows, dtype=np.float32)
    with np.errstate(all="ignore"):
        segs = np.stack([table[:, 0], table[:, 0] + table[:, 1]], axis=1)
    return torch.from_numpy(segs), torch.from_numpy(table[:, 2].copy())


def softnms(segs, scores, how):
    dets = torch.full((len(segs), 3), 7.0)
    picks = nms_1d_cpu.softnms(segs, scores, dets, **how)
    assert (dets[len(picks) :] == 7).all()
    return picks.tolist(), dets[: len(picks)].numpy()


@properties
@given(candidates, thresholds)
def test_nms_keeps_what_the_plain_loop_keeps(rows, threshold):
    segs, scores = tensors(rows)
    expected = plain_nms(segs, scores, threshold)
    assert nms_1d_cpu.nms(segs, scores, threshold).tolist() == expected
    with use_backend("reference"):
        assert nms_1d_cpu.nms(segs, scores, threshold).tolist() == expected


@needs_native
@properties
@given(candidates, options)
def test_softnms_has_the_bits_of_the_plain_loop(rows, how):
    segs, scores = tensors(rows)
    indices, dets = plain_softnms(segs, scores, **how)
    found, picked = softnms(segs, scores, how)
    assert found == indices
    np.testing.assert_array_equal(picked, np.array(dets, dtype=np.float32).reshape(-1, 3))


@properties
@given(regular, options)
def test_softnms_without_the_native_part_picks_the_same(rows, how):
    segs, scores = tensors(rows)
    if how["method"] > 1:
        # The last bit of an exponential decides between equal scores.
        scores = torch.linspace(0.4, 1, len(scores))
    expected = softnms(segs, scores, how)
    with use_backend("reference"):
        found = softnms(segs, scores, how)
    if how["method"] < 2:
        assert found[0] == expected[0] and np.array_equal(found[1], expected[1])
    else:
        assert sorted(found[0]) == sorted(expected[0])
        np.testing.assert_allclose(np.sort(found[1], 0), np.sort(expected[1], 0), rtol=1e-5)


@needs_native
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("method", [0, 1, 2, 3])
def test_every_instruction_set_has_the_same_bits(instruction_set, method, rng):
    start, length = rng.uniform(0, 100, 700), rng.exponential(8, 700)
    segs = np.stack([start, start + length], 1).astype(np.float32)
    scores = rng.random(700).astype(np.float32)
    options = method, 0.3, 0.46, 0.001, 0.1, 0.01
    rows = [np.zeros((700, 3), np.float32) for _ in range(2)]
    expected = native.module.soft_nms_1d(segs, scores, rows[0], options)
    found = native.module.soft_nms_1d(segs, scores, rows[1], options, instruction_set=instruction_set)
    assert np.array_equal(found, expected) and np.array_equal(*rows)
    order = np.argsort(-scores)
    expected = native.module.nms_1d(segs, order, 0.4)
    assert np.array_equal(native.module.nms_1d(segs, order, 0.4, instruction_set=instruction_set), expected)
    assert 0 < len(expected) < 700


@needs_native
@given(st.lists(st.floats(width=32), max_size=30))
def test_distinct_scores_are_ordered_as_pytorch_orders_them(values):
    scores = np.array(values, dtype=np.float32)
    order = native.module.order_of_distinct(scores)
    distinct = len(set(values)) == len(values) and not np.isnan(scores).any()
    assert (order is not None) == distinct
    if distinct:
        assert order.tolist() == torch.from_numpy(scores).sort(0, descending=True)[1].tolist()
