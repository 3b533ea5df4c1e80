"""One HTML page that shows proposals, with everything in it: data, style and script.

Names from files reach the page as JSON only, in which no character can end a script element, and the script writes them
as text. The Content-Security-Policy admits the page's own style and script by their digests, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import os
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from .. import __version__
from ..data.annotations import VideoAnnotation
from ..data.video_files import PLAYABLE
from ..storage.output import atomic_path
from .boundaries import Boundaries
from .columns import Results
from .ordering import descending
from .timeline import CLASS_COLOURS

SCRIPTS = ("data.js", "player.js", "marks.js", "pointers.js", "timeline.js", "lists.js", "controls.js", "app.js")
LARGEST_EMBEDDED = 256 << 20  # bytes of a video; browsers limit the length of a text
_BLOCK = 3 << 18  # bytes encoded at once, a multiple of 3


@dataclass(frozen=True)
class PageContent:
    """Contents of a page.

    title: name of the page.
    results: proposals or detections.
    videos: ids to list, in this order; those without proposals are listed, too.
    ground_truth: annotations, or None without any; videos that it lacks are shown without true actions.
    boundaries: boundary probabilities of some videos.
    video_files: files of some videos, or None if there are none.
    embed: put the video files into the page instead of linking to them.
    """

    title: str
    results: Results
    videos: Sequence[str]
    ground_truth: Mapping[str, VideoAnnotation] | None = None
    boundaries: Mapping[str, Boundaries] = field(default_factory=dict)
    video_files: Mapping[str, Path] | None = None
    embed: bool = False


def write_page(path: str | os.PathLike, content: PageContent) -> list[str]:
    """Write the page atomically; returns a line for each video that is linked because it is too large to embed.

    Links to video files are relative to the folder of the page. InputError: the page cannot be written.
    """
    before, after = _page().split("@@DATA@@")
    embedded, too_large = _to_embed(content)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(before.encode())
        file.write(_json(_data(content, Path(path), embedded)).encode())
        file.write(b"</script>\n")
        for number, video in enumerate(content.videos):
            if video in embedded:
                file.write(f'<script type="text/plain" id="video-{number}">'.encode())
                _write_base64(file, embedded[video])
                file.write(b"</script>\n")
        file.write(after.encode())
    return [f"{source}: too large to embed, linked instead" for source in too_large]


def _asset(name: str) -> str:
    return (importlib.resources.files("bcnet_fast") / "assets" / "view" / name).read_text(encoding="utf-8")


def _page() -> str:
    """The page with policy, style and script; `@@DATA@@` stands for the data."""
    style, script = _asset("style.css"), "".join(_asset(name) for name in SCRIPTS)
    sources = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        # A page that is opened as a file has no origin, so 'self' would match nothing.
        "media-src": "'self' file: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    policy = "; ".join(f"{name} {allowed}" for name, allowed in sources.items())
    page = _asset("page.html").replace("@@VERSION@@", __version__).replace("@@POLICY@@", policy)
    return page.replace("@@STYLE@@", style).replace("@@SCRIPT@@", script)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON in ASCII that stays within a script element, whatever the names in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _base64(values: np.ndarray | Sequence[float], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, np.dtype(dtype)).tobytes()).decode()


def _write_base64(file: IO[bytes], source: Path) -> None:
    with open(source, "rb") as video:
        while block := video.read(_BLOCK):
            file.write(base64.b64encode(block))


def _to_embed(content: PageContent) -> tuple[dict[str, Path], list[Path]]:
    """Video files to put into the page, and those that are too large for it."""
    if not content.embed or not content.video_files:
        return {}, []
    large = {video for video, path in content.video_files.items() if path.stat().st_size > LARGEST_EMBEDDED}
    small = {video: path for video, path in content.video_files.items() if video not in large}
    return small, [content.video_files[video] for video in content.videos if video in large]


def _data(content: PageContent, page: Path, embedded: Mapping[str, Path]) -> dict[str, Any]:
    """Everything for the script; columns are little-endian arrays in base64."""
    results, truth = content.results, content.ground_truth
    order, counts = _ranked(results, content.videos)
    labels = dict.fromkeys(results.label_names) if results.label is not None else {}
    instances = [list(truth[video].instances) if truth and video in truth else [] for video in content.videos]
    flat = [instance for of_video in instances for instance in of_video]
    codes = {name: code for code, name in enumerate(dict.fromkeys([*labels, *(each.label for each in flat)]))}
    videos = []
    for video, count, of_video in zip(content.videos, counts, instances, strict=True):
        curves = content.boundaries.get(video)
        annotation = truth.get(video) if truth else None
        duration = (annotation.duration if annotation else None) or (curves.duration_s if curves else None)
        videos.append(
            {
                "id": video,
                "count": count,
                "instances": len(of_video),
                "annotated": annotation is not None,
                "duration": duration,
                "boundaries": _curves(curves) if curves else None,
                "source": _source(video, content, page, embedded),
            }
        )
    return {
        "title": content.title,
        "labels": list(codes),
        "colours": CLASS_COLOURS,
        "truth": truth is not None,
        "files": content.video_files is not None,
        "videos": videos,
        "start": _base64(results.segments[order, 0], "<f8"),
        "end": _base64(results.segments[order, 1], "<f8"),
        "score": _base64(results.scores[order], "<f8"),
        "label": None if results.label is None else _base64(results.label[order], "<i4"),
        "trueStart": _base64([each.start for each in flat], "<f8"),
        "trueEnd": _base64([each.end for each in flat], "<f8"),
        "trueLabel": _base64([codes[each.label] for each in flat], "<i4"),
    }


def _ranked(results: Results, videos: Iterable[str]) -> tuple[np.ndarray, list[int]]:
    """Entries of the videos in their order, best first as in the evaluation, and their number in each."""
    by_video = np.argsort(results.video, kind="stable")
    parts = np.split(by_video, np.cumsum(np.bincount(results.video, minlength=len(results.video_names)))[:-1])
    rows = dict(zip(results.video_names, parts, strict=True))
    nothing = np.empty(0, np.int64)
    ranked = [part[descending(results.scores[part])] for part in (rows.get(video, nothing) for video in videos)]
    return np.concatenate([nothing, *ranked]), [len(part) for part in ranked]


def _curves(found: Boundaries) -> dict[str, str]:
    """Times in seconds, and probabilities in 255ths."""
    bytes_of = {name: np.rint(255 * getattr(found, name).clip(0, 1)) for name in ("start", "end")}
    return {"times": _base64(found.times, "<f4"), **{name: _base64(part, "u1") for name, part in bytes_of.items()}}


def _source(video: str, content: PageContent, page: Path, embedded: Mapping[str, Path]) -> dict[str, Any] | None:
    path = (content.video_files or {}).get(video)
    if path is None:
        return None
    kind = PLAYABLE.get(path.suffix.lower())
    if video in embedded:
        return {"name": path.name, "type": kind, "embedded": True}
    folder, file = page.resolve().parent, path.resolve()
    try:
        link = urllib.parse.quote(Path(os.path.relpath(file, folder)).as_posix().encode("utf-8", "surrogateescape"))
    except ValueError:  # on another drive
        link = file.as_uri()
    # A first part with a colon would be the scheme of an address.
    return {"name": path.name, "type": kind, "link": link if "://" in link else f"./{link}"}
