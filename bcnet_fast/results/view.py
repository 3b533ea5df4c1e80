"""From a result file, and what belongs to it, to a page or to the files of other tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..data.annotations import VideoAnnotation, in_subset, read_annotations
from ..data.class_scores import read_class_scores, score_files
from ..data.video_files import find_videos, video_files
from ..errors import InputError
from ..storage.output import require_apart, require_writable
from ..text import count
from . import exchange
from .boundaries import Boundaries, boundary_path, read_boundaries
from .columns import Results
from .fusion import fuse
from .page import PageContent, write_page
from .reader import read_results

SUFFIXES = (".html", ".htm")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class ViewOptions:
    """Options of `view`. A field has the meaning of the flag of `python -m bcnet_fast.view` with the same name."""

    results: str
    output: str
    title: str | None = None
    videos: str | None = None
    embed: bool = False
    ground_truth: str | None = None
    subset: str | None = None
    boundaries: str | None = None
    labels: str | None = None
    fusion: str = "product"
    top_k: int = 1
    # Write a format of `exchange` instead of a page.
    export: str | None = None
    best: int | None = None


@dataclass(frozen=True)
class ViewReport:
    """Contents of a page or of the files of an export; `notes` are lines on missing data."""

    output: str
    videos: int
    proposals: int
    size: int  # bytes
    files: int
    notes: tuple[str, ...]

    def summary(self) -> str:
        files = f"{count(self.files, 'file')}, " if self.files > 1 else ""
        counts = f"{count(self.videos, 'video')}, {count(self.proposals, 'proposal')}"
        return f"{self.output}: {files}{counts}, {self.size / 1e6:.1f} MB"


def require_page_name(path: str, flag: str) -> None:
    """InputError: the file of a flag is not named like a page, or cannot be written."""
    suffix = Path(path).suffix
    if suffix.lower() not in SUFFIXES:
        raise InputError(f"{flag} {path} has suffix {suffix!r}, expected {' or '.join(SUFFIXES)}")
    require_writable(path)


def view(
    options: ViewOptions,
    boundaries: Mapping[str, Boundaries] | None = None,
    files: Mapping[str, Path] | None = None,
) -> ViewReport:
    """Write the page of a result file, or export it.

    boundaries: curves in memory, which come before those of the folder `options.boundaries`.
    files: video files by id, in the place of those of the folder `options.videos`.

    InputError: a file or option cannot be used, or two files have no video in common.
    """
    _require_consistent(options)
    everything = read_annotations(options.ground_truth) if options.ground_truth else None
    results = read_results(options.results, everything)
    if not results.video_names:
        raise InputError(f"{options.results} has no video, expected proposals to show")
    notes, names, truth = list(results.notes), list(results.video_names), None
    if everything is not None:
        names, truth = _with_truth(options, everything, names)
        results, _ = results.without(set(results.video_names).difference(names))
    if options.labels:
        results = _labelled(options, options.labels, results, notes)
    curves = dict(boundaries or {})
    if options.boundaries:
        curves = _curves(options.boundaries, names, notes) | curves
    if options.videos:
        files, missing = find_videos(options.videos, names)
        notes += missing
    _require_apart(options, names, list((files or {}).values()))
    if options.export:
        media = {name: str(path) for name, path in (files or {}).items()}
        written = exchange.write(options.export, options.output, results, videos=truth, media=media, best=options.best)
        names = list(results.video_names)
    else:
        title = options.title or Path(options.results).name
        notes += write_page(options.output, PageContent(title, results, names, truth, curves, files, options.embed))
        written = [Path(options.output)]
    proposals = int(np.minimum(np.bincount(results.video), options.best or len(results.scores)).sum())
    size = sum(path.stat().st_size for path in written)
    return ViewReport(options.output, len(names), proposals, size, len(written), tuple(notes))


def _require_consistent(options: ViewOptions) -> None:
    """InputError: an option is missing, or has no meaning with the others."""
    if options.subset is not None and not options.ground_truth:
        raise InputError("--subset requires an annotation file with subsets, expected --ground-truth FILE with it")
    if options.export:
        for flag in ("title", "embed", "boundaries"):
            if getattr(options, flag):
                raise InputError(f"--{flag} is for pages, expected none with --export {options.export}")
        return
    if options.best is not None:
        raise InputError("--best is for exports, expected --export FORMAT with it; a page has a choice of its own")
    if options.embed and not options.videos:
        raise InputError("--embed puts the files of --videos into the page, expected --videos DIR with it")
    require_page_name(options.output, "--output")


def _require_apart(options: ViewOptions, names: list[str], files: list[Path]) -> None:
    """InputError: a file to write is one of the inputs, such as `files`, those of videos."""
    outputs = exchange.targets(options.export, options.output, names) if options.export else options.output
    curves, videos = options.boundaries, options.videos
    require_apart(
        {"--output": outputs},
        results=options.results,
        ground_truth=options.ground_truth,
        labels=score_files(options.labels),
        boundaries=[boundary_path(curves, name) for name in names] if curves else None,
        videos=[*files, *(video_files(videos) if videos else ())],
    )


def _by_id(video: str, found: Mapping[str, _Value]) -> _Value | None:
    """The value of a video, whose id may have the ActivityNet prefix `v_` in one file and lack it in the other."""
    return next((found[name] for name in (video, f"v_{video}", video.removeprefix("v_")) if name in found), None)


def _with_truth(
    options: ViewOptions, everything: Mapping[str, VideoAnnotation], names: list[str]
) -> tuple[list[str], dict[str, VideoAnnotation]]:
    """The videos to show, and their annotations. With a subset, its videos without results are shown as well."""
    path = str(options.ground_truth)
    chosen = everything if options.subset is None else in_subset(everything, options.subset, path)
    matched = {name: annotation for name in names if (annotation := _by_id(name, chosen)) is not None}
    if not matched:
        kind = "" if options.subset is None else f" of the subset {options.subset!r}"
        raise InputError(
            f"{path} has {count(len(chosen), 'video')}{kind}, expected some of the {len(names)} in {options.results}, "
            f"such as {names[0]!r}"
        )
    if options.subset is None:
        return names, matched
    present = {annotation.id for annotation in matched.values()}
    without = {name: annotation for name, annotation in chosen.items() if annotation.id not in present}
    return [*matched, *without], matched | without


def _labelled(options: ViewOptions, path: str, results: Results, notes: list[str]) -> Results:
    class_scores = read_class_scores(path)
    if results.label is not None:
        raise InputError(f"{options.results} has labels already, expected proposals without labels for --labels")
    without = [name for name in results.video_names if name not in class_scores]
    if len(without) == len(results.video_names):
        raise InputError(
            f"{path} has {count(len(class_scores.videos), 'video')}, expected some of the {len(without)} in "
            f"{options.results}, such as {without[0]!r}"
        )
    if without:
        notes.append(f"{path}: no class scores for {count(len(without), 'video')}, shown without proposals")
    try:
        fused = fuse(results, class_scores, options.fusion, top_k=options.top_k)
    except ValueError as error:
        raise InputError(f"{options.results}: {error}") from error
    return replace(fused, video_names=results.video_names)


def _curves(folder: str, names: list[str], notes: list[str]) -> dict[str, Boundaries]:
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder, expected one that infer --boundaries has written")
    found = {}
    for name in names:
        try:
            curves = read_boundaries(folder, name)
        except InputError as error:
            notes.append(str(error))
            continue
        if curves is not None:
            found[name] = curves
    if len(found) < len(names):
        notes.append(f"{folder}: no boundary probabilities of {count(len(names) - len(found), 'video')}")
    return found
