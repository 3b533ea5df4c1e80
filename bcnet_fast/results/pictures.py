"""Where pictures go, and the timelines of a run, drawn one by one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.annotations import VideoAnnotation
from ..errors import InputError
from ..storage.output import require_writable
from .figure import FORMATS
from .timeline import timeline

# Suffixes by which a user probably means one file and not a folder.
_OTHER_FORMATS = (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".eps", ".txt", ".json", ".csv", ".html")
_LONGEST_NAME = 200  # bytes; file systems allow 255, with suffix and the name of a temporary file


def file_name(video: str) -> str:
    """Name of a video's file without suffix; an id with slashes must not lead into other folders.

    If the id is too long or not printable, a digest keeps the name unique.
    """
    slashed = video.replace("/", "_")
    name = "".join(character if character.isprintable() else "_" for character in slashed)
    if name == video and len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(video.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{name.encode()[:_LONGEST_NAME].decode('utf-8', 'ignore')}_{digest}"


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


def optional_picture_path(plot: str | None, plot_format: str | None, name: str) -> Path | None:
    """`picture_path`, or None without `plot`. InputError: `plot_format` is given alone."""
    if plot is not None:
        return picture_path(plot, plot_format, name)
    if plot_format:
        raise InputError(f"--plot-format is {plot_format}, expected --plot with it")
    return None


class PictureWriter:
    """Draws the timelines of a run.

    plot, plot_format: see `optional_picture_path`; without `plot` nothing is drawn.
    videos: all videos of the run. InputError: `plot` is one picture, but there are several videos.
    best: proposals in a picture, see `timeline.best_count`.
    ground_truth: annotations of videos, as far as there are any.

    `seconds` is the time that drawing took so far.
    """

    def __init__(
        self,
        plot: str | None,
        plot_format: str | None,
        videos: Sequence[str],
        *,
        best: int | None = None,
        ground_truth: Mapping[str, VideoAnnotation],
    ) -> None:
        path = optional_picture_path(plot, plot_format, "picture")
        if plot is not None and path is not None:
            if is_one_picture(plot) and len(videos) != 1:
                raise InputError(f"--plot {plot} is one picture, expected a folder for {len(videos)} videos")
            require_writable(path)
        self.plot, self.plot_format = plot, plot_format
        self.best, self.ground_truth = best, ground_truth
        self.seconds = 0.0

    def add(
        self,
        video: str,
        duration_s: float,
        boundary: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
        segments: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray | None,
    ) -> None:
        """Draw one video; the arguments are those of `timeline`, proposals in columns."""
        path = optional_picture_path(self.plot, self.plot_format, file_name(video))
        if path is None:
            return
        began = time.perf_counter()
        annotation = self.ground_truth.get(video)
        timeline(
            path,
            video_id=video,
            duration_s=duration_s,
            boundary=boundary,
            proposals=np.column_stack([segments, scores]),
            labels=labels,
            ground_truth=annotation.instances if annotation else None,
            best=self.best,
        )
        self.seconds += time.perf_counter() - began
