"""Windows that are trained on, and their labels."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bcnet_fast.config import Config
from bcnet_fast.data.annotations import Instance, VideoAnnotation
from bcnet_fast.data.features import FeatureSequence
from bcnet_fast.data.timing import TimeResolver
from bcnet_fast.errors import InputError
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import proposal_map
from bcnet_fast.presets import PRESETS
from bcnet_fast.protocols import DEFAULT
from bcnet_fast.training.dataset import TrainingWindows, check_subset
from bcnet_fast.training.targets import map_targets, window_targets


def annotated(*segments: tuple[float, float], **facts: float) -> VideoAnnotation:
    return VideoAnnotation("v", instances=tuple(Instance(*segment, "x") for segment in segments), **facts)


def windows_of(annotation: VideoAnnotation, rows: int, config: Config) -> TrainingWindows:
    features = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    loaded = [("v", FeatureSequence(features, "[T, C]", "v.npy", rows, "float32"))]
    times = TimeResolver(config, table={"v": annotation})
    subset = check_subset("training", {"v": annotation}, loaded, times, DEFAULT.windows, kept_bytes=1 << 20)
    return TrainingWindows(None, subset.videos, config, DEFAULT)


def test_windows_are_those_that_show_an_instance():
    """100 snippets of 5 frames at 25 fps are 20 s; windows of 40 snippets begin at 0, 4, 8 and 12 s."""
    config = PRESETS["bcnet"]["thumos14"].override(
        {"model": {"feature_dim": 2, "window": 40, "max_duration": 8}, "data": {"window_stride": 20}}, "test"
    )
    # The second lies on the end of the first window with 0.9 of its length exactly, which is not enough.
    windows = windows_of(annotated((5.0, 6.0), (7.1, 8.1), fps=25), 100, config)
    assert windows.considered == 4 and windows.windows == [(0, 0), (0, 20)]
    windows = windows_of(annotated((7.05, 8.05), fps=25), 100, config)
    assert windows.windows == [(0, 0), (0, 20)]
    features, targets = windows[1]
    assert features.shape == (2, 40) and features[0, 0] == 40
    # In seconds 3.05 after the window's begin, 0.2 s a snippet.
    expected = window_targets([[15.25, 20.25]], np.array([[0, 2]]), 40)
    np.testing.assert_allclose(targets.start, expected.start, atol=1e-6)
    np.testing.assert_allclose(targets.frame_action, expected.frame_action, atol=1e-6)


def test_windows_are_shifted_inside_their_video_and_still_show_an_instance():
    config = PRESETS["bcnet"]["thumos14"].override(
        {"model": {"feature_dim": 2, "window": 40, "max_duration": 8}, "data": {"window_stride": 20}}, "test"
    )
    windows = windows_of(annotated((5.0, 6.0), (12.0, 13.0), fps=25), 100, config)
    assert windows.starts == [start for _, start in windows.windows] == [0, 20, 40, 60]
    seen = set()
    for epoch in range(60):
        windows.shift(np.random.default_rng(epoch))
        for index, (start, (_, first)) in enumerate(zip(windows.starts, windows.windows, strict=True)):
            assert 0 <= start <= 60 and abs(start - first) <= 10
            seen.add((index, start))
            # 0.2 s a snippet: more than nine tenths of the five snippets 25 to 29 or 60 to 64.
            assert start <= 25 <= start + 35 or start <= 60 <= start + 35
            features, _ = windows[index]
            assert features[0, 0] == 2 * start
        expected = window_targets(np.array([[25, 30], [60, 65]]) - windows.starts[1], np.array([[0, 2]]), 40)
        np.testing.assert_allclose(windows[1][1].frame_action, expected.frame_action, atol=1e-6)
    assert {start for index, start in seen if index == 1} == set(range(10, 31))
    assert windows.windows == [(0, 0), (0, 20), (0, 40), (0, 60)]


def test_zeros_after_a_short_video_show_nothing():
    config = PRESETS["bcnet"]["thumos14"].override({"model": {"feature_dim": 2}}, "test")
    windows = windows_of(annotated((1.0, 2.0), (3.9, 4.4), fps=25), 20, config)
    assert windows.windows == [(0, 0)]
    with pytest.raises(InputError, match=r"none of 1 window .* shows more than 90% of an instance"):
        windows_of(annotated((3.9, 4.4), fps=25), 20, config)


def test_a_rescaled_video_is_one_window():
    config = PRESETS["bmn"]["activitynet13"].override(
        {"model": {"feature_dim": 2, "window": 10, "max_duration": 10}}, "test"
    )
    windows = windows_of(annotated((3.0, 6.0), duration=30.0), 25, config)
    features, targets = windows[0]
    assert windows.windows == [(0, 0)] and features.shape == (2, 10)
    assert targets.action[1, 1] == 1  # the second snippet of ten is the second tenth of the video, 3 to 6 s
    assert float(targets.action.sum()) < 10


@pytest.mark.parametrize("model", PRESETS)
def test_labels_of_a_window_are_those_of_all_instances_and_take_2_ms(model, rng):
    """Instances far from a window are left out, which changes no label; a THUMOS14 video has 15 of them."""
    config = PRESETS[model]["thumos14"].override({"model": {"feature_dim": 2}}, "test")
    starts = np.sort(rng.uniform(0, 200, 15))
    annotation = annotated(*zip(starts, starts + rng.uniform(1, 12, 15), strict=True), fps=30)
    windows = windows_of(annotation, 1200, config)
    times = []
    for number, start in windows.windows:
        video = windows.videos[number]
        began = time.perf_counter()
        targets = windows.targets(video, start)
        times.append(time.perf_counter() - began)
        if model == "bcnet":
            whole = window_targets(video.segments, make_anchors(256, 64), 256, first=5.0 * start, stride=5.0)
        else:
            whole = map_targets(video.segments, proposal_map(config.model), 256, first=5.0 * start, stride=5.0)
        assert all((a == b).all() for a, b in zip(targets, whole, strict=True))
    print(f"{1000 * min(times):.2f} ms")
    assert min(times) < 0.006  # on a machine that is busy with other things
