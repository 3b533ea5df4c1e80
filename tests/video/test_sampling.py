"""Recipes against the sampling that the sources of the published features state, written down here a second time."""

from __future__ import annotations

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
}


def streamed(recipe: Recipe, frames: int, rate: Fraction) -> list[list[int]]:
    """Rows of a stream of frames whose pixels are their own numbers."""
    rows = []
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


def test_a_stream_holds_the_frames_of_one_clip() -> None:
    alive = 0

    class Frame:
        def __init__(self) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    most = 0
    sampling = Sampling(find_recipe("i3d-thumos14"), Fraction(30))
    for _ in sampling.stream(((k, None) for k in range(2000)), lambda frame: Frame()):
        most = max(most, alive)
    assert most <= 20  # a clip, and the frames up to the next row


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0}, "clip is 0, expected a whole number from 1 to 1024"),
        ({"fps": -1.0}, "fps is -1.0, expected a number from 0.01 to 1000"),
        ({"crop": [9]}, "crop is .*, expected height and width from 1 to 4096"),
        ({"std": [0, 1, 1]}, "expected three numbers"),
        ({"interpolation": "magic"}, "expected bilinear or bicubic or area"),
        ({"strid": 4}, "has no setting 'strid'; did you mean stride"),
    ],
)
def test_impossible_recipes_are_refused_by_name(change, message) -> None:
    from bcnet_fast.errors import InputError

    with pytest.raises(InputError, match=f"mine: .*{message}"):
        Recipe.from_dict({"name": "x", "clip": 4, "stride": 2} | change, "mine")


def test_a_recipe_survives_its_dictionary() -> None:
    for named in named_recipes().values():
        assert Recipe.from_dict(named.recipe.to_dict(), "x") == named.recipe
        assert named.summary and named.source and named.pixels


def test_frames_of_a_row_agree_with_the_table() -> None:
    sampling = Sampling(find_recipe("tsp-thumos14"), Fraction(30000, 1001))
    rows = streamed(find_recipe("tsp-thumos14"), 200, Fraction(30000, 1001))
    assert all(np.array_equal(sampling.clip(row), numbers) for row, numbers in enumerate(rows))
