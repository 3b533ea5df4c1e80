"""Soft-NMS against the stored lists of three public systems, and every backend against the reference, bit for bit."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from helpers.soft_nms import NATIVE_OPTIONS, OPTIONS, good, random_sets
from helpers.sweeps import sweep

from bcnet_fast.errors import BackendError
from bcnet_fast.ops import native, soft_nms, use_backend
from bcnet_fast.ops.soft_nms import METHODS, _soft_nms

native_only = pytest.mark.skipif(native.module is None, reason=str(native.reason))
BACKENDS = ("reference", pytest.param("native", marks=native_only))


@pytest.fixture(scope="module")
def lists(golden):
    return np.load(golden / "bcnet" / "nms.npz")


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


def assert_picks(found, segments, scores, atol):
    np.testing.assert_array_equal(found[0].numpy(), segments)
    np.testing.assert_allclose(found[1].numpy(), scores, rtol=0, atol=atol)


@pytest.mark.parametrize("n", ["1", "2", "10", "500", "3000", "ties"])
@pytest.mark.parametrize("method", METHODS)
def test_float32_is_the_compiled_code_of_actionformer(lists, backend, method, n):
    rows, key = torch.from_numpy(lists[f"in_{n}"]), f"af{('hard', 'linear', 'gaussian').index(method)}_{n}"
    threshold = 0.0 if method == "gaussian" else 0.5  # that code compares no threshold for gaussian
    found = soft_nms(rows[:, :2], rows[:, 2], method=method, sigma=0.5, iou_threshold=threshold, min_score=0.001)
    np.testing.assert_array_equal(found[2].numpy(), lists[f"{key}_inds"])
    assert_picks(found, lists[f"{key}_dets"][:, :2], lists[f"{key}_dets"][:, 2], atol=1e-7)


@pytest.mark.parametrize("key", ["1", "2", "10", "500", "3000", "prop_model", "prop_synthetic"])
def test_width_dependent_threshold_is_that_of_bmn(lists, golden, backend, key):
    if key.startswith("prop"):
        rows = np.load(golden / "bcnet" / "proposals.npz")[key.replace("prop_", "") + "_rows"]
        rows = rows[rows[:, 7] > 0][:, [0, 1, 7]] / [1280, 1280, 1]
    else:
        rows = lists[f"in_{key}"].astype(np.float64) / [130, 130, 1]
    rows, stored = torch.from_numpy(rows), lists[f"bmn_{key}"]
    # BMN's code stops after 101 picks, and never emits the last candidate.
    most = min(101, len(rows) - 1)
    found = soft_nms(rows[:, :2], rows[:, 2], sigma=0.4, iou_threshold=(0.5, 0.9), max_proposals=most)
    assert_picks(found, stored[:, 1:], stored[:, 0], atol=1e-14)


@pytest.mark.parametrize("most", [120, 1000])
@pytest.mark.parametrize("name", ["model", "synthetic"])
def test_float64_is_the_release_of_bcnet(golden, backend, name, most):
    stored = np.load(golden / "bcnet" / "proposals.npz")
    rows = stored[f"{name}_rows"]
    scores = np.where(rows[:, 1] - rows[:, 0] < 300, rows[:, 7], 0.0)
    found = soft_nms(torch.from_numpy(rows[:, :2]), torch.from_numpy(scores), sigma=0.46, max_proposals=most)
    expected = stored[f"{name}_nms{most}"]
    assert_picks(found, expected[:, 1:], expected[:, 0], atol=1e-14)


@native_only
@pytest.mark.parametrize("grid", [True, False], ids=["ties", "continuous"])
@sweep("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_native_has_the_bits_of_the_reference(rng, dtype, grid):
    for method, options in itertools.product(METHODS, OPTIONS):
        segments, scores, offsets = random_sets(rng, dtype, grid, count=30)
        with use_backend("reference"):
            expected = soft_nms(segments, scores, method=method, offsets=offsets, **options)
        with use_backend("native"):
            found = soft_nms(segments, scores, method=method, offsets=offsets, **options)
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b), (method, options)


@native_only
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("n", [1025, 2500])
def test_native_has_the_bits_of_the_reference_in_a_large_set(rng, dtype, n):
    # Far from zero, most of them close together, and three far away.
    start = 1e4 + rng.exponential(60, n).round(1)
    start[:3] = -1e6, 1e6, 0
    segments = np.stack([start, start + rng.exponential(6, n).round(1)], 1).astype(dtype)
    scores = (rng.random(n) ** 2).astype(dtype)
    with use_backend("reference"):
        expected = soft_nms(torch.from_numpy(segments), torch.from_numpy(scores), min_score=0.001)
    with use_backend("native"):
        found = soft_nms(torch.from_numpy(segments), torch.from_numpy(scores), min_score=0.001)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@native_only
@pytest.mark.parametrize("tied", [False, True], ids=["continuous", "ties"])
@sweep("method", METHODS)
def test_native_has_the_bits_of_the_reference_in_sets_whose_layout_is_renewed(rng, method, tied):
    # In a long video candidates are moved together while they become fewer; where they overlap as much as in the short
    # one, the lists of picks become full. Tied candidates are told apart throughout.
    n = 7000
    for seconds, threshold in ((900, 0.1), (30, 0.8)):
        start, length = rng.uniform(0, seconds, n), rng.exponential(8, n)
        scores = rng.random(n)
        if tied:
            start, length, scores = start.round(), length.round(), np.ceil(scores * 40) / 40
        segments = torch.from_numpy(np.stack([start, start + length], 1)).float()
        picks = []
        for backend in ("reference", "native"):
            with use_backend(backend):
                scores_in = torch.from_numpy(scores).float()
                picks.append(soft_nms(segments, scores_in, method=method, iou_threshold=threshold, min_score=0.02))
        assert all(torch.equal(a, b) for a, b in zip(*picks, strict=True))


@native_only
@pytest.mark.parametrize("method", METHODS)
def test_a_mode_without_denormal_numbers_changes_nothing(rng, method):
    # In it, PyTorch's threads take denormal numbers for zeros; the lowest score above 0 is one.
    segments, scores, offsets = random_sets(rng, torch.float32, grid=True)
    with use_backend("native"):
        expected = soft_nms(segments, scores, method=method, offsets=offsets)
        try:
            torch.set_flush_denormal(True)
            found = soft_nms(segments, scores, method=method, offsets=offsets)
            assert torch.tensor([1e-40]).mul(1.0).item() == 0  # still on
        finally:
            torch.set_flush_denormal(False)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@native_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_every_instruction_set_and_thread_count_gives_the_same_bits(rng, dtype):
    segments, scores, offsets = random_sets(rng, dtype, grid=False)
    arrays = segments.numpy(), scores.numpy(), offsets.numpy()
    runs = [
        native.module.soft_nms(
            *arrays, **NATIVE_OPTIONS | {"method": method}, threads=threads, instruction_set=instruction_set
        )
        for threads in (1, 2, 5)
        for instruction_set in native.module.INSTRUCTION_SETS
        for method in range(3)
    ]
    for method in range(3):
        assert all(np.array_equal(a, b) for run in runs[method::3] for a, b in zip(run, runs[method], strict=True))


def test_sets_do_not_see_each_other(rng, backend):
    segments, scores, offsets = random_sets(rng, torch.float32, grid=True, count=30)
    together = soft_nms(segments, scores, offsets=offsets, min_score=0.05, max_proposals=6)
    alone = [
        [*soft_nms(segments[a:b], scores[a:b], min_score=0.05, max_proposals=6)[:2], a]
        for a, b in itertools.pairwise(offsets.tolist())
    ]
    assert torch.equal(together[0], torch.cat([s for s, _, _ in alone]))
    assert torch.equal(together[1], torch.cat([c for _, c, _ in alone]))
    # The documented way to tell the set of a pick, with empty sets in between.
    set_of_pick = torch.bucketize(together[2], offsets, right=True) - 1
    assert torch.equal(set_of_pick, torch.repeat_interleave(torch.tensor([len(c) for _, c, _ in alone])))


def test_a_case_by_hand(backend):
    # [0, 4] is picked; [2, 6] overlaps it by 2 of 6, [4, 8] touches it, [3, 3] has no length, [1, 3] lies within it.
    segments = torch.tensor([[2, 6], [0, 4], [4, 8], [3, 3], [1, 3.0]], dtype=torch.float64)
    scores = torch.tensor([0.6, 0.9, 0.3, 0.2, 0.8], dtype=torch.float64)
    found = soft_nms(segments, scores, method="linear")
    # 0.6 * (1 - 1/3), 0.8 * (1 - 1/2) at the second pick, then 0.4 and 0.4 decayed by each other: 1/5 and 2/6.
    np.testing.assert_allclose(found[1], [0.9, 0.4, 0.32, 0.2, 0.2], atol=1e-15)
    assert found[2].tolist() == [1, 0, 4, 3, 2] or found[2].tolist() == [1, 0, 4, 2, 3]


def test_the_exponential_is_within_an_ulp(backend):
    # Pairs of equal score, of which the second lies within the first: its score becomes the decay factor itself.
    for dtype, lowest in ((np.float32, -87.0), (np.float64, -708.0)):
        sigma = dtype(-1 / lowest)
        inner = np.linspace(0.0005, 1, 4001 if backend == "native" else 401).astype(dtype)
        segments = np.stack([np.zeros_like(inner), np.ones_like(inner), np.zeros_like(inner), inner], 1).reshape(-1, 2)
        offsets = torch.arange(0, len(segments) + 1, 2)
        scores = torch.ones(len(segments), dtype=torch.from_numpy(inner).dtype)
        found = soft_nms(torch.from_numpy(segments), scores, sigma=float(sigma), offsets=offsets, length_epsilon=0.0)
        tiou = inner / ((1 + inner) - inner)
        expected = np.exp((tiou * tiou * (dtype(-1) / sigma)).astype(np.longdouble))
        error = np.abs(found[1].numpy()[1::2] - expected) / np.spacing(expected.astype(dtype))
        assert error.max() < 1.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_nothing_in_nothing_out(backend, dtype):
    for offsets in (None, torch.tensor([0]), torch.tensor([0, 0, 0])):
        found = soft_nms(torch.empty(0, 2, dtype=dtype), torch.empty(0, dtype=dtype), offsets=offsets)
        assert [tuple(t.shape) for t in found] == [(0, 2), (0,), (0,)]
        assert [t.dtype for t in found] == [dtype, dtype, torch.int64]
    nothing_good = soft_nms(torch.tensor([[0, 1.0]]), torch.tensor([0.1]), min_score=0.2)
    assert len(nothing_good[2]) == 0


def test_strided_input_and_input_with_gradients_are_read_and_not_written(backend, rng):
    rows = torch.from_numpy(rng.random((50, 5)).astype(np.float32)).requires_grad_()
    rows_before = rows.detach().clone()
    segments, scores = rows[:, 1:3].cumsum(1).flip(0), rows[:, 4].flip(0)
    found = soft_nms(segments, scores)
    expected = soft_nms(segments.detach().contiguous(), scores.detach().contiguous())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(rows, rows_before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_operator_passes_opcheck(backend, rng, dtype):
    segments, scores, offsets = random_sets(rng, dtype, grid=False, count=4)
    for sets in (offsets, None):
        arguments = (segments, scores, sets, "gaussian", [0.5, 0.0, 0.0, 0.001, 0.0], None)
        torch.library.opcheck(_soft_nms, arguments)


def test_works_inside_torch_compile_as_one_graph(backend, rng):
    # PyTorch 2.4 has to be told to take results whose size is not known beforehand into a graph.
    @torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
    @torch.compile(fullgraph=True, backend="aot_eager")
    def best(segments, scores):
        kept, decayed, _ = soft_nms(segments * 2, scores.sigmoid(), min_score=0.3)
        return kept.sum(1) * decayed

    for n in (20, 31):
        segments, scores = torch.from_numpy(rng.random((n, 2))).cumsum(1), torch.from_numpy(rng.random(n))
        kept, decayed, _ = soft_nms(segments * 2, scores.sigmoid(), min_score=0.3)
        torch.testing.assert_close(best(segments, scores), kept.sum(1) * decayed)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"segments": [[0, 1]]}, TypeError, "segments is list, expected a tensor"),
        ({"segments": torch.zeros(2)}, ValueError, "segments has shape [2], expected [n, 2]"),
        ({"segments": torch.zeros(2, 3)}, ValueError, "segments has shape [2, 3], expected [n, 2]"),
        ({"segments": torch.zeros(2, 2).half()}, TypeError, "segments is float16, expected float32 or float64"),
        ({"scores": torch.zeros(3)}, ValueError, "scores has shape [3], expected [2] to fit segments"),
        ({"scores": torch.zeros(2, 1)}, ValueError, "scores has shape [2, 1], expected [2] to fit segments"),
        ({"scores": torch.zeros(2).double()}, TypeError, "scores is float64, expected float32 as segments is"),
        ({"scores": torch.zeros(2, device="meta")}, ValueError, "scores is on meta, expected cpu as segments is"),
        (
            {"segments": torch.tensor([[0, 2], [3, 1.0]])},
            ValueError,
            "segments is [3.0, 1.0] in row 1 of 2, expected finite",
        ),
        (
            {"segments": torch.tensor([[0, np.nan], [1, 3]])},
            ValueError,
            "segments is [0.0, nan] in row 0 of 2, expected finite",
        ),
        (
            {"segments": torch.tensor([[0, 1], [1, np.inf]])},
            ValueError,
            "segments is [1.0, inf] in row 1 of 2, expected finite",
        ),
        ({"segments": torch.tensor([[-3e38, 3e38], [1, 2]])}, ValueError, "a finite length"),
        ({"scores": torch.tensor([0.5, np.nan])}, ValueError, "scores is nan in row 1 of 2, expected finite numbers"),
        ({"scores": torch.tensor([np.inf, 0.5])}, ValueError, "scores is inf in row 0 of 2, expected finite numbers"),
        ({"method": "soft"}, ValueError, "method is 'soft', expected gaussian, linear or hard"),
        ({"sigma": 0.0}, ValueError, "sigma is 0.0, expected a number > 0, finite and not below 1.2e-38"),
        ({"sigma": float("nan")}, ValueError, "sigma is nan, expected a number > 0"),
        ({"iou_threshold": float("inf")}, ValueError, "iou_threshold is (inf, inf), expected finite numbers"),
        (
            {"iou_threshold": (0.1, 0.2, 0.3)},
            ValueError,
            "iou_threshold is (0.1, 0.2, 0.3), expected a number or a pair",
        ),
        ({"min_score": float("nan")}, ValueError, "min_score is nan, expected a finite number"),
        ({"max_proposals": -1}, ValueError, "max_proposals is -1, expected a number >= 0, or None"),
        ({"length_epsilon": -1e-6}, ValueError, "length_epsilon is -1e-06, expected a finite number >= 0, or None"),
        ({"offsets": torch.tensor([0, 2.0])}, TypeError, "offsets is float32, expected int64"),
        ({"offsets": torch.tensor([[0, 2]])}, ValueError, "offsets has shape [1, 2], expected [V + 1]"),
        ({"offsets": torch.tensor([1, 2])}, ValueError, "offsets is 1 to 2, expected 0 to 2, the number of segments"),
        ({"offsets": torch.tensor([0, 1])}, ValueError, "offsets is 0 to 1, expected 0 to 2"),
        (
            {"offsets": torch.tensor([0, 2, 1, 2])},
            ValueError,
            "offsets is 2 and then 1, expected numbers that do not decrease",
        ),
    ],
)
def test_bad_input_is_named(backend, change, error, message):
    with pytest.raises(error, match=re.escape("soft_nms: ") + ".*" + re.escape(message)):
        soft_nms(**(good() | change))


@native_only
def test_native_binding_refuses_what_would_be_copied_or_read_out_of_bounds():
    call = native.module.soft_nms
    segments, scores, offsets = np.zeros((4, 2)), np.zeros(4), np.array([0, 4])
    rest = NATIVE_OPTIONS | {"threads": 1}
    call(segments, scores, offsets, **rest)
    for wrong in (
        (segments.astype(np.float32), scores, offsets),
        (segments[::2], scores[::2], offsets),
        (segments, scores, offsets.astype(np.int32)),
    ):
        with pytest.raises(TypeError):
            call(*wrong, **rest)
    for wrong in (
        (segments, scores[:3].copy(), offsets),
        (segments, scores, np.array([0, 9])),
        (segments, scores, np.array([0, 5, 4])),
        (segments, scores, np.array([], dtype=np.int64)),
    ):
        with pytest.raises(ValueError, match=r"soft_nms: .* expected"):
            call(*wrong, **rest)
    with pytest.raises(ValueError, match="soft_nms: method is 7, expected 0, 1 or 2"):
        call(segments, scores, offsets, **rest | {"method": 7})


def test_an_unusable_backend_is_an_error_only_when_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "the native extension was not built")
    assert soft_nms(**good())[2].tolist() == [0, 1]
    with use_backend("native"), pytest.raises(BackendError, match="was not built"):
        soft_nms(**good())
