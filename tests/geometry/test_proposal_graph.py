"""Windows, regions and neighbours of second-stage networks: exactly those of the releases."""

from __future__ import annotations

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
import torch
from helpers.second_stage import ANET_ROWS, STAGE2, listed, pooled, rows_of

from bcnet_fast.config import FeatureRows
from bcnet_fast.geometry import proposal_graph
from bcnet_fast.geometry.proposal_graph import (
    draw_trees,
    neighbour_slots,
    pairwise_distance,
    pairwise_iou,
    video_generator,
)
from bcnet_fast.geometry.proposal_windows import (
    inference_ticks,
    pooled_rows,
    regions,
    relative_segments,
    window_rows,
)
from bcnet_fast.networks.range_maxima import range_maxima
from bcnet_fast.networks.reference.muses import roi_bins
from bcnet_fast.ops import native


@pytest.fixture(scope="module")
def geometry():
    return np.load(STAGE2 / "pgcn_geometry.npz")


@pytest.fixture(scope="module")
def graph():
    return np.load(STAGE2 / "pgcn_graph.npz")


def test_ticks_are_the_golden_ones(geometry):
    for number, video in enumerate(listed("thumos_test")[:12], start=1):
        assert np.array_equal(inference_ticks(video.proposals, video.frames), geometry[f"ticks_{number:02d}"])
    for number, video in enumerate(listed("anet")):
        assert np.array_equal(inference_ticks(video.proposals, video.frames), geometry[f"ticks_anet{number}"])
    for number, video in enumerate(listed("thumos_test")[:2], start=1):
        assert np.array_equal(relative_segments(video.proposals, video.frames), geometry[f"rel_{number:02d}"])


def test_pooled_rows_are_the_golden_ones(geometry):
    for number, video in enumerate(listed("thumos_test")[:2], start=1):
        ticks = inference_ticks(video.proposals, video.frames)
        found = pooled_rows(ticks, video.frames, rows_of(video), FeatureRows())
        assert np.array_equal(found, geometry[f"pool_rows_{number:02d}"])
    for number, video in enumerate(listed("anet")):
        ticks = inference_ticks(video.proposals, video.frames)
        assert np.array_equal(pooled_rows(ticks, video.frames, 100, ANET_ROWS), geometry[f"pool_rows_anet{number}"])
    cases = zip(geometry["case_in"], geometry["case_rows_thumos"], geometry["case_rows_anet"], strict=True)
    for (start, end, rows, frames), thumos, anet in cases:
        assert window_rows([start, end], frames, rows, FeatureRows()).tolist() == thumos.tolist()
        assert window_rows([start, end], frames, 100, ANET_ROWS).tolist() == anet.tolist()


@pytest.mark.parametrize("number", [1, 2])
def test_pooled_features_are_the_golden_ones_bit_by_bit(geometry, number):
    video = listed("thumos_test")[number - 1]
    activity, completeness = pooled(video, rows_of(video))
    assert np.array_equal(completeness[:, ::96].numpy(), geometry[f"pooled_sample_{number:02d}"])
    known = json.loads((STAGE2 / "sha256.json").read_text())
    for kind, features in (("act", activity), ("comp", completeness)):
        assert hashlib.sha256(features.numpy().tobytes()).hexdigest() == known[f"pooled_{kind}/{video.name}"]


def test_regions_and_their_bins_are_the_golden_ones():
    known = np.load(STAGE2 / "muses_forward.npz")
    for number in (1, 2, 13):
        video = listed("thumos_test")[number - 1]
        rois = regions(inference_ticks(video.proposals, video.frames))
        assert np.array_equal(rois, known[f"rois_{number:02d}"])
        bins = roi_bins(torch.from_numpy(rois), rows_of(video)).numpy()
        bins[bins[..., 0] >= bins[..., 1]] = 0
        assert np.array_equal(bins, known[f"bins_{number:02d}"])


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_maxima_by_table_are_those_of_a_scan(rng, rows):
    x = torch.from_numpy(rng.standard_normal((rows, 3)))
    first, end = np.triu_indices(rows + 1)
    found = range_maxima(x, torch.from_numpy(first), torch.from_numpy(end))
    for maximum, low, high in zip(found, first, end, strict=True):
        assert torch.equal(maximum, x[low:high].amax(dim=0) if low < high else torch.zeros(3, dtype=x.dtype))
    assert range_maxima(x, torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2, 3)


def test_the_graph_is_the_golden_one(graph):
    generator = np.random.RandomState(777)
    for number, video in enumerate(listed("thumos_test")[:3], start=1):
        slots = neighbour_slots(video.proposals)
        assert np.array_equal(slots, graph[f"cand_{number:02d}"])
        assert np.array_equal(draw_trees(slots, generator), graph[f"nodes777_{number:02d}"])
    for number, video in enumerate(listed("thumos_test")[:2], start=1):
        assert np.array_equal(pairwise_iou(video.proposals, video.proposals), graph[f"iou_{number:02d}"])
        assert np.array_equal(pairwise_distance(video.proposals, video.proposals), graph[f"dist_{number:02d}"])
    slots = neighbour_slots(listed("anet")[0].proposals)
    assert np.array_equal(slots, graph["cand_anet0"])
    trees = draw_trees(slots, np.random.RandomState(777), np.arange(8))
    assert np.array_equal(trees, graph["nodes777_anet0"])


def by_sorting(segments: np.ndarray) -> np.ndarray:
    """`neighbour_slots` by its definition, node by node."""
    iou, distance = pairwise_iou(segments, segments), pairwise_distance(segments, segments)
    slots = []
    for node in range(len(segments)):
        near = [int(j) for j in np.argsort(-iou[node], kind="stable") if iou[node, j] > 0.7 and j != node]
        far = np.argsort(distance[node], kind="stable")
        far = [int(j) for j in far if iou[node, j] <= 0 and distance[node, j] > 0]
        slots.append([*(near or [node]) * 8][:8] + [*(far or [node]) * 2][:2])
    return np.array(slots).reshape(-1, 10)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 60])
def test_equal_neighbours_come_in_the_order_of_the_list(rng, graph, count):
    assert np.array_equal(neighbour_slots(graph["own_ties_segments"]), graph["own_ties_cand"])
    start = rng.integers(0, 12, count)  # a grid so coarse that equal segments are common
    segments = np.stack([start, start + rng.integers(1, 12, count)], axis=1)
    slots = neighbour_slots(segments)
    assert np.array_equal(slots, by_sorting(segments))
    assert slots.shape == (count, 10) and slots.dtype == np.int64


def test_without_the_extension_memory_does_not_grow_with_the_pairs_of_proposals(rng, monkeypatch):
    start = rng.integers(0, 300, 600)
    segments = np.stack([start, start + rng.integers(1, 40, 600)], axis=1)
    expected = neighbour_slots(segments)
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(proposal_graph, "_PAIRS_AT_ONCE", 1 << 13)
    tracemalloc.start()
    try:
        assert np.array_equal(neighbour_slots(segments), expected)
        assert tracemalloc.get_traced_memory()[1] < 600 * 600 * 4  # half of what the IoU of all pairs takes
    finally:
        tracemalloc.stop()


def test_a_video_s_trees_do_not_depend_on_other_videos(graph):
    slots = graph["cand_01"]
    trees = draw_trees(slots, video_generator(0, "v1"))
    assert np.array_equal(trees, draw_trees(slots, video_generator(0, "v1")))
    assert not np.array_equal(trees, draw_trees(slots, video_generator(0, "v2")))
    assert not np.array_equal(trees, draw_trees(slots, video_generator(1, "v1")))
    for tree in trees:
        for node in range(5):
            drawn, candidates = tree[1 + 4 * node : 5 + 4 * node].tolist(), slots[tree[node]].tolist()
            assert all(drawn.count(child) <= candidates.count(child) for child in drawn)


def test_a_draw_takes_every_slot_equally_often(graph):
    slots = np.arange(10)[None].repeat(10, axis=0)
    trees = draw_trees(slots, video_generator(3, "v"), np.zeros(4000, dtype=int))
    assert np.abs(np.bincount(trees[:, 1:5].ravel()) / 16000 - 0.1).max() < 0.01
