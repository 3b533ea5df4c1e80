"""Videos as an archive of features, each extracted when it is read."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from ..data.features import FeatureArchive
from ..data.hdf5 import SUFFIXES
from ..data.sidecar import Sidecar
from ..data.source import ReadLimits, Source
from ..errors import InputError
from ..progress import progress
from ..storage.arrays import open_npy
from ..storage.output import require_writable
from ..text import shown
from .decoding import EXPECTED, Video
from .extraction import ReadOptions, describe, extract_video, find_features, read_rows, require_rows
from .run import Network


class VideoSource(Source):
    """Features of videos, from a network.

    keep: folder for the features, which are taken from there where they are of the same recipe. None: they exist in
        memory only.
    """

    kind = "videos"
    expected = EXPECTED
    time_first = True
    start = "spawn"  # networks and their threads do not survive a fork

    def __init__(
        self,
        videos: dict[str, Path],
        network: Network,
        read: ReadOptions,
        limits: ReadLimits,
        keep: Path | None,
    ) -> None:
        self.videos = videos
        self.network, self.read, self.limits, self.keep = network, read, limits, keep
        self.threads = network.threads
        self._quiet = False
        self._stated: dict[str, Sidecar] = {}
        self._interrupted = threading.Event()
        if keep is not None:
            if keep.suffix.lower() in SUFFIXES and not keep.is_dir():
                raise InputError(f"--keep-features is {keep}, expected a folder; extract writes an HDF5 file")
            require_writable(keep / "features.npy")

    def __getstate__(self) -> dict[str, Any]:
        # In a process of its own, reading shows no progress, and nothing interrupts it.
        return {**self.__dict__, "_interrupted": None, "_quiet": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _interrupted=threading.Event())

    def where(self, name: str) -> str:
        return str(self.videos[name])

    def sidecar(self, name: str) -> Sidecar:
        """The sidecar as measured or, before the video is read, as its header states it."""
        if name not in self._stated:
            with Video(self.videos[name], 1) as video:
                return describe(video, self.network.backbone, 0)
        return self._stated[name]

    def facts(self, name: str) -> Any:
        return self._stated.get(name)

    def note(self, name: str, facts: Any) -> None:
        if facts is not None:
            self._stated[name] = facts

    def open(self, name: str) -> Any:
        self._interrupted.clear()
        path = self.videos[name]
        if self.keep is None:
            with self.read.open(path) as video:
                rows = self._rows(video)
                require_rows(video, self.network.backbone, len(rows))
                if not self.read.allow_truncated:
                    video.require_whole()
                self._stated[name] = describe(video, self.network.backbone, len(rows))
            return rows
        target = self.keep / f"{name}.npy"
        there = find_features(target, path, self.network.backbone.recipe)
        if there is None:
            there = self._finish(extract_video(path, target, self.network.backbone, self.read), path)
        self._stated[name] = there
        return open_npy(target)

    def _finish(self, steps: Any, path: Path) -> Sidecar:
        end: list[Sidecar] = []

        def seconds() -> Any:
            end.append((yield from steps))

        for _ in self._shown(seconds(), path):
            self._require_running()
        return end[0]

    def _rows(self, video: Video) -> np.ndarray:
        parts: list[np.ndarray] = []
        size = 0
        rate = float(video.facts.rate)

        def seconds() -> Any:
            for rows in read_rows(video, self.network.backbone, self.read):
                parts.append(rows)
                yield video.total / rate

        for _ in self._shown(seconds(), video.path):
            self._require_running()
            size += parts[-1].nbytes if parts else 0
            self.limits.require(size, video.path, [sum(map(len, parts)), self.network.backbone.recipe.width or 0])
        return np.concatenate(parts) if parts else np.empty((0, self.network.backbone.recipe.width or 0), np.float32)

    def _shown(self, seconds: Any, path: Path) -> Any:
        """Iterate over the seconds of a video with a line of progress."""
        with Video(path, 1) as video:
            total = int(video.facts.duration or video.facts.longest or 0)
        position = [0.0]

        def reached() -> Any:
            for second in seconds:
                position[0] = second
                yield

        note, at = lambda: shown(path.name), lambda: int(position[0])
        return progress(reached(), total, "s of video", note, at=at, hidden=self._quiet)

    def _require_running(self) -> None:
        if self._interrupted.is_set():
            raise InputError("interrupted")

    def interrupt(self) -> None:
        """Ask a read in another thread to end soon."""
        self._interrupted.set()


def open_videos(
    videos: dict[str, Path],
    network: Network,
    read: ReadOptions,
    *,
    limits: ReadLimits = ReadLimits(),  # noqa: B008 (frozen)
    every: int | None = None,
    strip_prefix: bool = False,
    keep: Path | None = None,
) -> FeatureArchive:
    """The features of videos as an archive; see `VideoSource` and `data.features.open_features`."""
    source = VideoSource(videos, network, read, limits, keep)
    path = next(iter(videos.values()), Path()).parent
    return FeatureArchive(path, source, network.backbone.recipe.width, every or 1, strip_prefix, limits)
