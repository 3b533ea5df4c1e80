"""Small video files, written by PyAV, for tests of everything that reads videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs PyAV: pip install bcnet_fast[video]")

SIZE = (48, 64)  # height, width


def grey(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame whose brightness tells its number, up to 47."""
    return np.full((*size, 3), min(20 + 5 * number, 255), np.uint8)


def write_video(
    path: Path,
    frames: int | Iterable[np.ndarray] = 40,
    *,
    rate: int | Fraction = 25,
    stamps: Sequence[int] | None = None,
    rotation: int = 0,
    codec: str = "mpeg4",
    sound_s: float = 0.0,
    jump: tuple[int, int] = (0, 0),
    options: dict[str, str] | None = None,
    size: tuple[int, int] = SIZE,
) -> Path:
    """Write a video of grey frames, or of given ones [H, W, 3] uint8.

    stamps: of the frames, in frames of `rate`; by default 0, 1, 2, ...
    rotation: degrees, counterclockwise, by which a player turns the picture.
    sound_s: seconds of silent sound beside it.
    jump: from this frame on, time stamps are that many frames later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [grey(number, size) for number in range(frames)] if isinstance(frames, int) else list(frames)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2] if pictures else size
        stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.time_base = 1 / Fraction(rate)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=8000, layout="mono") if sound_s else None
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = 1 / Fraction(rate)
            container.mux(_shifted(stream.encode(frame), number, *jump))
        container.mux(_shifted(stream.encode(None), len(pictures), *jump))
        if sound is not None:
            for number in range(int(sound_s * 8000 / 1024)):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                silence.sample_rate, silence.pts = 8000, number * 1024
                container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return path


def _shifted(packets: list, number: int, first: int, frames: int) -> list:
    for packet in packets:
        if frames and number >= first:
            packet.pts += frames
            packet.dts += frames
    return packets
