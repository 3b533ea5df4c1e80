"""Frames by torchcodec are those by PyAV; its errors. The wheels of PyPI need the CUDA build of PyTorch to import."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.videos import av, write_video

from bcnet_fast import extract
from bcnet_fast.errors import InputError
from bcnet_fast.recipe import Recipe
from bcnet_fast.video import torchcodec_frames
from bcnet_fast.video.decoding import Video
from bcnet_fast.video.pixels import PixelReader

WHOLE = Recipe("x", 1, 1)
STAMPS = [0, 1, 2, 5, 6, 9, 10, 11, 12, 20]
NOISE = [np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8) for number in range(60)]


class Imitation:
    """The used part of torchcodec's decoder, by PyAV; it has no frame from `fails` on."""

    fails = 1000

    def __init__(self, path, *, stream_index, dimension_order, num_ffmpeg_threads, seek_mode) -> None:
        assert (dimension_order, num_ffmpeg_threads, seek_mode) == ("NHWC", 1, "exact")
        with av.open(str(path)) as container:
            self.frames = list(container.decode(container.streams[stream_index]))

    def __len__(self) -> int:
        return len(self.frames)

    def get_frame_at(self, number: int) -> SimpleNamespace:
        if number >= self.fails:
            raise RuntimeError("Could not decode\nat some place")
        frame = self.frames[number]
        upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
        seconds = float(frame.pts * frame.time_base)
        return SimpleNamespace(data=torch.from_numpy(np.ascontiguousarray(upright)), pts_seconds=seconds)


@pytest.fixture(params=["imitation", "torchcodec"])
def installed(request, monkeypatch):
    if request.param == "torchcodec":
        try:
            torchcodec_frames.require_torchcodec()
        except InputError as error:
            pytest.skip(str(error))
    else:
        monkeypatch.setattr(torchcodec_frames, "require_torchcodec", lambda: Imitation)


def pixels(path, decoder, recipe=WHOLE) -> tuple[list[int], np.ndarray, list[str]]:
    read = PixelReader(recipe)
    with Video(path, 1, decoder) as video:
        frames = [(number, read(frame)) for number, frame in video.frames()]
        return [number for number, _ in frames], np.stack([one for _, one in frames]), video.notes()


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", {"rotation": 90}),
        ("mkv", {"rate": Fraction(30000, 1001)}),
        ("mp4", {"stamps": STAMPS}),
        ("ts", {"jump": (5, 1_000_000)}),
        ("webm", {"codec": "libvpx"}),
        ("mp4", {"sound_s": 3}),
    ],
)
def test_frames_and_remarks_are_those_of_pyav(tmp_path, installed, suffix, options) -> None:
    path = write_video(tmp_path / f"a.{suffix}", len(STAMPS), **options)
    (numbers, expected, notes), (others, found, remarks) = (pixels(path, name) for name in ("pyav", "torchcodec"))
    assert others == numbers and remarks == notes
    np.testing.assert_array_equal(found, expected)


def test_resized_pixels_are_near_those_of_pyav(tmp_path, installed) -> None:
    """PyAV resizes while it converts colours; here RGB is resized. A mean difference of 7.6 was seen on noise."""
    path = write_video(tmp_path / "a.mp4", NOISE[:5])
    recipe = Recipe("x", 1, 1, resize=(30,), crop=(24, 24))
    (_, expected, _), (_, found, _) = (pixels(path, name, recipe) for name in ("pyav", "torchcodec"))
    assert found.shape == expected.shape == (5, 24, 24, 3)
    assert np.abs(found.astype(int) - expected).mean() < 16


def test_a_frame_that_cannot_be_decoded_ends_the_video(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torchcodec_frames, "require_torchcodec", lambda: Imitation)
    monkeypatch.setattr(Imitation, "fails", 30)
    with Video(write_video(tmp_path / "a.mp4", NOISE), 1, "torchcodec") as video:
        assert len(list(video.frames())) == 30
        assert "torchcodec stopped" in video.notes()[-1]
        with pytest.raises(InputError, match=r"frames up to 1.2 s of the 2\.4 s that its header states"):
            video.require_whole()


def test_extract_takes_the_decoder_and_says_which(tmp_path, installed, monkeypatch) -> None:
    monkeypatch.setattr("bcnet_fast.cli.video_flags.require_torchcodec", torchcodec_frames.require_torchcodec)
    path = write_video(tmp_path / "a.mp4", 30)
    flags = [str(path), "--backbone", "frame-index", "--clip", "4", "--decoder-threads", "1", "--device", "cpu"]
    for name in ("pyav", "torchcodec"):
        assert extract.main([*flags, "--decoder", name, "--output", str(tmp_path / name)]) == 0
        assert f'"decoder": "{name}"' in (tmp_path / name / "a.json").read_text()
    rows = [np.load(tmp_path / name / "a.npy") for name in ("pyav", "torchcodec")]
    np.testing.assert_array_equal(rows[0], rows[1])


def test_without_torchcodec_one_line_says_so(tmp_path, monkeypatch) -> None:
    def fail(name):
        raise RuntimeError("Could not load libtorchcodec.\n  many\n  lines")

    monkeypatch.setattr(torchcodec_frames.importlib, "import_module", fail)
    flags = ["a.mp4", "--decoder", "torchcodec", "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"cannot be imported \('Could not load libtorchcodec.'\), expected") as error:
        extract.main(flags)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
