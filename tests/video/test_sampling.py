"""Recipes against the sampling that the sources of the published features state, written down here a second time."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from bcnet_fast.recipe import Recipe
from bcnet_fast.video.recipes import find_recipe, named_recipes
from bcnet_fast.video.sampling import Sampling

LENGTHS = (1, 15, 16, 17, 20, 63, 64, 65, 66, 128, 129, 130, 257, 300)


def starts(first: range, clip: int) -> list[list[int]]:
    return [list(range(start, start + clip)) for start in first]


def cmcs(frames: int) -> list[list[int]]:
    """T = (N - 16) // 4 + 1."""
    return starts(range(0, 4 * ((frames - 16) // 4 + 1), 4), 16) if frames >= 16 else []


def at_15(frames: int, rate: Fraction, stride: int) -> list[list[int]]:
    """Frame floor(i * rate / 15) of floor(N * 15 / rate) sampled frames; whole clips of 16."""
    sampled = [math.floor(i * rate / 15) for i in range(math.floor(frames * 15 / rate))]
    return [sampled[start : start + 16] for start in range(0, len(sampled) - 15, stride)]


PUBLISHED = {
    "i3d-thumos14": lambda n, rate: cmcs(n),
    "i3d-pgcn": lambda n, rate: starts(range(0, n - 63, 8), 64),
    # 65 frames are read, the last one is dropped, partial clips too.
    "i3d-video-features": lambda n, rate: starts(range(0, n - 64, 64), 64),
    "tsp-activitynet": lambda n, rate: at_15(n, rate, 16),
    "tsp-thumos14": lambda n, rate: at_15(n, rate, 1),
    "videomaev2-thumos14": lambda n, rate: starts(range(0, n - 15, 4), 16),
    "videomaev2-fineaction": lambda n, rate: starts(range(0, n - 15, 16), 16),
    "videomae-thumos14": lambda n, rate: starts(range(0, n - 15, 4), 16),
    "slowfast-thumos14": lambda n, rate: starts(range(0, n - 31, 4), 32),
    "internvideo2-thumos14": lambda n, rate: starts(range(0, n - 15, 4), 16),
    "internvideo2-activitynet": lambda n, rate: starts(range(0, n - 15, 8), 16),
    # UntrimmedSampleFrames: clip_centers = arange(16 // 2, N, 16).
    "tsn-mmaction2": lambda n, rate: [[center] for center in range(8, n, 16)],
    # One row a frame is published, and every 5th used.
    "tsn-gtad": lambda n, rate: [[frame] for frame in list(range(n))[::5]],
    # Flow i is that of frames i and i + 1, so that n frames have n - 1. The lists below have the numbers of flows.
    "i3d-thumos14-flow": lambda n, rate: cmcs(n - 1),
    "i3d-pgcn-flow": lambda n, rate: starts(range(0, n - 64, 8), 64),
    "i3d-video-features-flow": lambda n, rate: starts(range(0, n - 64, 64), 64),
    # clip_centers + [-2, -1, 0, 1, 2], cut to the flows that there are.
    "tsn-mmaction2-flow": lambda n, rate: [
        np.clip(np.arange(center - 2, center + 3), 0, n - 2).tolist() for center in range(8, n - 1, 16)
    ],
    # min(last, tick + offset) of TSN.
    "tsn-gtad-flow": lambda n, rate: [[min(n - 2, tick + k) for k in range(5)] for tick in range(0, n - 1, 5)],
}


def streamed(recipe: Recipe, frames: int, rate: Fraction) -> list[list[int]]:
    """Rows of a stream of frames whose pixels are their own numbers; of flow, those of the first frames of pairs."""
    rows = []
    if recipe.modality == "flow":
        sampling = Sampling(recipe, rate)
        following = dict(itertools.pairwise(sampling.frames(np.arange(frames + 1)).tolist()))
        for numbers, pairs in sampling.stream(((k, k) for k in range(frames)), lambda pair: pair):
            assert all(following[first] == second for first, second in pairs)
            assert numbers.tolist() == [first for first, _ in pairs]
            rows.append(numbers.tolist())
        return rows
    for numbers, pixels in Sampling(recipe, rate).stream(((k, k) for k in range(frames)), lambda frame: frame):
        assert numbers.tolist() == pixels
        rows.append(pixels)
    return rows


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_sample_the_published_frames(name) -> None:
    recipe = find_recipe(name)
    for rate in (Fraction(25), Fraction(30000, 1001), Fraction(10)):
        for frames in LENGTHS:
            expected = PUBLISHED[name](frames, rate)
            assert streamed(recipe, frames, rate) == expected, (frames, rate)
            assert Sampling(recipe, rate).rows(frames) == len(expected)


def test_offsets_and_frame_rates_are_the_published_ones() -> None:
    offsets = {name: named.recipe.boundary_offset for name, named in named_recipes().items()}
    assert offsets["i3d-thumos14"] == 8 and offsets["internvideo2-activitynet"] == 4
    assert offsets["slowfast-epic"] == 16 and offsets["tsp-activitynet"] == 8
    rates = {name: named.recipe.fps for name, named in named_recipes().items()}
    assert (rates["tsp-thumos14"], rates["slowfast-hacs"], rates["slowfast-epic"]) == (15, 15, 30)
    assert rates["i3d-activitynet"] == 25 and rates["i3d-thumos14"] is None


def test_a_frame_is_converted_once_and_only_where_a_row_uses_it() -> None:
    converted: list[int] = []

    def convert(frame: int) -> int:
        converted.append(frame)
        return frame

    list(Sampling(Recipe("x", clip=4, stride=2), Fraction(25)).stream(((k, k) for k in range(20)), convert))
    assert converted == list(range(20))
    converted.clear()
    list(Sampling(Recipe("x", clip=2, stride=7, step=3), Fraction(25)).stream(((k, k) for k in range(20)), convert))
    assert converted == [0, 3, 7, 10, 14, 17]


def pairs_of(fps: float, frames: int, rate: int = 30, **settings: int) -> list[list[tuple[int, int]]]:
    recipe = Recipe("x", clip=2, stride=2, fps=fps, modality="flow", **settings)
    sampling = Sampling(recipe, Fraction(rate))
    rows = [pairs for _, pairs in sampling.stream(((k, k) for k in range(frames)), lambda pair: pair)]
    assert len(rows) == sampling.rows(frames)
    assert frames < sampling.needed(len(rows)) and (not rows or frames >= sampling.needed(len(rows) - 1))
    return rows


def test_flow_is_that_of_sampled_frames() -> None:
    assert pairs_of(15, 6) == [[(0, 2), (2, 4)]]  # three whole sampled frames have two flows
    assert pairs_of(15, 5) == []
    assert pairs_of(60, 3) == [[(0, 0), (0, 1)], [(1, 1), (1, 2)]]
    assert pairs_of(15, 12, tail=1) == [[(0, 2), (2, 4)], [(4, 6), (6, 8)], [(8, 10), (8, 10)]]
    assert pairs_of(15, 13, first=1, extra=1) == [[(2, 4), (4, 6)]]


def test_a_tail_repeats_the_last_frame_of_the_clip() -> None:
    recipe = Recipe("x", clip=3, stride=2, step=2, fps=15.0, tail=1)
    sampling = Sampling(recipe, Fraction(30))
    assert streamed(recipe, 11, Fraction(30)) == [[0, 4, 8], [4, 8, 8]] and sampling.rows(11) == 2
    assert sampling.needed(1) == 10 and sampling.rows(9) == 1


def test_a_stream_holds_the_frames_of_one_clip() -> None:
    alive = 0

    class Frame:
        def __init__(self) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    for name in ("i3d-thumos14", "i3d-thumos14-flow"):
        most = 0
        sampling = Sampling(find_recipe(name), Fraction(30))
        for _ in sampling.stream(((k, Frame()) for k in range(2000)), lambda item: Frame()):
            most = max(most, alive)
        assert most <= 24  # a clip, the frames up to the next row, and those of a pair


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0}, "clip is 0, expected a whole number from 1 to 1024"),
        ({"fps": -1.0}, "fps is -1.0, expected a number from 0.01 to 1000"),
        ({"crop": [9]}, "crop is .*, expected height and width from 1 to 4096"),
        ({"std": [0, 1, 1]}, "expected three numbers"),
        ({"interpolation": "magic"}, "expected bilinear, bicubic or area"),
        ({"strid": 4}, "has no setting 'strid'; did you mean stride"),
        ({"tail": 4}, "tail is 4, expected less than clip = 4"),
        ({"modality": "depth"}, "modality is 'depth', expected rgb or flow"),
        ({"modality": "flow", "flow": "farneback"}, "flow is 'farneback', expected tv-l1, dis or raft"),
        ({"modality": "flow", "mean": [0, 0, 0]}, "expected two numbers, for x and y"),
        ({"mean": [0, 0]}, "expected three numbers, for red, green and blue"),
        ({"streams": [{"name": "y", "clip": 1, "stride": 1}]}, "1 stream, expected 2 to 8"),
        ({"streams": 3}, "streams is 3, expected recipes"),
        ({"clip": 1024, "crop": [4096, 4096]}, "clips take 1024 frames of 4096 x 4096 pixels at once, expected"),
        ({"clip": 64, "resize": [4096]}, "clips take 64 frames of 4096 x 4096 pixels at once, expected"),
        ({"clip": 64, "step": 1024, "stride": 1, "crop": [224, 224]}, "clips take 64513 frames of 224 x 224"),
        ({"clip": 1024, "step": 1024, "stride": 1}, "1048576 rows of 1024 frames overlap .* expected at most"),
    ],
)
def test_impossible_recipes_are_refused_by_name(change, message) -> None:
    from bcnet_fast.errors import InputError

    with pytest.raises(InputError, match=f"mine: .*{message}"):
        Recipe.from_dict({"name": "x", "clip": 4, "stride": 2} | change, "mine")


@pytest.mark.parametrize(("clip", "stride", "step"), [(4, 2, 1), (4, 3, 5), (3, 20, 4), (5, 1, 3)])
def test_no_more_frames_are_in_memory_than_the_recipe_says(clip, stride, step) -> None:
    recipe = Recipe("x", clip, stride, step=step)
    stream = Sampling(recipe, Fraction(25)).stream(((number, number) for number in range(100)), lambda number: number)
    assert max(len(stream.gi_frame.f_locals["held"]) for _ in stream) <= recipe.held <= clip * step


def test_a_recipe_survives_its_dictionary() -> None:
    for named in named_recipes().values():
        assert Recipe.from_dict(named.recipe.to_dict(), "x") == named.recipe
        assert named.summary and named.source and named.pixels
    both = find_recipe("i3d-thumos14+i3d-thumos14-flow")
    assert (both.name, both.width, both.boundary_offset) == ("i3d-thumos14+i3d-thumos14-flow", 2048, 8)
    assert Recipe.from_dict(json.loads(json.dumps(both.to_dict())), "x") == both
    assert both.difference(find_recipe("i3d-thumos14-flow+i3d-thumos14")) is not None
    assert both.difference(both.streams[0]) == "2 instead of 1 streams"


def test_streams_side_by_side_are_of_one_time() -> None:
    from bcnet_fast.errors import InputError

    with pytest.raises(InputError, match="i3d-pgcn-flow has stride 8, expected 4 as i3d-thumos14, so that rows"):
        find_recipe("i3d-thumos14+i3d-pgcn-flow")
    with pytest.raises(InputError, match="i3d-activitynet-flow has fps 25, expected none"):
        find_recipe("videomaev2-fineaction+i3d-activitynet-flow")


def test_frames_of_a_row_agree_with_the_table() -> None:
    sampling = Sampling(find_recipe("tsp-thumos14"), Fraction(30000, 1001))
    rows = streamed(find_recipe("tsp-thumos14"), 200, Fraction(30000, 1001))
    assert all(np.array_equal(sampling.clip(row), numbers) for row, numbers in enumerate(rows))
