"""The demo's videos as clips to watch, and the same network on features that are read from their pixels."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.features import open_features
from ..data.synthetic import SyntheticConfig, SyntheticVideo
from ..errors import InputError
from ..inference.options import InferOptions
from ..inference.page import make_page
from ..inference.run import infer
from ..progress import progress
from ..results.reader import Results, read_results
from ..text import count
from ..video import stadium
from ..video.run import NetworkOptions
from ..video.writing import require_encoder, write_video
from .parser import program

RECIPE = "synthetic"


@dataclass(frozen=True)
class Watched:
    """Results of the clips.

    error: root of the mean squared difference between features from pixels and generated ones.
    """

    results: Results
    page: Path
    error: float
    failed: bool


def watch(folder: Path, videos: Sequence[SyntheticVideo], checkpoint: Path, annotations: Path) -> Watched | None:
    """Draw clips, find proposals in their pixels, and write the page; None, with a line, where PyAV is missing."""
    for old in ("videos", "pixel_features"):
        shutil.rmtree(folder / old, ignore_errors=True)
    try:
        require_encoder()
    except InputError as error:
        print(f"\nleft out: the videos as clips, and the page that plays them ({error})")
        return None
    _draw(folder / "videos", videos)
    output, page, features = folder / "from_pixels.json", folder / "page.html", folder / "pixel_features"
    print(
        f"running: {program('infer')} {folder / 'videos'} --recipe {RECIPE} --checkpoint {checkpoint} "
        f"--output {output} --keep-features {features} --ground-truth {annotations} --page {page} --device cpu"
    )
    options = InferOptions(
        features=str(folder / "videos"),
        videos=(str(folder / "videos"),),
        network=NetworkOptions(recipe=RECIPE, device="cpu"),
        keep_features=str(features),
        output=str(output),
        checkpoint=str(checkpoint),
        device="cpu",
        ground_truth=str(annotations),
        page=str(page),
        overwrite=True,
    )
    report = infer(options)
    print(report.summary())
    make_page(options, report.curves, files=report.video_files)
    return Watched(read_results(output), page, _error(features, videos), bool(report.failures))


def _draw(folder: Path, videos: Sequence[SyntheticVideo]) -> None:
    config, started = SyntheticConfig(), time.perf_counter()
    size, pictures = 0, 0
    for video in progress(videos, total=len(videos), what="clips"):
        rate = stadium.frame_rate(config)
        size += write_video(folder, video.annotation.id, stadium.frames(video, config), rate).stat().st_size
        pictures += stadium.FRAMES * len(video.features)
    print(
        f"\n{folder}: {count(len(videos), 'clip')}, {pictures} pictures, {size / 1e6:.1f} MB, drawn in "
        f"{time.perf_counter() - started:.1f} s. A runner from left to right is an action; one that stays, or runs "
        "back, is a look-alike"
    )


def _error(folder: Path, videos: Sequence[SyntheticVideo]) -> float:
    archive = open_features(folder, feature_dim=SyntheticConfig().feature_dim)
    differences = [archive.load(video.annotation.id).features - video.features for video in videos]
    return float(np.sqrt(np.mean(np.concatenate(differences) ** 2)))
