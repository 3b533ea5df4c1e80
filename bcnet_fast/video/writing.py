"""Writing a video file that browsers play."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..storage.output import atomic_path
from .decoding import require_av

# In the order of preference: encoder, suffix of the file, settings. One thread, for the same bytes everywhere.
_ENCODERS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("libx264", ".mp4", {"preset": "superfast", "crf": "26"}),
    ("libvpx-vp9", ".webm", {"deadline": "realtime", "cpu-used": "8", "crf": "32", "b": "0"}),
    ("libvpx", ".webm", {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b": "1M"}),
)
_SEEKING_S = 4  # seconds from one picture to the next that a player can jump to without decoding others


def write_video(folder: Path, name: str, frames: Iterable[np.ndarray], rate: Fraction) -> Path:
    """Write pictures as a video, in H.264 or, where FFmpeg has no encoder for it, in VP9 or VP8; return its path.

    frames: at least one, [H, W, 3] uint8, RGB, of one size, with even H and W.
    rate: frames a second.

    InputError: PyAV is not installed or has no such encoder, or the file cannot be written.
    """
    av = require_av()
    encoder, suffix, options = require_encoder()
    path = folder / f"{name}{suffix}"
    pictures = iter(frames)
    first = next(pictures)
    with atomic_path(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream(encoder, rate=rate, options=options)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = round(_SEEKING_S * rate)
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(itertools.chain([first], pictures)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def require_encoder() -> tuple[str, str, dict[str, str]]:
    """Name, suffix of its files and settings of the encoder to use. InputError: there is none."""
    av: Any = require_av("writing")
    for encoder in _ENCODERS:
        with contextlib.suppress(av.FFmpegError, ValueError):
            av.Codec(encoder[0], "w")
            return encoder
    names = ", ".join(name for name, *_ in _ENCODERS)
    raise InputError(f"writing videos requires one of the encoders {names}; the installed PyAV has none")
