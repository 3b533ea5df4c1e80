"""Windows, rescaling, and where snippets lie in time."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from bcnet_fast.data.annotations import VideoAnnotation, read_annotations
from bcnet_fast.data.timing import RescaledTime, SnippetTime, TimeFlags, TimeOptions, TimeResolver
from bcnet_fast.data.windows import cut, rescale, window_starts
from bcnet_fast.errors import InputError
from bcnet_fast.presets import PRESETS

THUMOS, ACTIVITYNET = PRESETS["bcnet"]["thumos14"], PRESETS["bcnet"]["activitynet13"]


def test_window_starts_equal_the_public_release(golden):
    cases = json.loads((golden / "windows_inference.json").read_text())
    assert len(cases) == 24
    for frames, case in cases.items():
        snippets = len(range(0, int(frames), 5))
        assert snippets == case["snippets"]
        assert window_starts(snippets, 256, 128, keep_tail=False) == case["starts"], frames


@pytest.mark.parametrize("window", [1, 7, 100])
def test_default_windows_leave_no_snippet_out(window):
    for snippets in range(1, 5 * window + 3):
        starts = window_starts(snippets, window, max(1, window // 2), keep_tail=True)
        covered = {t for start in starts for t in range(start, start + window)}
        assert covered >= set(range(snippets))
        assert starts == sorted(set(starts)) and starts[0] == 0
        assert len(starts) == 1 or starts[-1] + window <= snippets


def test_cut_copies_snippets_and_pads_with_zeros(rng):
    features = rng.standard_normal((11, 3)).astype(np.float32)
    windows = cut(features, [0, 4, 8], 6)
    assert windows.shape == (3, 3, 6) and windows.dtype == np.float32 and windows.flags.c_contiguous
    for window, start in zip(windows, [0, 4, 8], strict=True):
        part = features[start : start + 6]
        np.testing.assert_array_equal(window[:, : len(part)], part.T)
        assert not window[:, len(part) :].any()


def test_rescale_is_linear_between_cell_centres(rng):
    features = rng.standard_normal((37, 4)).astype(np.float32)
    np.testing.assert_array_equal(rescale(features, 37), features.T)
    for snippets in (1, 5, 36, 100, 333):
        positions = (np.arange(snippets) + 0.5) * 37 / snippets - 0.5
        expected = [np.interp(positions, np.arange(37), channel) for channel in features.T]
        result = rescale(features, snippets)
        assert result.dtype == np.float32 and result.shape == (4, snippets)
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("time", "boundary", "seconds"),
    [
        (SnippetTime(5, 0, 30, None), 6, 1.0),  # two-stream THUMOS14
        (SnippetTime(4, 8, 25, None), 3, 0.8),  # ActionFormer's I3D
        (SnippetTime(16, 8, 15, 100.0), 0, 8 / 15),  # TSP
        (RescaledTime(100, 124.23), 50, 62.115),  # ActivityNet
    ],
)
def test_seconds_of_the_public_layouts(time, boundary, seconds):
    assert time.seconds(boundary) == pytest.approx(seconds, rel=1e-12)
    np.testing.assert_allclose(time.seconds(np.array([boundary, boundary])), [seconds, seconds])


def _resolver(config=THUMOS, *, every=1, row_stride=None, flags=None, **row) -> TimeResolver:
    return TimeResolver(config, flags, {"a": VideoAnnotation("a", **row)}, every=every, row_stride=row_stride)


def test_flags_go_before_the_table_and_the_table_before_the_preset():
    row = {"fps": 25.0, "feature_stride": 8.0, "feature_offset": 4.0, "duration": 10.0}
    assert _resolver(**row).resolve("a", 9) == SnippetTime(8.0, 4.0, 25.0, 10.0)
    flags = TimeFlags(fps=30.0, stride=2.0, offset=1.0, duration=20.0)
    assert _resolver(flags=flags, **row).resolve("a", 9) == SnippetTime(2.0, 1.0, 30.0, 20.0)
    assert _resolver(flags=TimeFlags(offset=0.0), **row).resolve("a", 9) == SnippetTime(8.0, 0.0, 25.0, 10.0)
    assert _resolver(fps=25.0).resolve("a", 9) == SnippetTime(5.0, 0.0, 25.0, None)
    assert _resolver(flags=flags).resolve("not in the table", 9) == SnippetTime(2.0, 1.0, 30.0, 20.0)


def test_stride_counts_rows_of_the_file_and_every_multiplies_it():
    assert _resolver(fps=30.0, every=5, row_stride=1.0).resolve("a", 9).stride == 5.0
    assert _resolver(fps=30.0, every=4, row_stride=1.0).resolve("a", 9).stride == 4.0
    assert _resolver(fps=30.0, every=2, feature_stride=8.0).resolve("a", 9).stride == 16.0
    assert _resolver(fps=30.0, every=2, flags=TimeFlags(stride=3.0)).resolve("a", 9).stride == 6.0
    with pytest.raises(InputError, match=r"video 'a' has no known stride, .* one in 2 rows .*give --stride"):
        _resolver(fps=30.0, every=2).resolve("a", 9)


def test_fps_and_duration_follow_from_frames():
    assert _resolver(frames=250, duration=10.0).resolve("a", 9).fps == 25.0
    assert _resolver(frames=250, flags=TimeFlags(duration=5.0)).resolve("a", 9).fps == 50.0
    assert _resolver(frames=250, fps=25.0).resolve("a", 9).duration == 10.0
    for row in ({}, {"frames": 250}, {"duration": 10.0}):
        with pytest.raises(InputError, match="video 'a' has no known frame rate; give --fps"):
            _resolver(**row).resolve("a", 9)


def test_rescaled_videos_need_a_duration():
    assert _resolver(ACTIVITYNET, duration=50.0).resolve("a", 100).seconds(10) == 5.0
    assert _resolver(ACTIVITYNET, frames=1500, fps=30.0).resolve("a", 100).duration == 50.0
    # 90 rows of 16 frames: they were not rescaled before, so they tell how long the video is.
    assert _resolver(ACTIVITYNET, fps=30.0).resolve("a", 90).duration == 48.0
    assert _resolver(ACTIVITYNET, fps=30.0, flags=TimeFlags(stride=15.0)).resolve("a", 100).duration == 50.0
    with pytest.raises(InputError, match="video 'a' has no known duration; give --duration"):
        _resolver(ACTIVITYNET).resolve("a", 90)
    with pytest.raises(InputError, match="100 rows that may be rescaled already; give --duration"):
        _resolver(ACTIVITYNET, fps=30.0).resolve("a", 100)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"fps": 0.0}, "--fps is 0.0, expected a positive number"),
        ({"stride": -1.0}, "--stride is -1.0, expected a positive number"),
        ({"duration": float("nan")}, "--duration is nan, expected a positive number"),
        ({"fps": 1e-320}, "--fps is 1e-320, expected a positive number"),
        ({"stride": 1e31}, "--stride is 1e+31, expected a positive number"),
        ({"offset": float("inf")}, "--offset is inf, expected a finite number"),
        ({"fps": 1e-30}, "--fps is 1e-30, expected a positive number from 1e-06 to 1e+06"),
        ({"stride": 1e30}, "--stride is 1e+30, expected a positive number from 1e-06 to 2.14748e+09"),
        ({"offset": -1e30}, "--offset is -1e+30, expected a finite number from -2.14748e+09 to 2.14748e+09"),
        ({"duration": 1e30}, "--duration is 1e+30, expected a positive number from 1e-06 to 1e+09"),
    ],
)
def test_flags_out_of_range_are_refused(flags, found):
    with pytest.raises(InputError, match=re.escape(found)):
        TimeFlags(**flags)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("1e-30,1,0,1,1", "fps is 1e-30, expected a positive number from 1e-06 to 1e+06"),
        ("25,1e30,0,1,1", "stride is 1e+30, expected"),
        ("25,1,1e30,1,1", "offset is 1e+30, expected a finite number from -2.14748e+09"),
        ("25,1,0,1e30,1", "duration is 1e+30, expected"),
        ("25,1,0,1,1e30", "frames is 1e+30, expected"),
    ],
)
def test_times_table_out_of_range_is_refused(row, found, tmp_path):
    path = tmp_path / "times.csv"
    path.write_text(f"video,fps,stride,offset,duration,frames\nb,25,1,0,,\na,{row}\n")
    archive = SimpleNamespace(every=1, row_stride=None, sidecar=lambda video: None)
    with pytest.raises(InputError, match=re.escape(f"{path}: video 'a': {found}")):
        TimeOptions(times=str(path)).resolver(THUMOS, archive)


@pytest.mark.parametrize("every", [2**31, 10**400])
def test_huge_steps_between_rows_are_refused(every):
    with pytest.raises(InputError, match=r"^--every is .{1,80}, expected at most 2147483647$"):
        TimeOptions(every=every)


def test_times_that_follow_from_others_are_bounded():
    with pytest.raises(InputError, match=re.escape("video 'a' has the fps 1e+08, expected a positive number")):
        _resolver(frames=1000, duration=1e-5).resolve("a", 9)
    with pytest.raises(InputError, match=re.escape("video 'a' has the stride 1e+10, expected a positive number")):
        _resolver(fps=25.0, feature_stride=1e9, every=10).resolve("a", 9)


def test_table_is_matched_by_the_ids_as_they_are():
    resolver = TimeResolver(THUMOS, None, {"v_a": VideoAnnotation("v_a"), "b": VideoAnnotation("b")})
    assert resolver.matched(["a", "b", "c"]) == ["b"]
    resolver.require_match(["a", "b"], "folder", "times.csv")
    with pytest.raises(InputError) as caught:
        resolver.require_match(["a"], "folder", "times.csv")
    assert str(caught.value) == (
        "times.csv has 2 videos, such as 'v_a', expected some of the 1 in folder, such as 'a'; "
        "they agree without the prefix v_, which --preset activitynet13 removes"
    )
    with pytest.raises(
        InputError, match=r"has 2 videos, such as 'v_a', expected some of the 1 in folder, such as 'z'$"
    ):
        resolver.require_match(["z"], "folder", "times.csv")
    TimeResolver(THUMOS).require_match(["z"], "folder", "no table")


def test_times_come_from_a_small_csv(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("video,fps,stride,offset\na,25,4,8\nb,,2,\n")
    resolver = TimeResolver(THUMOS, TimeFlags(fps=30.0), read_annotations(path))
    assert resolver.resolve("b", 9) == SnippetTime(2.0, 0.0, 30.0, None)
    resolver = TimeResolver(THUMOS, None, read_annotations(path))
    assert resolver.resolve("a", 9) == SnippetTime(4.0, 8.0, 25.0, None)


def test_real_features_last_as_long_as_their_annotation_says(shared):
    for folder, name in (("salads50", "annotations_knife.json"), ("video_lite0", "annotations.json")):
        table = read_annotations(shared / "data" / folder / name)
        resolver = TimeResolver(THUMOS, None, table)
        for path in sorted((shared / "data" / folder / "features").glob("*.npy")):
            rows = len(np.load(path, mmap_mode="r"))
            time = resolver.resolve(path.stem, rows)
            assert time.seconds(rows) == pytest.approx(time.duration, abs=0.2), path
