"""Where pictures go, and the timelines of a run, drawn one by one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.annotations import VideoAnnotation
from ..errors import InputError
from ..storage.files import require_writable
from .figure import FORMATS

# Suffixes by which a user probably means one picture and not a folder.
_OTHER_FORMATS = (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".eps")


def is_one_picture(plot: str) -> bool:
    """Whether `--plot` names the file of one picture, not a folder. InputError: it has the suffix of another format."""
    suffix = Path(plot).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise InputError(f"--plot {plot} has suffix {suffix!r}, expected .png, .svg, .pdf or a folder")
    return suffix.removeprefix(".") in FORMATS


def picture_path(plot: str, plot_format: str | None, name: str) -> Path:
    """The file of picture `name`: `plot` itself if it names a picture, or a file of the format (png) in that folder.

    InputError: `plot_format` is given for a path that has a suffix.
    """
    if not is_one_picture(plot):
        return Path(plot) / f"{name}.{plot_format or 'png'}"
    if plot_format:
        raise InputError(f"--plot-format is {plot_format}, expected no value, because --plot {plot} is one picture")
    return Path(plot)


class PictureWriter:
    """Draws the timelines of a run.

    plot, plot_format: see `picture_path`.
    videos: all of the run. InputError: `plot` is one picture, and they are several.
    best: proposals in a picture, see `timeline.best_count`.
    ground_truth: annotations of videos, as far as there are any.

    `seconds` is the time that drawing took so far.
    """

    def __init__(
        self,
        plot: str,
        plot_format: str | None,
        videos: Sequence[str],
        *,
        best: int | None = None,
        ground_truth: Mapping[str, VideoAnnotation],
    ) -> None:
        if is_one_picture(plot) and len(videos) != 1:
            raise InputError(f"--plot {plot} is one picture, expected a folder for {len(videos)} videos")
        require_writable(picture_path(plot, plot_format, "picture"))
        self.plot, self.plot_format = plot, plot_format
        self.best, self.ground_truth = best, ground_truth
        self.seconds = 0.0

    def add(
        self,
        video: str,
        duration_s: float,
        boundary: tuple[np.ndarray, np.ndarray, np.ndarray],
        segments: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray | None,
    ) -> None:
        """Draw one video; the arguments are those of `timeline`, proposals in columns."""
        from .timeline import timeline

        began = time.perf_counter()
        annotation = self.ground_truth.get(video)
        timeline(
            picture_path(self.plot, self.plot_format, video.replace("/", "_")),
            video_id=video,
            duration_s=duration_s,
            boundary=boundary,
            proposals=np.column_stack([segments, scores]),
            labels=labels,
            ground_truth=annotation.instances if annotation else None,
            best=self.best,
        )
        self.seconds += time.perf_counter() - began
