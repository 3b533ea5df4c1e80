"""Frames of unusual, damaged and hostile video files."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.videos import av, grey, write_video

from bcnet_fast.errors import InputError
from bcnet_fast.recipe import Recipe
from bcnet_fast.video import decoding, pixels
from bcnet_fast.video.decoding import Video
from bcnet_fast.video.pixels import PixelReader

NOISE = [np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8) for number in range(60)]


def brightness(path: Path) -> tuple[list[int], list[str]]:
    """For each frame of the grid, the number of the grey frame that is shown; and the notes."""
    read = PixelReader(Recipe("x", 1, 1))
    with Video(path) as video:
        shown = [round((read(frame).mean() - 20) / 5) for _, frame in video.frames()]
        assert video.total == len(shown)
        return shown, video.notes()


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "mpeg4"), ("mkv", "mpeg4"), ("avi", "mpeg4"), ("ts", "mpeg4"), ("webm", "libvpx"), ("mp4", "libx264")],
)
def test_frames_of_a_constant_rate_are_numbered_as_they_are(tmp_path, suffix, codec) -> None:
    path = write_video(tmp_path / f"a.{suffix}", 30, codec=codec)
    shown, notes = brightness(path)
    assert len(shown) == 30 and np.abs(np.array(shown) - np.arange(30)).max() <= 1  # of a lossy codec
    assert notes == []
    with Video(path) as video:
        assert video.facts.rate == 25


def test_ntsc_has_its_exact_rate(tmp_path) -> None:
    path = write_video(tmp_path / "a.mkv", 60, rate=Fraction(30000, 1001))  # time stamps in whole ms
    with Video(path) as video:
        assert [number for number, _ in video.frames()] == list(range(60))
        assert abs(video.facts.rate - Fraction(30000, 1001)) < 0.001 and not video.notes()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_missing_frame_is_repeated_so_that_numbers_tell_the_time(tmp_path, suffix) -> None:
    stamps = [0, 1, 2, 5, 6, 9, 10, 11, 12, 20, 21, 22, 23, 30, 31, 32, 33, 34, 35, 36]
    shown, notes = brightness(write_video(tmp_path / f"a.{suffix}", 20, stamps=stamps))
    expected = [max(k for k, stamp in enumerate(stamps) if stamp <= place) for place in range(37)]
    assert np.abs(np.array(shown) - expected).max() <= 1
    assert notes == ["frames are not 25 a second throughout: 17 repeated and 0 left out"]


@pytest.mark.parametrize(("degrees", "corner"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_a_rotated_video_is_turned_as_players_turn_it(tmp_path, degrees, corner) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 255  # top left
    path = write_video(tmp_path / "a.mp4", [picture] * 3, rotation=degrees)
    with Video(path) as video:
        pixels = [PixelReader(Recipe("x", 1, 1))(frame) for _, frame in video.frames()][-1]
    assert pixels.shape == ((64, 48, 3) if degrees in (90, -90) else (48, 64, 3))
    quarters = pixels.reshape(2, pixels.shape[0] // 2, 2, pixels.shape[1] // 2, 3).mean((1, 3, 4))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == corner and quarters.max() > 230


def test_resizing_and_crop_follow_the_recipe(tmp_path, monkeypatch) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, 32:] = 200
    path = write_video(tmp_path / "a.mp4", [picture] * 2)
    with Video(path) as video:
        (_, frame), *_ = video.frames()
    assert PixelReader(Recipe("x", 1, 1, resize=(96,)))(frame).shape == (96, 128, 3)
    assert PixelReader(Recipe("x", 1, 1, resize=(40, 20)))(frame).shape == (40, 20, 3)
    crop = PixelReader(Recipe("x", 1, 1, resize=(24,), crop=(16, 16)))(frame)
    assert crop.shape == (16, 16, 3) and crop[:, :6].mean() < 20 and crop[:, -6:].mean() > 180
    with pytest.raises(InputError, match="a frame is 64 x 48 pixels, expected at least 224 x 224 for the crop"):
        PixelReader(Recipe("x", 1, 1, crop=(224, 224)))(frame)
    monkeypatch.setattr(pixels, "LARGEST_CLIP", 64 * 48 * 3)
    assert PixelReader(Recipe("x", 3, 3))(frame).shape == (48, 64, 3)
    with pytest.raises(InputError, match="clips take 4 frames of 64 x 48 pixels at once, expected at most 9216 pixels"):
        PixelReader(Recipe("x", 4, 4))(frame)
    monkeypatch.setattr(pixels, "MOST_PIXELS", 64 * 48)
    with pytest.raises(InputError, match="a frame is 128 x 96 pixels after resizing, expected at most 3072 pixels"):
        PixelReader(Recipe("x", 1, 1, resize=(96,), crop=(8, 8)))(frame)


def test_sound_that_lasts_longer_than_the_frames_is_a_remark(tmp_path) -> None:
    shown, notes = brightness(write_video(tmp_path / "a.mp4", 20, sound_s=3))
    assert len(shown) == 20 and notes == ["the file lasts 2.9 s, its frames 0.8 s"]
    with Video(tmp_path / "a.mp4") as video:
        list(video.frames())
        video.require_whole()


def test_a_damaged_packet_costs_its_frame_and_keeps_the_times(tmp_path) -> None:
    path = write_video(tmp_path / "a.mp4", NOISE, options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 3000, 7):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    with Video(path) as video:
        assert [number for number, _ in video.frames()] == list(range(60))
        assert video.damaged > 0 and video.repeated > 0
        assert "damaged" in video.notes()[0]
        video.require_whole()


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_truncated_file_is_refused(tmp_path, suffix) -> None:
    path = write_video(tmp_path / f"a.{suffix}", NOISE, options={"movflags": "faststart"} if suffix == "mp4" else {})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Video(path) as video:
        frames = len(list(video.frames()))
        assert 10 < frames < 40
        with pytest.raises(InputError, match=r"frames up to 1.2 s of the 2\.4 s that its header states"):
            video.require_whole()


def test_time_stamps_that_jump_do_not_fill_hours_with_repeated_frames(tmp_path) -> None:
    path = write_video(tmp_path / "a.ts", 20, jump=(10, 1_000_000))
    with Video(path) as video:
        numbers = [number for number, _ in video.frames()]
        assert numbers == list(range(20))
        assert video.jumps == 1


def test_a_gap_of_time_stamps_is_not_filled_without_end(tmp_path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", 20, stamps=[*range(10), *range(20, 30)])
    with Video(path) as video:
        assert [number for number, _ in video.frames()] == list(range(30)) and video.repeated == 10
    monkeypatch.setattr(decoding, "_MOST_REPEATED", 5)
    monkeypatch.setattr(decoding, "_REPEATED_FOR_EACH", 0)
    expected = (
        r"a\.mp4 has time stamps with a gap of 0\.4 s after 10 frames, expected a video of continuous time stamps"
    )
    with Video(path) as video, pytest.raises(InputError, match=expected):
        list(video.frames())


def test_raw_streams_state_no_length(tmp_path) -> None:
    path = write_video(tmp_path / "a.h264", 30, codec="libx264")
    shown, _ = brightness(path)
    assert len(shown) == 30


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile other.ts\n",
    ],
    ids=["text", "empty", "playlist", "concat"],
)
def test_other_files_are_refused_in_one_line(tmp_path, content) -> None:
    write_video(tmp_path / "other.ts", 5)
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mp4 is no video that FFmpeg reads") as error:
        Video(tmp_path / "a.mp4")
    assert "\n" not in str(error.value)


def test_a_file_of_sound_has_no_video_stream(tmp_path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for number in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="has no video stream, only audio"):
        Video(tmp_path / "a.mp4")


def test_a_codec_without_decoder_is_named(tmp_path) -> None:
    path = write_video(tmp_path / "a.avi", 5)
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(InputError, match="no decoder for its codec"):
        Video(path)


def test_a_video_without_frames_is_refused(tmp_path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(InputError, match=r"no frame that can be decoded|no video"):
        with Video(tmp_path / "a.mp4") as video:
            list(video.frames())


def test_names_are_never_addresses(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "b.mp4", 5).rename(tmp_path / "tcp:x.mp4")
    with Video("tcp:x.mp4") as video:
        assert len(list(video.frames())) == 5
    with pytest.raises(InputError, match="is an address"):
        Video("http://localhost:1/a.mp4")


def test_grey_frames_differ() -> None:
    assert grey(1).mean() - grey(0).mean() == 5


def test_a_header_that_states_ten_hours_costs_neither_time_nor_memory(tmp_path) -> None:
    path = write_video(tmp_path / "a.mkv", 40)
    content = path.read_bytes()
    place = content.index(b"\x44\x89\x88") + 3  # duration in ms, 8 bytes
    content = content[:place] + struct.pack(">d", 36_000_000.0) + content[place + 8 :]
    path.write_bytes(content.replace(b"00:00:01.600000000", b"10:00:00.000000000"))
    with Video(path) as video:
        assert video.facts.duration == 36_000
        assert len(list(video.frames())) == 40
        assert video.notes() == ["the file lasts 36000.0 s, its frames 1.6 s"]
        with pytest.raises(InputError, match=r"frames up to 1\.6 s of the 36000\.0 s that its header states"):
            video.require_whole()
