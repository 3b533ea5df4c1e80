"""Shared by all runs that write a result file video by video."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.annotations import VideoAnnotation
from ..data.features import FeatureArchive
from ..data.sidecar import read_sidecar, sidecar_path
from ..errors import InputError
from ..results.pictures import PictureWriter, file_name, optional_picture_path
from ..results.subtitles import write_subtitles
from ..results.timeline import best_count
from ..results.writer import ResultWriter, partial_of
from ..storage.address import Address, Place, is_address, place_of
from ..storage.files import require_file
from ..storage.remote import exists
from ..text import count

Boundary = tuple[np.ndarray, np.ndarray, np.ndarray]  # times, start and end probabilities


def require_fresh(output: str, *, resume: bool, overwrite: bool) -> None:
    """InputError: the output exists, and no flag says what to do with it, or two do."""
    if exists(place_of(output)) and not (resume or overwrite):
        raise InputError(f"{output} exists; replace it with --overwrite, or complete it with --resume")
    if resume and overwrite:
        raise InputError("--resume keeps the results that exist, --overwrite replaces them; give one of the two")


def result_files(output: str) -> list[Place]:
    """The files of --output: the result, and the partial one beside it."""
    place = place_of(output)
    return [place] if isinstance(place, Address) or not place.name else [place, partial_of(place)]


def shown_files(
    plot: str | None, plot_format: str | None, srt: str | None, ids: Iterable[str]
) -> dict[str, list[Path]]:
    """The files that `show` writes for videos, by flag."""
    names = [file_name(video) for video in ids]
    pictures = {optional_picture_path(plot, plot_format, name) for name in names}
    return {
        "--plot": [path for path in pictures if path is not None],
        "--srt": [Path(srt) / f"{name}.srt" for name in names] if srt else [],
    }


def feature_files(archives: Iterable[FeatureArchive], outputs: Iterable[str | os.PathLike]) -> Iterator[Place]:
    """The files of features. A sidecar is one of them if it has the name of an output, by which results are meant."""
    names = {place_of(path).name for path in outputs}
    for file in {file for archive in archives for video in archive.ids for file in archive.files(video)}:
        yield file
        side = sidecar_path(file)
        if side.name in names and read_sidecar(side) is not None:
            yield side


def sha256(path: str | os.PathLike | None) -> str | None:
    """Digest of a file, or of all files of a folder with their names; None for None."""
    if path is None:
        return None
    digest, folder = hashlib.sha256(), Path(require_file(path, "a file")) if is_address(path) else Path(path)
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else [folder]
    for file in files:
        if folder.is_dir():
            digest.update(os.fsencode(file.relative_to(folder)) + b"\0")
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def take_up(writer: ResultWriter, videos: Sequence[str], features: str, *, resume: bool) -> list[str]:
    """The videos that are not done yet. Drops results of videos that are gone; with `resume`, prints the counts."""
    for gone in writer.done.keys() - set(videos):
        del writer.done[gone]
    left = [video for video in videos if video not in writer.done]
    if resume:
        print(f"resumed: {len(writer.done)} of {len(videos)} videos are already done")
        for number, what, why in (
            (writer.damaged, "line", f"damaged in {writer.partial}"),
            (writer.changed, "video", f"with other feature files than before in {features}"),
        ):
            if number:
                print(f"note: {count(number, what)} {why}: done again", file=sys.stderr)
    return left


@contextlib.contextmanager
def interruptible(writer: ResultWriter) -> Iterator[None]:
    """Say how to go on after an interruption."""
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError):
        print(
            f"{writer.partial} holds {count(len(writer.done), 'finished video')}; continue with --resume",
            file=sys.stderr,
        )
        raise


def show(
    video: str,
    duration: float,
    boundary: Boundary | None,
    found: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    pictures: PictureWriter,
    srt: str | None,
    annotation: VideoAnnotation | None,
    best: int | None,
) -> None:
    """Write the picture and the subtitles of a video, as far as they are asked for.

    duration: seconds
    found: segments, scores and labels, best first
    """
    if srt:
        first = slice(best_count(len(annotation.instances) if annotation else 0, best))
        segments, scores, labels = found
        path = Path(srt) / f"{file_name(video)}.srt"
        write_subtitles(path, segments[first], scores[first], None if labels is None else labels[first])
    pictures.add(video, duration, boundary, *found)
