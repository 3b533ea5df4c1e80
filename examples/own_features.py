"""Proposals from your own features: save arrays, state time, predict.

Random features and the bundled checkpoint stand in for yours; put your files and your checkpoint in their place.
"""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path

import numpy as np

import bcnet_fast
from bcnet_fast.data.features import open_features
from bcnet_fast.data.timing import TimeFlags, TimeResolver
from bcnet_fast.inference import Failure, predict
from bcnet_fast.results.subtitles import write_subtitles


def main() -> None:
    checkpoint = resources.files("bcnet_fast") / "assets" / "demo.safetensors"
    model = bcnet_fast.load(str(checkpoint), device="cpu")
    channels = model.config.model.feature_dim

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for name, rows in (("short_video", 60), ("long_video", 400)):
            np.save(Path(folder) / f"{name}.npy", rng.standard_normal((rows, channels)))  # [T, C]

        archive = open_features(folder, feature_dim=channels)
        # 25 video frames a second, 8 frames from one row to the next.
        times = TimeResolver(model.config, TimeFlags(fps=25, stride=8), every=archive.every)
        for found in predict(model, archive, archive.ids, times):
            if isinstance(found, Failure):
                print(f"{found.video}: {found.reason}")
                continue
            print(f"{found.video}, {found.duration:.1f} s, {len(found.scores)} proposals; the best three:")
            for (start, end), score in list(zip(found.segments, found.scores, strict=True))[:3]:
                print(f"  {start:7.2f} s to {end:7.2f} s, confidence {score:.4f}")
            write_subtitles(Path(folder) / f"{found.video}.srt", found.segments[:10], found.scores[:10])


if __name__ == "__main__":
    main()
