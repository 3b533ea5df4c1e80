"""Frames that torchcodec decodes, handed on as PyAV frames: the rest of `decoding` is the same for both."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text import brief


def require_torchcodec() -> Any:
    """The decoder class of torchcodec. InputError: it is not installed, or cannot be imported."""
    try:
        return importlib.import_module("torchcodec.decoders").VideoDecoder
    except Exception as error:  # RuntimeError where FFmpeg or the libraries of its PyTorch are missing
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"--decoder torchcodec: torchcodec cannot be imported ({brief(reason)}), expected a version that fits "
            "PyTorch, and an FFmpeg of the system (docs/how_to/video.md)"
        ) from error


def decode(path: Path, stream: int, time_base: Fraction, threads: int) -> Iterator[Any]:
    """Yield the frames of a video stream in the order in which they are shown, upright, as RGB.

    stream: its number in the file.
    time_base: seconds of a unit of the time stamps.
    threads: threads of the decoder; 0: one for each core.

    RuntimeError: a frame cannot be decoded; no later one is tried.
    """
    frame_of = importlib.import_module("av").VideoFrame.from_ndarray
    # "exact" reads all packets first: headers may count no frames, or wrong ones.
    decoder = require_torchcodec()(
        path, stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=threads, seek_mode="exact"
    )
    for number in range(len(decoder)):
        decoded = decoder.get_frame_at(number)
        frame = frame_of(decoded.data.numpy(), "rgb24")
        frame.time_base = time_base
        frame.pts = round(decoded.pts_seconds / time_base)
        yield frame
