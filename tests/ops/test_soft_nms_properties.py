"""Properties of Soft-NMS that hold for any candidates, on inputs from hypothesis."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bcnet_fast.ops import soft_nms, use_backend
from bcnet_fast.ops.soft_nms import METHODS

# Halves, so that starts, ends and lengths are often equal and every product by a power of two is exact.
times = st.integers(-20, 20).map(lambda n: n / 2)
lengths = st.integers(0, 12).map(lambda n: n / 2)
scores = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32)
candidates = st.lists(st.tuples(times, lengths, scores), max_size=24)
options = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS),
        "sigma": st.sampled_from([0.1, 0.5, 2.0]),
        "iou_threshold": st.sampled_from([0.0, 0.3, 1.0]),
        "min_score": st.sampled_from([0.0, 0.01, 0.3]),
        "max_proposals": st.none() | st.integers(0, 30),
    }
)
properties = settings(max_examples=60, deadline=None, derandomize=True)


def tensors(rows: list[tuple[float, float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    table = torch.tensor(rows, dtype=torch.float64).view(-1, 3)
    return torch.stack([table[:, 0], table[:, 0] + table[:, 1]], dim=1), table[:, 2]


@properties
@given(candidates, options)
def test_picks_are_distinct_candidates_of_falling_score(rows, how):
    segments, before = tensors(rows)
    picked, after, indices = soft_nms(segments, before, **how)
    assert len(set(indices.tolist())) == len(indices) <= len(rows)
    assert torch.equal(picked, segments[indices])
    assert (after <= before[indices]).all() and (after.diff() <= 0).all()
    assert (after > 0).all() and (after >= how["min_score"]).all()
    assert how["max_proposals"] is None or len(indices) <= how["max_proposals"]


@properties
@given(candidates, options)
def test_every_backend_picks_the_same_to_the_bit(rows, how):
    found = soft_nms(*tensors(rows), **how)
    with use_backend("reference"):
        expected = soft_nms(*tensors(rows), **how)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@properties
@given(st.lists(candidates, max_size=6), options)
def test_sets_do_not_see_each_other(sets, how):
    offsets = torch.tensor([0, *(len(rows) for rows in sets)]).cumsum(0)
    together = soft_nms(*tensors([row for rows in sets for row in rows]), offsets=offsets, **how)
    alone = [soft_nms(*tensors(rows), **how) for rows in sets]
    expected = [i + begin for (_, _, i), begin in zip(alone, offsets.tolist(), strict=False)]
    assert together[2].tolist() == [i for part in expected for i in part.tolist()]
    assert together[1].tolist() == [s for _, part, _ in alone for s in part.tolist()]


@properties
@given(candidates, options, st.integers(-8, 8), times)
def test_the_unit_and_origin_of_time_do_not_matter(rows, how, exponent, shift):
    segments, before = tensors(rows)
    expected = soft_nms(segments, before, **how)
    found = soft_nms((segments + shift) * 2.0**exponent, before, **how)
    assert torch.equal(found[1], expected[1]) and torch.equal(found[2], expected[2])
