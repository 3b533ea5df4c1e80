"""P-GCN and MUSES-Net in C++ against their references: odd sizes, zero vectors, poisoned buffers, threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.second_stage import SMALL_MUSES, SMALL_PGCN, small_network

from bcnet_fast.config import MUSESConfig, PGCNConfig
from bcnet_fast.geometry.proposal_graph import neighbour_slots
from bcnet_fast.networks.engine.buffers import Workspace
from bcnet_fast.networks.engine.native_muses import NativeMUSES
from bcnet_fast.networks.engine.native_pgcn import NativePGCN
from bcnet_fast.networks.engine.short_filters import INPUTS, OUTPUTS, TAPS, input_sums, output_sums, transformed_taps
from bcnet_fast.networks.range_maxima import range_maxima
from bcnet_fast.ops import native

pytestmark = pytest.mark.skipif(native.module is None, reason="the native extension is not built")
WIDE_PGCN = PGCNConfig(classes=5, feature_dim=272, hidden=256)  # wide enough for Strassen's algorithm
WIDE_MUSES = MUSESConfig(classes=5, feature_dim=48, channels=(256, 260), head_width=256)
TOLERANCE = {"fp64": 1e-11, "fp32": 1e-4}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    monkeypatch.setattr(Workspace, "poison", True)


@pytest.fixture(params=["C++", "NumPy and PyTorch"])
def either(request, monkeypatch):
    if request.param != "C++":
        monkeypatch.setattr(native, "module", None)


def assert_same(found, expected, tolerance: float) -> None:
    for name, scores in vars(expected).items():
        bound = tolerance * max(1.0, float(scores.abs().max()) if scores.numel() else 0.0)
        torch.testing.assert_close(getattr(found, name).double(), scores, atol=bound, rtol=0)


def pgcn_inputs(config: PGCNConfig, count: int, columns: int) -> list[torch.Tensor]:
    width = config.feature_dim
    completeness = torch.randn(count, 3 * width).double()
    activity = completeness[:, width : 2 * width] if count % 2 else torch.randn(count, width).double()
    if count > 2:
        completeness[1] = 0
        activity[2] = 0
    neighbours = torch.randint(max(count, 1), (count, columns))
    if columns == 21:
        neighbours[:, 0] = torch.arange(count)
    return [activity, completeness, neighbours]


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("columns", [21, 10], ids=["trees", "slots"])
@pytest.mark.parametrize("config", [SMALL_PGCN, WIDE_PGCN], ids=["small", "wide"])
@torch.no_grad()
def test_pgcn_s_scores_are_the_reference_s(config, columns, precision):
    network = small_network(config)
    run = NativePGCN(config, network.state_dict(), precision, strassen=True)
    for count in (40, 0, 1, 2, 17, 101 if config is WIDE_PGCN else 801):
        if count * config.feature_dim > 6000 and columns == 10:
            continue  # the reference makes trees of 111 nodes
        inputs = pgcn_inputs(config, count, columns)
        assert_same(run(*inputs), network(*inputs), TOLERANCE[precision])


@torch.no_grad()
def test_pgcn_takes_strided_features_and_some_roots():
    network = small_network(SMALL_PGCN)
    run = NativePGCN(SMALL_PGCN, network.state_dict(), "fp64", strassen=False)
    activity, completeness, trees = pgcn_inputs(SMALL_PGCN, 30, 21)
    expected = network(activity, completeness, trees[[7, 3]])
    columns = completeness.T.contiguous().T
    assert_same(run(activity, columns, trees[[7, 3]]), expected, 1e-11)
    assert_same(run(activity.repeat(1, 2)[:, :6], completeness, trees[[7, 3]]), expected, 1e-11)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("short_filters", [True, False])
@pytest.mark.parametrize("config", [SMALL_MUSES, WIDE_MUSES], ids=["small", "wide"])
@torch.no_grad()
def test_muses_scores_are_the_reference_s(config, short_filters, precision):
    network = small_network(config)
    run = NativeMUSES(config, network.state_dict(), precision, strassen=True, short_filters=short_filters)
    for length, count in ((97, 30), (1, 2), (2, 1), (3, 0), (20, 17)):
        rois = torch.randint(0, 8 * length + 60, (count, 2)).sort(dim=1).values + torch.tensor([0, 1])
        features = torch.randn(config.feature_dim, length).double()
        assert_same(run(features, rois), network(features, rois), TOLERANCE[precision])
        assert_same(run(features.T.contiguous().T, rois), network(features, rois), TOLERANCE[precision])


@torch.no_grad()
def test_bits_do_not_depend_on_threads():
    pgcn, muses = small_network(WIDE_PGCN), small_network(WIDE_MUSES)
    runs = (
        NativePGCN(WIDE_PGCN, pgcn.state_dict(), "fp32", True),
        NativeMUSES(WIDE_MUSES, muses.state_dict(), "fp32", True, True),
    )
    inputs = pgcn_inputs(WIDE_PGCN, 90, 10), [torch.randn(48, 61), torch.tensor([[0, 300], [8, 9]])]
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append([scores for run, given in zip(runs, inputs, strict=True) for scores in vars(run(*given)).values()])
    torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, found[0], strict=True))


def test_short_filters_are_a_convolution():
    random = np.random.default_rng(1)
    taps, x = random.standard_normal((1, 1, 21)), random.standard_normal((13, 1))
    rows, weights = input_sums(13, 21, np.dtype(np.float64))
    signals = (weights @ x[rows[:, 0]]).reshape(5, -1)
    of_groups = transformed_taps(taps)[:, :, 0, 0]
    products = np.stack([np.correlate(s, g, "valid") for s, g in zip(signals, of_groups, strict=True)]).reshape(-1, 1)
    rows, weights = output_sums(13, np.dtype(np.float64))
    expected = np.correlate(np.pad(x[:, 0], 10), taps[0, 0], "valid")
    np.testing.assert_allclose((weights @ products[rows[:, 0]])[:, 0, 0], expected, atol=1e-12)
    assert OUTPUTS.shape == (3, 5) and TAPS.shape == (5, 3) and INPUTS.shape == (5, 5)


@pytest.mark.parametrize("count", [0, 1, 2, 17, 131])
def test_neighbours_are_those_of_a_sort(either, count):
    random = np.random.default_rng(count)
    # Few lengths and places, so that many are equal or the same.
    segments = np.sort(random.integers(0, 40 if count < 100 else 300, (count, 2)), axis=1)
    start, end = segments.T.astype(float)
    expected = np.empty((count, 10), dtype=np.int64)
    for i in range(count):
        overlap = np.maximum(np.minimum(end[i], end) - np.maximum(start[i], start) + 1, 0)
        iou = overlap / ((end[i] - start[i] + 1) + (end - start + 1) - overlap)
        away = np.abs((start[i] + end[i]) / 2 - (start + end) / 2) / (
            np.maximum(end[i], end) - np.minimum(start[i], start) + 1
        )
        close = [j for j in np.argsort(-iou, kind="stable") if iou[j] > 0.7 and j != i] or [i]
        far = [j for j in np.argsort(away, kind="stable") if iou[j] <= 0 and away[j] > 0] or [i]
        expected[i] = np.concatenate([np.resize(close[:8], 8), np.resize(far[:2], 2)])
    assert np.array_equal(neighbour_slots(segments), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maxima_of_any_range(either, dtype):
    for rows, columns in ((1, 1), (7, 33), (130, 64)):
        x = torch.randn(rows, columns, dtype=dtype)
        x[rows // 2, 0] = torch.nan
        ranges = torch.randint(0, rows + 1, (5, 3, 2))
        found = range_maxima(x.T.contiguous().T, ranges[..., 0], ranges[..., 1])
        for (first, end), values in zip(ranges.flatten(0, 1).tolist(), found.flatten(0, 1), strict=True):
            expected = x[first:end].max(dim=0).values if first < end else torch.zeros(columns, dtype=dtype)
            torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)


def test_arrays_that_do_not_fit_are_refused():
    module, x = native.module, np.zeros((4, 6), np.float32)
    out, numbers = np.zeros((2, 6), np.float32), np.zeros((2, 1, 2), np.int64)
    weights = np.zeros((2, 1, 2), np.float32)
    for call, message in (
        (lambda: module.range_maxima(x, numbers + 5, out, threads=1), "ranges is 5 in place 0, expected .* 0 to 4"),
        (lambda: module.range_maxima(x, numbers[:, 0], out, threads=1), r"ranges has shape \[2, 2\]"),
        (lambda: module.range_maxima(x, numbers, out[:1], threads=1), r"out has shape \[1, 6\], expected \[2, 6\]"),
        (lambda: module.weighted_rows(x, numbers - 1, weights, out, threads=1), "rows is -1 in place 0"),
        (lambda: module.weighted_rows(x, numbers, weights[:1], out, threads=1), r"weights has shape \[1, 1, 2\]"),
        (lambda: module.edge_weights(x, 4, 0, numbers[:, 0], weights[:, 0], threads=1), "x has shape"),
        (lambda: module.edge_weights(x, 3, 3, numbers[:, 0], weights[:, 0], threads=1), "part is 3"),
        (lambda: module.edge_weights(x, 3, 1, numbers[:, 0] + 4, weights[:, 0], threads=1), "edges is 4 in place 0"),
        (lambda: module.neighbour_slots(np.zeros((3, 3)), 0.7, numbers[:, 0], threads=1), "segments has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
