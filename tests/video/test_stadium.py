"""The demo's clips: they show what happens, browsers play them, and their pixels hold the features."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.videos import av

from bcnet_fast.data.annotations import VideoAnnotation
from bcnet_fast.data.synthetic import PHASES, Event, SyntheticConfig, SyntheticVideo, make_videos, world_vectors
from bcnet_fast.errors import InputError
from bcnet_fast.recipe import Recipe
from bcnet_fast.video import stadium, writing
from bcnet_fast.video.backbones import BackboneOptions, open_backbone
from bcnet_fast.video.decoding import Video
from bcnet_fast.video.extraction import ReadOptions, extract_video, read_rows
from bcnet_fast.video.run import NetworkOptions

CONFIG = SyntheticConfig()
RATE = stadium.frame_rate(CONFIG)


def short_video(snippets: int = 32) -> SyntheticVideo:
    """The beginning of a video, with an action, a look-alike and a change of the scene."""
    video = list(make_videos(8, seed=7, subset="demo"))[7]
    duration = snippets * CONFIG.stride / CONFIG.fps
    annotation = dataclasses.replace(video.annotation, duration=duration)
    return dataclasses.replace(video, annotation=annotation, features=video.features[:snippets])


def staged(event: Event, snippets: int = 20) -> SyntheticVideo:
    """A video without noise, of one scene and one event."""
    phases, scenes = world_vectors(CONFIG)
    middle = (np.arange(snippets) + 0.5) * CONFIG.stride / CONFIG.fps
    features = scenes[[1] * snippets] + event.phases(middle) @ phases[event.action]
    annotation = VideoAnnotation("staged", duration=snippets * CONFIG.stride / CONFIG.fps, fps=CONFIG.fps)
    return SyntheticVideo(annotation, features.astype(np.float32), (event,), np.array([99.0]), np.array([1, 1]))


@pytest.mark.parametrize(
    "encoder", ["libx264", *(pytest.param(name, marks=pytest.mark.slow) for name in ("libvpx-vp9", "libvpx"))]
)
def test_features_are_read_back_from_a_compressed_clip(encoder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "_ENCODERS", [each for each in writing._ENCODERS if each[0] == encoder])
    try:
        writing.require_encoder()
    except InputError as error:
        pytest.skip(str(error))
    video = short_video()
    clip = writing.write_video(tmp_path, "clip", stadium.frames(video, CONFIG), RATE)
    backbone = NetworkOptions(recipe="synthetic", device="cpu").open()
    steps = extract_video(clip, tmp_path / "clip.npy", backbone, ReadOptions())
    while True:
        try:
            next(steps)
        except StopIteration as end:
            facts = end.value
            break
    assert facts.duration == pytest.approx(video.annotation.duration) and facts.notes == ()
    found = np.load(tmp_path / "clip.npy")
    assert found.shape == video.features.shape
    errors = found - video.features
    assert np.sqrt((errors**2).mean()) < 0.2 and np.abs(errors).max() < 1
    # Noise of standard deviation 1 is in both, the same.
    phases, scenes = world_vectors(CONFIG)
    middle = (np.arange(len(found)) + 0.5) * CONFIG.stride / CONFIG.fps
    shown = scenes[video.scene(middle)] + sum(each.phases(middle) @ phases[each.action] for each in video.events)
    assert np.corrcoef((found - shown).ravel(), (video.features - shown).ravel())[0, 1] > 0.97


def test_the_same_seed_gives_the_same_file(tmp_path) -> None:
    files = [
        writing.write_video(tmp_path / name, "clip", stadium.frames(short_video(8), CONFIG), RATE).read_bytes()
        for name in "ab"
    ]
    assert files[0] == files[1] and len(files[0]) < 40_000


def test_a_file_is_what_was_drawn(tmp_path) -> None:
    drawn = list(stadium.frames(staged(Event(0.5, 2.0, 2), 8), CONFIG))
    clip = writing.write_video(tmp_path, "clip", drawn, RATE)
    with Video(clip, 1) as opened:
        assert opened.facts.rate == RATE and (opened.facts.width, opened.facts.height) == (320, 180)
        shown = [frame.to_ndarray(format="rgb24") for _, frame in opened.frames()]
    assert len(shown) == len(drawn) == 32
    assert np.abs(np.subtract(shown, drawn, dtype=np.float64)).mean() < 4
    with av.open(str(clip)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"  # a format that browsers play


@pytest.mark.parametrize("held", [None, 0, 1, 2, PHASES])
def test_an_action_is_a_runner_from_left_to_right_and_a_lookalike_is_not(held) -> None:
    event = Event(1.0, 5.0, 3, held=held, rise=0.4, fall=0.4)
    drawn = np.stack(list(stadium.frames(staged(event), CONFIG))[::3]).astype(np.float64)
    time = 3 * np.arange(len(drawn)) / float(RATE)
    changes = np.abs(drawn - drawn[0])[:, 44:164].mean(-1)  # tracks
    tracks = changes.reshape(len(drawn), 5, 24, 320)
    assert (tracks.sum((0, 2, 3)) > 0).tolist() == [False, False, False, True, False]
    assert not tracks[time < 0.7].any() and not tracks[time > 5.3].any()
    columns = tracks[:, 3].sum(1)
    seen = (time > 1.5) & (time < 4.5)
    place = (columns @ np.arange(320) / np.maximum(columns.sum(1), 1e-9))[seen]
    steps = np.diff(place)
    if held is None:
        assert (steps > 3).all()
    elif held == PHASES:
        assert (steps < -3).all()
    else:
        assert np.abs(steps).max() < 1.5
        assert place.mean() == pytest.approx((60, 176, 292)[held], abs=2)


def test_a_runner_fades_with_the_strength_of_its_event() -> None:
    weak, strong = (
        np.stack(list(stadium.frames(staged(Event(0.5, 2.0, 0, strength=strength), 8), CONFIG))).astype(np.float64)
        for strength in (0.6, 1.2)
    )
    tracks = slice(44, 164)
    shares = np.abs(weak - weak[0])[16, tracks].sum() / np.abs(strong - strong[0])[16, tracks].sum()
    assert shares == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "spec, options, message",
    [
        ("synthetic:x", {}, "--backbone is synthetic:x, expected synthetic:N, N a world"),
        ("synthetic:-1", {}, "expected synthetic:N, N a world"),
        ("synthetic:0", {"weights": "random"}, "--backbone synthetic:0 has fixed weights, expected none"),
        ("synthetic:0", {"recipe": Recipe("small", 1, 4, resize=(90, 160))}, "reads single pictures of 180 x 320"),
        ("synthetic:0", {"recipe": Recipe("clips", 2, 4, resize=(180, 320))}, "expected clip 1 and resize"),
    ],
)
def test_impossible_worlds_are_refused(spec, options, message) -> None:
    with pytest.raises(InputError, match=message):
        open_backbone(spec, options.pop("recipe", None), BackboneOptions(**options))


def test_another_world_is_read_by_its_own_network() -> None:
    own, other = (open_backbone(f"synthetic:{world}", None, BackboneOptions()) for world in (0, 1))
    assert own.recipe.width == other.recipe.width == 32 and own.recipe.weights != other.recipe.weights
    unlike = own.recipe.difference(other.recipe)
    assert unlike is not None and "backbone synthetic:0 instead of synthetic:1" in unlike


def test_without_an_encoder_nothing_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "_ENCODERS", (("none", ".mp4", {}),))
    with pytest.raises(InputError, match="requires one of the encoders none; the installed PyAV has none"):
        writing.write_video(tmp_path, "clip", [], RATE)
    assert not list(tmp_path.iterdir())


def test_other_strides_are_other_rows_of_the_same_network(tmp_path) -> None:
    clip = writing.write_video(tmp_path, "clip", stadium.frames(short_video(8), CONFIG), RATE)
    rows = []
    for network in (NetworkOptions(recipe="synthetic"), NetworkOptions(backbone=("synthetic:0",), stride=8)):
        with Video(clip, 1) as opened:
            rows.append(np.concatenate(list(read_rows(opened, network.open(), ReadOptions()))))
    np.testing.assert_array_equal(rows[0][::2], rows[1])
