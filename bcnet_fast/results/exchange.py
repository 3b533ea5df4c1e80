"""Write proposals and detections for other people's tools.

| format | written | tool |
| --- | --- | --- |
| `csv` | one file with a row for each proposal | spreadsheets, pandas; `read_results` reads it |
| `fiftyone` | one `labels.json` of a FiftyOneTemporalDetectionDataset | FiftyOne |
| `labelstudio` | one JSON of tasks with predictions, to correct by hand | Label Studio (TimelineLabels) |
| `webvtt` | one `.vtt` for each video | browsers and players, as chapters |
| `elan` | one `.eaf` for each video | ELAN |
| `otio` | one `.otio` for each video, with markers | video editors, by OpenTimelineIO |

`bcnet_fast.data.annotations.read_annotations` reads corrections made in Label Studio, ELAN or a CSV.
"""

from __future__ import annotations

import csv
import datetime
import heapq
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..data.annotation_tools import VIDEO_PROPERTY
from ..data.annotations import VideoAnnotation
from ..errors import InputError
from ..storage.output import atomic_text, require_writable, write_json
from ..text import alternatives, did_you_mean, shown
from .columns import Results
from .pictures import file_name

UNLABELLED = "proposal"  # label of proposals without one
_MILLISECONDS = 1000.0


@dataclass(frozen=True)
class _Video:
    """Proposals of one video, best first: segments [n, 2] in seconds, scores [n], n labels."""

    name: str
    segments: np.ndarray
    scores: np.ndarray
    labels: list[str]
    fps: float | None
    duration: float | None
    media: str  # path or address of the video, or its id

    def in_time(self) -> list[tuple[float, float, float, str]]:
        """(start, end, score, label) by time."""
        order = np.lexsort((self.segments[:, 1], self.segments[:, 0]))
        columns = self.segments[order].tolist(), self.scores[order].tolist(), [self.labels[row] for row in order]
        return [(start, end, score, label) for (start, end), score, label in zip(*columns, strict=True)]


def write(
    format: str,
    path: str | os.PathLike,
    results: Results,
    *,
    videos: Mapping[str, VideoAnnotation] | None = None,
    media: Mapping[str, str] | None = None,
    best: int | None = None,
) -> list[Path]:
    """Write results in one of `FORMATS`; returns the files.

    path: see `targets`.
    videos: frame rate and length of videos; Label Studio counts frames and needs the rate.
    media: path or address of each video; without one, its id is written.
    best: proposals of a video, by score; all by default.

    InputError: unknown format, a video without frame rate for Label Studio, a file that cannot be written.
    """
    path, written = Path(path), targets(format, path, results.video_names)
    by_score = np.lexsort((-results.scores, results.video))
    first = np.searchsorted(results.video[by_score], np.arange(len(results.video_names)))
    separate = [
        _video(results, name, rows_of_video[:best], videos or {}, media or {})
        for name, rows_of_video in zip(results.video_names, np.split(by_score, first)[1:], strict=True)
    ]
    if format in _WHOLE:
        _WHOLE[format](path, separate)
        return written
    suffix, write_one = _BY_VIDEO[format]
    if written != [path]:
        require_writable(path / suffix)
    for file, video in zip(written, separate, strict=True):
        write_one(file, video)
    return written


def targets(format: str, path: str | os.PathLike, names: Sequence[str]) -> list[Path]:
    """The files that `write` writes for videos of these names.

    path: the file; for a format with a file for each video, the folder. A single video may also have a file name with
        the suffix of the format.

    InputError: unknown format, or one file for several videos.
    """
    if format not in FORMATS:
        near = did_you_mean(format, FORMATS)
        raise InputError(f"export format is {format!r}, expected {alternatives(FORMATS)}{near}")
    path = Path(path)
    if format in _WHOLE:
        return [path]
    suffix, _ = _BY_VIDEO[format]
    if path.suffix != suffix:
        return [path / f"{file_name(name)}{suffix}" for name in names]
    if len(names) != 1:
        raise InputError(f"{path} is one file, expected a folder for {len(names)} videos")
    return [path]


def _video(
    results: Results,
    name: str,
    rows: np.ndarray,
    videos: Mapping[str, VideoAnnotation],
    media: Mapping[str, str],
) -> _Video:
    labels = [UNLABELLED] * len(rows)
    if results.label is not None:
        labels = [results.label_names[code] for code in results.label[rows]]
    known = videos.get(name)
    fps = known and (known.fps or (known.frames / known.duration if known.frames and known.duration else None))
    return _Video(
        name,
        results.segments[rows],
        results.scores[rows],
        labels,
        fps or None,
        known.duration if known else None,
        media.get(name, name),
    )


def _write_csv(path: Path, videos: list[_Video]) -> None:
    with atomic_text(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("video", "start", "end", "score", "label"))
        for video in videos:
            columns = video.segments.tolist(), video.scores.tolist(), video.labels
            for (start, end), score, label in zip(*columns, strict=True):
                table.writerow((_encodable(video.name), start, end, score, _encodable(label)))


def _encodable(text: str) -> str:
    """The text as it is; bytes outside UTF-8, which file names may have, become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _write_fiftyone(path: Path, videos: list[_Video]) -> None:
    classes = sorted({label for video in videos for label in video.labels})
    code = {label: number for number, label in enumerate(classes)}
    labels = {
        video.name: [
            {"label": code[label], "timestamps": [start, end], "confidence": score}
            for start, end, score, label in video.in_time()
        ]
        for video in videos
    }
    write_json(path, {"classes": classes, "labels": labels}, indent=1)


def _write_labelstudio(path: Path, videos: list[_Video]) -> None:
    """Frames count from 1, and the last one is part of a range."""
    tasks = []
    for video in videos:
        if video.fps is None:
            raise InputError(
                f"video {video.name!r} has no frame rate, which Label Studio needs because it counts frames; expected "
                "annotations or a table of times that state it"
            )
        result = []
        for number, (start, end, score, label) in enumerate(video.in_time(), 1):
            first = round(start * video.fps) + 1
            frames = {"start": first, "end": max(first, round(end * video.fps))}
            result.append(
                {
                    "id": f"p{number}",
                    "type": "timelinelabels",
                    "from_name": "videoLabels",
                    "to_name": "video",
                    "value": {"ranges": [frames], "timelinelabels": [label]},
                    "score": score,
                }
            )
        prediction = {"model_version": f"bcnet_fast {__version__}", "result": result}
        if len(video.scores):
            prediction["score"] = float(video.scores.max())
        data = {"video": video.media, "video_id": video.name, "fps": video.fps}
        tasks.append({"data": data, "predictions": [prediction]})
    write_json(path, tasks, indent=1)


def _write_webvtt(path: Path, video: _Video) -> None:
    with atomic_text(path) as file:
        file.write("WEBVTT\n")
        for number, (start, end, score, label) in enumerate(video.in_time(), 1):
            text = shown(label).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            # A cue without length is not shown.
            first = _milliseconds(start)
            last = max(first + 1, _milliseconds(end))
            file.write(f"\n{number}\n{_clock(first)} --> {_clock(last)}\n{text} {score:.3f}\n")


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * _MILLISECONDS), 0)


def _clock(milliseconds: int) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _write_elan(path: Path, video: _Video) -> None:
    """Actions that overlap go to different tiers, because a tier of ELAN cannot hold both; scores depend on them."""
    xsi = "http://www.w3.org/2001/XMLSchema-instance"
    root = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": f"bcnet_fast {__version__}",
            "DATE": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": xsi,
            "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    header = _child(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    _child(header, "MEDIA_DESCRIPTOR", MEDIA_URL=shown(video.media), MIME_TYPE="video/mp4")
    _child(header, "PROPERTY", NAME=VIDEO_PROPERTY).text = shown(video.name)
    order = _child(root, "TIME_ORDER")
    tiers: list[list[tuple[int, int, float, str]]] = []
    busy: list[tuple[int, int]] = []  # end and number of a tier
    free: list[int] = []
    for start, end, score, label in video.in_time():
        first = _milliseconds(start)
        entry = (first, max(first + 1, _milliseconds(end)), score, label)
        while busy and busy[0][0] <= first:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            free.append(len(tiers))
            tiers.append([])
        number = heapq.heappop(free)
        tiers[number].append(entry)
        heapq.heappush(busy, (entry[1], number))
    slots = annotations = 0
    for number, entries in enumerate(tiers or [[]], 1):
        actions = _child(root, "TIER", LINGUISTIC_TYPE_REF="action", TIER_ID=f"actions {number}")
        scores = _child(
            root, "TIER", LINGUISTIC_TYPE_REF="score", PARENT_REF=f"actions {number}", TIER_ID=f"scores {number}"
        )
        for first, last, score, label in entries:
            for value in (first, last):
                slots += 1
                _child(order, "TIME_SLOT", TIME_SLOT_ID=f"ts{slots}", TIME_VALUE=str(value))
            action = f"a{annotations + 1}"
            aligned = _child(
                _child(actions, "ANNOTATION"),
                "ALIGNABLE_ANNOTATION",
                ANNOTATION_ID=action,
                TIME_SLOT_REF1=f"ts{slots - 1}",
                TIME_SLOT_REF2=f"ts{slots}",
            )
            _child(aligned, "ANNOTATION_VALUE").text = shown(label)
            annotations += 2
            depending = _child(
                _child(scores, "ANNOTATION"), "REF_ANNOTATION", ANNOTATION_ID=f"a{annotations}", ANNOTATION_REF=action
            )
            _child(depending, "ANNOTATION_VALUE").text = f"{score:.4f}"
    _child(root, "LINGUISTIC_TYPE", GRAPHIC_REFERENCES="false", LINGUISTIC_TYPE_ID="action", TIME_ALIGNABLE="true")
    _child(
        root,
        "LINGUISTIC_TYPE",
        CONSTRAINTS="Symbolic_Association",
        GRAPHIC_REFERENCES="false",
        LINGUISTIC_TYPE_ID="score",
        TIME_ALIGNABLE="false",
    )
    _child(
        root, "CONSTRAINT", DESCRIPTION="1-1 association with a parent annotation", STEREOTYPE="Symbolic_Association"
    )
    ElementTree.indent(root)
    with atomic_text(path) as file:
        file.write(f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n')


def _child(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, attributes)


def _write_otio(path: Path, video: _Video) -> None:
    """A clip of the whole video with a marker for each proposal; without a frame rate, times are milliseconds."""
    rate = video.fps or _MILLISECONDS
    markers = [
        {
            "OTIO_SCHEMA": "Marker.2",
            "name": label,
            "color": "GREEN",
            "marked_range": _range(start, end, rate),
            "metadata": {"bcnet_fast": {"score": score, "start_s": start, "end_s": end}},
        }
        for start, end, score, label in video.in_time()
    ]
    length = video.duration or (float(video.segments.max()) if len(video.segments) else 0.0)
    whole = _range(0.0, length, rate)
    reference = {"OTIO_SCHEMA": "ExternalReference.1", "target_url": video.media, "available_range": whole}
    clip = {
        "OTIO_SCHEMA": "Clip.1",
        "name": video.name,
        "source_range": whole,
        "media_reference": reference,
        "markers": markers,
        "effects": [],
        "metadata": {},
    }
    track = {"OTIO_SCHEMA": "Track.1", "name": "video", "kind": "Video", "children": [clip], "metadata": {}}
    stack = {"OTIO_SCHEMA": "Stack.1", "name": "tracks", "children": [track], "metadata": {}}
    timeline = {"OTIO_SCHEMA": "Timeline.1", "name": video.name, "metadata": {}, "tracks": stack}
    write_json(path, timeline, indent=1)


def _range(start: float, end: float, rate: float) -> dict[str, Any]:
    first, last = round(start * rate), round(end * rate)
    return {
        "OTIO_SCHEMA": "TimeRange.1",
        "start_time": {"OTIO_SCHEMA": "RationalTime.1", "rate": rate, "value": first},
        "duration": {"OTIO_SCHEMA": "RationalTime.1", "rate": rate, "value": last - first},
    }


# Formats with one file for all videos, and those with one for each, whose suffix comes first.
_WHOLE: dict[str, Callable[[Path, list[_Video]], None]] = {
    "csv": _write_csv,
    "fiftyone": _write_fiftyone,
    "labelstudio": _write_labelstudio,
}
_BY_VIDEO: dict[str, tuple[str, Callable[[Path, _Video], None]]] = {
    "webvtt": (".vtt", _write_webvtt),
    "elan": (".eaf", _write_elan),
    "otio": (".otio", _write_otio),
}
FORMATS = (*_WHOLE, *_BY_VIDEO)
