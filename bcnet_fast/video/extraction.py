"""Features of videos: decode, sample, run the backbone, and store the rows with their sidecar."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.sidecar import Sidecar, read_sidecar, sidecar_path
from ..errors import InputError
from ..recipe import LARGEST_CLIP, Recipe
from ..storage.files import readable
from ..storage.output import atomic_path
from ..storage.rows import RowFile
from ..text import count
from .backbones import Backbone, Joined
from .decoding import Video
from .pixels import FlowReader, PixelReader
from .sampling import Sampling

FEWEST_ROWS = 2  # rows of a video that every network of the package needs


@dataclass(frozen=True)
class ReadOptions:
    """How videos are read.

    clips: number in a call of the network on a GPU. On the CPU a call has one clip, so that features do not depend
        on it.
    decoder_threads: 0: one for each core.
    allow_truncated: take what is there of a file that ends before its stated end.
    decoder: "pyav" or "torchcodec".
    """

    clips: int = 8
    decoder_threads: int = 0
    allow_truncated: bool = False
    decoder: str = "pyav"

    def open(self, path: str | os.PathLike) -> Video:
        """InputError: as `Video` raises it."""
        return Video(path, self.decoder_threads, self.decoder)


def read_rows(video: Video, backbone: Backbone | Joined, options: ReadOptions) -> Iterator[np.ndarray]:
    """Yield the rows of a video, [n, C] float32 each.

    InputError: no frame can be decoded, the network fails, or its values are not finite.
    """
    if isinstance(backbone, Joined):
        yield from _read_streams(video, backbone, options)
        return
    recipe, rate = backbone.recipe, video.facts.rate
    sampling = Sampling(recipe, rate)
    reader = _reader(backbone)

    def pixels_of(frame: Any) -> np.ndarray:
        try:
            return reader(frame)
        except InputError as error:
            raise InputError(f"{video.path}: {error}") from None

    clips = sampling.stream(video.frames(), pixels_of)
    row = 0
    for batch in _batches(clips, options.clips):
        numbers = torch.from_numpy(np.stack([frame for frame, _ in batch]))
        pixels = np.stack([frame for _, clip in batch for frame in clip])
        with readable(f"{video.path}: the network", "clips that it can compute"):
            rows = backbone(torch.from_numpy(pixels).unflatten(0, numbers.shape), numbers).numpy()
        if not np.isfinite(rows).all():
            bad = row + int(np.argmin(np.isfinite(rows).all(1)))
            raise InputError(f"{video.path}: row {bad} of the features is not finite, expected finite values")
        row += len(rows)
        yield rows


def _batches(clips: Iterable[tuple[np.ndarray, list[np.ndarray]]], most: int) -> Iterator[list[Any]]:
    """Frame numbers and pixels of up to `most` clips, or fewer if their frames are large."""
    batch: list[tuple[np.ndarray, list[np.ndarray]]] = []
    pixels = 0
    for clip in clips:
        batch.append(clip)
        pixels += sum(frame.shape[0] * frame.shape[1] for frame in clip[1])
        if len(batch) == most or pixels >= LARGEST_CLIP:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _read_streams(video: Video, backbone: Joined, options: ReadOptions) -> Iterator[np.ndarray]:
    """The rows of several networks side by side, up to the end of the shortest; each reads the file on its own."""
    first, *others = backbone.streams
    with contextlib.ExitStack() as opened:
        again = [opened.enter_context(options.open(video.path)) for _ in others]
        readers = [read_rows(video, first, options)]
        readers += [read_rows(own, stream, options) for own, stream in zip(again, others, strict=True)]
        rows = zip(*map(itertools.chain.from_iterable, readers), strict=False)
        while part := list(itertools.islice(rows, options.clips)):
            yield np.stack([np.concatenate(row) for row in part])
        for _ in readers[0]:  # `video` tells how long it is after its last frame
            pass


def _reader(backbone: Backbone) -> Callable[[Any], np.ndarray]:
    """The function that makes the pixels of a frame, or the flow of a pair."""
    if not backbone.needs_pixels:
        return _no_pixels
    if backbone.recipe.modality == "rgb":
        return PixelReader(backbone.recipe)
    assert backbone.flow is not None  # `open_backbone` made it
    return FlowReader(backbone.recipe, backbone.flow)


def _no_pixels(frame: object) -> np.ndarray:
    return np.empty((0, 0, 3), np.uint8)


def describe(video: Video, backbone: Backbone | Joined, rows: int) -> Sidecar:
    """The sidecar of a video: of the frames that were read or, before reading, of what its header states.

    InputError: it was read, and has too few rows, or ends too early.
    """
    facts, recipe = video.facts, backbone.recipe
    rate = float(facts.rate)
    duration = video.total / rate if video.total else facts.duration or facts.longest or 0.0
    source = {
        "file": video.path.name,
        "bytes": video.path.stat().st_size,
        "frames": video.total,
        "fps": rate,
        "width": facts.width,
        "height": facts.height,
        "codec": facts.codec,
        "decoder": video.decoder,
    }
    return Sidecar(recipe, recipe.fps or rate, duration, rows, source, tuple(video.notes() if video.total else ()))


def require_rows(video: Video, backbone: Backbone | Joined, rows: int) -> None:
    """InputError: a video has fewer rows than a network needs."""
    if rows < FEWEST_ROWS:
        recipe = backbone.recipe
        streams = recipe.streams or (recipe,)
        needed = max(Sampling(stream, video.facts.rate).needed(FEWEST_ROWS - 1) for stream in streams)
        raise InputError(
            f"{video.path} has {count(video.total, 'frame')} and so {count(rows, 'row')} of features, expected at "
            f"least {needed} frames for {FEWEST_ROWS} rows (clip {recipe.clip}, stride {recipe.stride})"
        )


def find_features(target: Path, video: Path, recipe: Recipe, *, overwrite: bool = False) -> Sidecar | None:
    """The sidecar of features that are there already; None: they must be extracted.

    overwrite: replace what is there.

    InputError: features of another recipe or origin are there, or another file in the place of the sidecar.
    """
    beside = sidecar_path(target)
    there = read_sidecar(beside)
    if there is None and beside.exists():
        raise InputError(f"{beside} is a file of another kind, expected a free name for the sidecar of {target.name}")
    if overwrite or not target.exists():
        return None
    if there is None:
        raise InputError(f"{target} has no sidecar, expected features of extract; --overwrite replaces it")
    return if_usable(there, target, video, recipe)


def if_usable(there: Sidecar, where: object, video: Path, recipe: Recipe) -> Sidecar | None:
    """The sidecar of features at `where`; None: they are of another version of the video.

    InputError: they are of another recipe.
    """
    unlike = there.recipe.difference(recipe)
    if unlike:
        raise InputError(f"{where} has other features ({unlike}); --overwrite replaces them")
    return there if there.is_of(video) else None


def extract_video(
    path: Path, target: Path, backbone: Backbone | Joined, options: ReadOptions
) -> Generator[float, None, Sidecar]:
    """Write the features of a video, and then their sidecar, both atomically.

    Yields the seconds of the video that are done, and returns the sidecar.

    InputError: the video cannot be used; nothing is written then.
    """
    assert backbone.recipe.width is not None
    with options.open(path) as video, readable(path, "a video whose features can be computed"):
        rate = float(video.facts.rate)
        with atomic_path(target) as temporary:
            with RowFile(temporary, backbone.recipe.width) as file:
                for rows in read_rows(video, backbone, options):
                    file.append(rows)
                    yield video.total / rate
            require_rows(video, backbone, file.rows)
            if not options.allow_truncated:
                video.require_whole()
            facts = describe(video, backbone, file.rows)
            # A kill in between leaves a sidecar without features, never features with the sidecar of others.
            target.unlink(missing_ok=True)
            facts.write(sidecar_path(target))
        return facts
