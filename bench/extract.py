"""Overhead and memory of `extract`: a loop that only decodes, against the whole command with the null backbone.

    python bench/extract.py [--json FILE] [--seconds 40] [--hour]

Frames: the decoder alone, and `extract --backbone frame-index`, which decodes, places frames in time, samples clips and
writes rows, but needs no pixels. Pixels: the decoder with PyAV's conversion to RGB of 224 x 224, and `extract` with a
backbone that reads one pixel of each clip. `--hour` adds the peak memory over synthetic files of a minute
and an hour; `--seconds 0` leaves out the rest.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.environment import environment
from torch import Tensor

from bcnet_fast.recipe import Recipe
from bcnet_fast.video.backbones.base import FrameIndex
from bcnet_fast.video.decoding import Video
from bcnet_fast.video.extraction import ReadOptions, extract_video

RATE = 25
THREADS = 1  # of the decoder, on both sides


class OnePixel:
    """Needs the pixels of its clips, and computes nothing."""

    needs_pixels = True

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, clips: Tensor, frames: Tensor) -> Tensor:
        return clips[:, 0, 0, 0].float()


def write_clip(path: Path, seconds: int, height: int, width: int, codec: str = "libx264") -> Path:
    """A moving gradient with noise: a pattern of 100 frames that repeats."""
    av = importlib.import_module("av")
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 180, width, dtype=np.uint8)[None, :, None]
    frames = [av.VideoFrame.from_ndarray(np.roll(noise + ramp, 3 * k, 1), "rgb24") for k in range(100)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(seconds * RATE):
            frame = frames[number % 100]
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode(path: Path, pixels: bool) -> int:
    """The loop that everyone writes: decode, and convert each frame if pixels are asked for."""
    av = importlib.import_module("av")
    reformatter = importlib.import_module("av.video.reformatter").VideoReformatter()
    number = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
        for frame in container.decode(stream):
            if pixels:
                reformatter.reformat(frame, 224, 224, "rgb24", interpolation="BILINEAR").to_ndarray()
            number += 1
    return number


def extract(path: Path, backbone: Any, target: Path) -> int:
    steps = extract_video(path, target, backbone, ReadOptions(decoder_threads=THREADS))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value.source["frames"]


def seconds_of(work: Callable[[], int], expected: int) -> tuple[float, float]:
    """Seconds by the clock, and of the processor, which other work on the machine disturbs less."""
    began, busy = time.perf_counter(), time.process_time()
    frames = work()
    if frames != expected:
        raise RuntimeError(f"{frames} frames, expected {expected}")
    return time.perf_counter() - began, time.process_time() - busy


def compare(path: Path, frames: int, pixels: bool, runs: int) -> dict[str, Any]:
    """Medians of alternating runs."""
    recipe = Recipe("bench", clip=16, stride=16, resize=(224, 224), width=16)
    backbone = OnePixel(Recipe("bench", 16, 16, resize=(224, 224), width=3)) if pixels else FrameIndex(recipe)
    target = path.with_suffix(".npy")
    alone, whole = [], []
    for _ in range(runs):
        alone.append(seconds_of(lambda: decode(path, pixels), frames))
        whole.append(seconds_of(lambda: extract(path, backbone, target), frames))
    result: dict[str, Any] = {}
    for place, kind in enumerate(("", "cpu_")):
        result[f"decoder_{kind}s"] = statistics.median(run[place] for run in alone)
        result[f"extract_{kind}s"] = statistics.median(run[place] for run in whole)
        result[f"{kind}ratio"] = statistics.median(b[place] / a[place] for a, b in zip(alone, whole, strict=True))
    return result | {"frames_per_s": frames / result["extract_s"]}


def peak_mib(path: Path) -> float:
    """Peak memory of a process that extracts one file with pixels."""
    code = [sys.executable, __file__, "--peak-of", str(path)]
    return float(subprocess.run(code, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--seconds", type=int, default=40, help="length of the clip of 320 x 240")
    parser.add_argument("--runs", type=int, default=5, help="of each side, alternating")
    parser.add_argument("--hour", action="store_true", help="peak memory over a minute and an hour of video")
    parser.add_argument("--peak-of", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        path = Path(options.peak_of)
        backbone = OnePixel(Recipe("bench", 16, 4, resize=(48, 64), width=3))
        extract(path, backbone, path.with_suffix(".npy"))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    results: dict[str, Any] = {"overhead": [], "memory": []}
    with tempfile.TemporaryDirectory() as folder:
        for height, width in ((240, 320), (720, 1280)) if options.seconds else ():
            seconds = options.seconds if height < 500 else max(1, options.seconds // 8)
            path = write_clip(Path(folder, f"{height}.mp4"), seconds, height, width)
            with Video(path) as video:
                size = f"{video.facts.width}x{video.facts.height} {video.facts.codec}"
            for pixels in (False, True):
                row = {"video": size, "frames": seconds * RATE, "pixels": pixels}
                row |= compare(path, seconds * RATE, pixels, options.runs)
                results["overhead"].append(row)
                print(json.dumps(row))
        for seconds in (60, 3600) if options.hour else ():
            path = write_clip(Path(folder, f"{seconds}.mp4"), seconds, 48, 64, "mpeg4")
            row = {"seconds": seconds, "video": "64x48 mpeg4", "clip": 16, "stride": 4, "peak_mib": peak_mib(path)}
            results["memory"].append(row)
            print(json.dumps(row))
    if options.json:
        Path(options.json).write_text(json.dumps({"environment": environment(), **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
