"""Frames of a video file, decoded one after the other on a grid of equal distances in time.

Frame k of the grid is shown at k / rate seconds after the first one. In a video of constant frame rate, these are its
frames. Where frames are missing, because the rate varies or packets are damaged, the last one is repeated; where two
fall on one place, the second is left out. So the number of a frame always tells its time, and both are counted.

A file is data: FFmpeg may open nothing but this file, and no format that only lists others, such as a playlist.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage.files import readable, require_file
from ..text import count
from . import torchcodec_frames

SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .mts .vob .flv .wmv .asf .ogv .3gp .3g2 .mxf .gif .y4m .h264 "
    ".hevc .ivf .nut .rm .rmvb .dv".split()
)
EXPECTED = "a video file"
DECODERS = ("pyav", "torchcodec")
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,gif,yuv4mpegpipe,h264,hevc,av1,obu,ivf,nut,rm,dv,"
    "m4v,vc1,wtv,swf,apng"
)
MOST_PIXELS = 1 << 26  # pixels of a frame; 8K video has 2 ** 25
_HIGHEST_RATE = 1000
# Repeated frames of a video: an hour at 60 frames a second, and more with each frame that is decoded.
_MOST_REPEATED, _REPEATED_FOR_EACH = 216_000, 1000
_ASSUMED_RATE = Fraction(25)
_LONGEST_HOLD_S = 60  # longest time of one frame, if the length of the video is unknown
# Formats whose time stamps may restart, as in joined recordings. Their length follows from the time stamps.
_JOINED = {"mpegts", "mpeg"}
_CUT_SHARE, _CUT_S = 0.9, 1.0  # share of the stated duration that suffices; seconds that may be missing


@dataclass(frozen=True)
class VideoFacts:
    """Facts from the header of a video, which may be wrong; None if it does not state them."""

    width: int  # width of the shown picture, pixels
    height: int
    rate: Fraction  # frames a second
    rate_stated: bool
    duration: float | None  # duration of the frames, seconds
    longest: float | None  # duration of the file with its sound, seconds
    codec: str


class Video:
    """An open video file; `with` closes it.

    path: path of the file.
    threads: threads of the decoder; 0: one for each core.
    decoder: library that decodes the frames, one of DECODERS. PyAV always reads the header.

    total: frames of the grid up to the last that was decoded. decoded, repeated, left_out, damaged (packets), jumps (of
    the time stamps) and cut (why reading ended early) describe what was read so far.

    InputError: no video, unreadable, a codec without decoder, or a picture of more than 2 ** 26 pixels.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 0, decoder: str = "pyav") -> None:
        self.path, self.decoder = require_video(path), decoder
        self.decoded = self.repeated = self.left_out = self.damaged = self.jumps = self.total = 0
        self.cut: str | None = None  # why reading ended before the end of the file
        av = require_av()
        self._error = av.FFmpegError
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS, "max_pixels": str(MOST_PIXELS)}
        with readable(path, EXPECTED):
            try:
                # Without the prefix, a name such as `tcp:x` would be taken for an address.
                self._container: Any = av.open(
                    f"file:{self.path.resolve()}", container_options=options, options=options
                )
            except av.FFmpegError as error:
                raise InputError(
                    f"{path} is no video that FFmpeg reads ({_reason(error)}), expected {EXPECTED}"
                ) from error
            try:
                self._stream = self._choose_stream(av)
                self._stream.thread_type = "AUTO"
                self._stream.codec_context.thread_count = threads
                self.facts = self._read_facts()
            except BaseException:
                self._container.close()
                raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def _choose_stream(self, av: Any) -> Any:
        """The first video stream that is no cover picture."""
        streams = [s for s in self._container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            kinds = sorted({stream.type for stream in self._container.streams})
            found = f"only {' and '.join(kinds)}" if kinds else "no stream at all"
            picture = " and a cover picture" if self._container.streams.video else ""
            raise InputError(f"{self.path} has no video stream, {found}{picture}; expected {EXPECTED}")
        stream = streams[0]
        try:
            context = stream.codec_context
            known = context is not None and context.codec is not None
        except (self._error, ValueError):
            known = False
        if not known:
            raise InputError(f"{self.path}: no decoder for its codec, expected a video that FFmpeg decodes")
        return stream

    def _read_facts(self) -> VideoFacts:
        stream, context = self._stream, self._stream.codec_context
        if context.width * context.height > MOST_PIXELS:
            size = f"{context.width} x {context.height}"
            raise InputError(f"{self.path} has pictures of {size}, expected at most {MOST_PIXELS} pixels")
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
            duration = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
        longest = self._container.duration
        longest = None if longest is None else longest / 1e6
        rate = _choose_rate(stream.average_rate, stream.base_rate)
        return VideoFacts(
            width=context.width,
            height=context.height,
            rate=rate or _ASSUMED_RATE,
            rate_stated=rate is not None,
            duration=duration if duration and duration > 0 else None,
            longest=longest if longest and longest > 0 else None,
            codec=context.name,
        )

    def frames(self) -> Iterator[tuple[int, Any]]:
        """Yield every frame of the grid, numbered from 0; a repeated one is the same object again.

        InputError: there is none, or gaps between time stamps ask for too many repeated frames.
        """
        rate, last = self.facts.rate, None
        joined = self._container.format.name in _JOINED
        stated = None if joined else self.facts.duration or self.facts.longest
        latest = None if stated is None else math.ceil((stated + 1) * rate)  # number of a last frame
        hold = math.ceil(_LONGEST_HOLD_S * rate)
        start: int | None = None  # time stamp of frame 0
        number, stamp, base, ticks = -1, 0, None, Fraction(1)
        for frame in self._decode():
            self.decoded += 1
            following = number + 1
            if frame.pts is None or frame.time_base is None:
                place = following
            else:
                if frame.time_base != base:
                    base = frame.time_base
                    ticks = Fraction(base) * rate  # frames in a unit of time
                if start is None:
                    start = frame.pts
                place = _nearest(frame.pts - start, ticks)
                limit = following + hold if latest is None else max(latest, following)
                if (place < following and stamp - frame.pts > 1 / Fraction(frame.time_base)) or place > limit:
                    # Time stamps that run backwards, or beyond the end, are taken as a restart.
                    self.jumps += 1
                    place = following
                    start = frame.pts - round(place / ticks)
                stamp = frame.pts
            if place < following:
                self.left_out += 1
                continue
            if self.repeated + place - following > _MOST_REPEATED + _REPEATED_FOR_EACH * self.decoded:
                raise InputError(
                    f"{self.path} has time stamps with a gap of {float((place - number) / rate):.1f} s after "
                    f"{count(self.decoded - 1, 'frame')}, expected a video of continuous time stamps"
                )
            for missing in range(following, place):
                self.repeated += 1
                yield missing, last
            number, last = place, frame
            self.total = number + 1
            yield place, frame
        if last is None:
            reason = f" ({self.cut})" if self.cut else ""
            raise InputError(f"{self.path} has no frame that can be decoded{reason}, expected {EXPECTED}")

    def _decode(self) -> Iterator[Any]:
        if self.decoder == "torchcodec":
            threads = self._stream.codec_context.thread_count
            try:
                yield from torchcodec_frames.decode(self.path, self._stream.index, self._stream.time_base, threads)
            except RuntimeError:
                self.cut = "torchcodec stopped at a frame that it cannot decode"
            return
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self._error as error:
                self.cut = _reason(error)
                break
            try:
                frames = packet.decode()
            except self._error:
                self.damaged += 1
                continue
            yield from frames
        try:
            yield from self._stream.codec_context.decode(None)
        except self._error:
            self.damaged += 1

    def notes(self) -> list[str]:
        """Unusual findings, in words, once all frames were read."""
        found = []
        rate, facts = float(self.facts.rate), self.facts
        if not facts.rate_stated:
            found.append(f"states no frame rate: {rate:g} frames a second assumed")
        if self.damaged:
            found.append(f"{count(self.damaged, 'packet')} damaged")
        if self.jumps:
            found.append(f"time stamps jump {count(self.jumps, 'time')}")
        if self.repeated or self.left_out:
            found.append(
                f"frames are not {rate:g} a second throughout: {self.repeated} repeated and {self.left_out} left out"
            )
        if facts.longest and facts.longest - self.total / rate > max(1.0, 0.02 * facts.longest):
            found.append(f"the file lasts {facts.longest:.1f} s, its frames {self.total / rate:.1f} s")
        if self.cut:
            found.append(f"reading ended early ({self.cut})")
        return found

    def require_whole(self) -> None:
        """InputError: the file ends long before the end that the header states for its frames."""
        seconds, stated = self.total / float(self.facts.rate), self.facts.duration
        if stated is not None and seconds < min(_CUT_SHARE * stated, stated - _CUT_S):
            raise InputError(
                f"{self.path} has frames up to {seconds:.1f} s of the {stated:.1f} s that its header states, expected "
                "a whole file (--allow-truncated takes what is there)"
            )


def require_video(path: str | os.PathLike) -> Path:
    """The path of a file that may be a video. InputError: it is an address, or no readable file."""
    if "://" in os.fspath(path)[:20]:
        raise InputError(f"{path} is an address, expected {EXPECTED}; download it first")
    return require_file(path, EXPECTED)


def require_av(work: str = "reading") -> Any:
    """PyAV. InputError: it is not installed; names the work with videos."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(f"{work} videos requires PyAV: pip install bcnet_fast[video]") from error


def _choose_rate(average: Fraction | None, base: Fraction | None) -> Fraction | None:
    """The frame rate of the grid.

    base: the lowest rate on whose grid all time stamps lie. It is exact where the rate is constant. Where it varies, it
        may be far too high; the average then counts, which the length of the last frame makes a little wrong.
    """
    average, base = _possible(average), _possible(base)
    if average is None or base is None:
        return average or base
    return base if base <= 2 * average else average


def _possible(rate: Fraction | None) -> Fraction | None:
    return Fraction(rate) if rate and 0 < rate <= _HIGHEST_RATE else None


def _nearest(ticks: int, frames_per_tick: Fraction) -> int:
    numerator, denominator = frames_per_tick.numerator, frames_per_tick.denominator
    return (2 * ticks * numerator + denominator) // (2 * denominator)


def _reason(error: Exception) -> str:
    """The reason that FFmpeg gives, without the number and the path."""
    return str(getattr(error, "strerror", None) or type(error).__name__)
