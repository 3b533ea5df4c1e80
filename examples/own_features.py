"""Proposals from your own features: arrays in, seconds out.

Random features and the bundled network stand in for yours; put your arrays and your checkpoint in their place.
"""

from __future__ import annotations

import numpy as np

import bcnet_fast
from bcnet_fast.results.subtitles import write_subtitles


def main() -> None:
    model = bcnet_fast.load("demo", device="cpu")  # load("bcnet.safetensors") for a checkpoint
    channels = model.config.model.feature_dim

    rng = np.random.default_rng(0)
    features = {
        name: rng.standard_normal((rows, channels)) for name, rows in (("short_video", 60), ("long_video", 400))
    }
    # 25 video frames a second, 8 frames from one row to the next. Lists give each video its own: fps=[25, 30].
    for name, found in model.propose(features, fps=25, stride=8).items():
        print(f"{name}, {found.duration:.1f} s, {len(found)} proposals; the best three:")
        for (start, end), score in zip(found.segments[:3], found.scores[:3], strict=True):
            print(f"  {start:7.2f} s to {end:7.2f} s, confidence {score:.4f}")
        best = found.top(10)
        best.plot(f"{name}.png")
        write_subtitles(f"{name}.srt", best.segments, best.scores)


if __name__ == "__main__":
    main()
