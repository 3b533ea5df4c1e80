"""Training targets: the public release's figures, a slow loop, and the meaning of a label."""

from __future__ import annotations

import time

import numpy as np
import pytest
from helpers.training import release_targets
from torch.utils.data import default_collate

from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.protocols import DEFAULT, RELEASES
from bcnet_fast.training.targets import Targets, window_targets


def test_release_targets_equal_the_public_codes(golden):
    arrays = np.load(golden / "bcnet" / "train.npz")
    batch = default_collate(release_targets(arrays))
    names = ("action", "background", "start", "end", "clip_iou", "clip_background")
    for target, name in zip(batch, names, strict=True):
        expected = arrays[f"label_{name}"]
        assert target.numpy().dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(target.numpy(), expected, err_msg=name)


def slow_targets(segments, anchors, window):
    """The definitions in snippets, one interval at a time."""

    def overlap(a, b):
        return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))

    def largest(interval, others):
        return max((overlap(interval, other) / (interval[1] - interval[0]) for other in others), default=0.0)

    snippets = [(t, t + 1) for t in range(window)]
    boundaries = [(t - 0.5, t + 0.5) for t in range(window)]
    action = [largest(snippet, segments) for snippet in snippets]
    start = [largest(cell, [(s - 1.5, s + 1.5) for s, _ in segments]) for cell in boundaries]
    end = [largest(cell, [(e - 1.5, e + 1.5) for _, e in segments]) for cell in boundaries]
    tiou, background = [], []
    for anchor in anchors.tolist():
        shared = [overlap(anchor, segment) for segment in segments]
        length = anchor[1] - anchor[0]
        tiou.append(max((o / (length + e - s - o) for o, (s, e) in zip(shared, segments, strict=True)), default=0.0))
        background.append(max(0.0, 1 - sum(shared) / length))
    return Targets(*map(np.array, (action, [1 - a for a in action], start, end, tiou, background)))


@pytest.mark.parametrize("count", [0, 1, 12])
def test_default_targets_equal_a_slow_loop(rng, count):
    window, first, stride = 37, 130.0, 4.0
    anchors = make_anchors(window, 12)
    segments = np.sort(rng.uniform(-8, 45, (count, 2)), axis=1)
    expected = slow_targets(segments.tolist(), anchors, window)
    for found in (
        window_targets(segments, anchors, window),
        window_targets(first + stride * segments, anchors, window, first=first, stride=stride),
    ):
        for name in Targets._fields:
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6, err_msg=name)


def test_labels_peak_where_inference_reads_them():
    targets = window_targets([(10, 20)], make_anchors(32, 16), 32)
    np.testing.assert_array_equal(np.flatnonzero(targets.start), [9, 10, 11])
    np.testing.assert_array_equal(np.flatnonzero(targets.end), [19, 20, 21])
    np.testing.assert_array_equal(np.flatnonzero(targets.frame_action), np.arange(10, 20))
    exact = window_targets([(10, 18)], make_anchors(32, 16), 32)
    best = int(exact.anchor_action.argmax())
    assert make_anchors(32, 16)[best].tolist() == [10, 18] and exact.anchor_action[best] == 1
    assert exact.anchor_background[best] == 0


def test_background_of_two_instances_is_summed_by_default_only():
    segments, anchors = [(0, 4), (6, 10)], np.array([[0, 10]], dtype=np.int32)
    assert window_targets(segments, anchors, 16).anchor_background == pytest.approx([0.2])
    release = window_targets(segments, anchors, 16, first=0.5, rules=RELEASES["bcnet"].labels)
    assert release.anchor_background == pytest.approx([0.6])


def test_instances_without_extent_are_dropped():
    anchors = make_anchors(32, 16)
    expected = window_targets([(3.0, 9.0)], anchors, 32)
    for found, target in zip(window_targets([(5.0, 5.0), (3.0, 9.0)], anchors, 32), expected, strict=True):
        np.testing.assert_array_equal(found, target)


def test_an_instance_longer_than_the_window_gives_finite_labels():
    for protocol in (DEFAULT, RELEASES["bcnet"]):
        targets = window_targets([(-100, 500)], make_anchors(32, 16), 32, rules=protocol.labels)
        assert all(np.isfinite(target).all() and target.min() >= 0 and target.max() <= 1 for target in targets)
        assert targets.frame_action.min() == 1 and targets.anchor_background.max() == 0


def test_targets_of_a_thumos14_window_take_less_than_two_milliseconds(golden):
    arrays = np.load(golden / "bcnet" / "train.npz")
    anchors, busiest = make_anchors(256, 64), arrays["gt_1"]
    seconds = []
    for _ in range(50):
        started = time.perf_counter()
        window_targets(busiest, anchors, 256, first=1280.0, stride=5.0)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 2e-3
