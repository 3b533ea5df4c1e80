"""Ground truth and video information from every public layout, as plain dataclasses.

The content of a file determines its layout, never its name. Files may be gzipped.

| layout | recognised by |
| --- | --- |
| ActivityNet JSON, including that of ActionFormer, G-TAD (segments as strings) and OpenTAD | the key `database` |
| flat JSON of BSN, BMN and mmaction2 | one object per video id |
| THUMOS14 annotation CSV | columns `video`, `type`, `type_idx`, `start`, `end` |
| THUMOS14 ground-truth CSV | columns `video-name`, `t-init`, `t-end`, `label-idx` |
| video-information CSV of BSN, BMN, G-TAD or BCNet | columns `video`, `seconds`, `fps`, `numFrame`, `featureFrame` |
| your own annotation CSV | columns `video`, `start`, `end`, `label`, and any of the next row and `subset` |
| your own video-information CSV | `video` and any of `fps`, `stride`, `offset`, `duration`, `frames` |
| Label Studio export (JSON) | a list of tasks with `data` |
| ELAN | XML; also a folder of `.eaf` files |

Times are in seconds. Facts that a file does not state are None. Rows that THUMOS14 marks `Ambiguous` are not
instances, as in every public evaluation. Their intervals are kept apart, because the THUMOS'14 toolkit uses them.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bounds import LARGEST_FLOAT, SMALLEST_FLOAT
from ..errors import InputError
from ..storage.files import parse_json, read_text, readable
from ..storage.remote import reads_addresses
from ..text import brief
from .annotation_tools import AnnotatedVideo, elan_video, is_labelstudio, labelstudio_videos

# Class of the THUMOS14 detection task -> its UCF-101 number (from 1). The position in this dictionary (from 0) is the
# label-idx of the ground-truth CSV.
THUMOS14_CLASSES = {
    "BaseballPitch": 7,
    "BasketballDunk": 9,
    "Billiards": 12,
    "CleanAndJerk": 21,
    "CliffDiving": 22,
    "CricketBowling": 23,
    "CricketShot": 24,
    "Diving": 26,
    "FrisbeeCatch": 31,
    "GolfSwing": 33,
    "HammerThrow": 36,
    "HighJump": 40,
    "JavelinThrow": 45,
    "LongJump": 51,
    "PoleVault": 68,
    "Shotput": 79,
    "SoccerPenalty": 85,
    "TennisSwing": 92,
    "ThrowDiscus": 93,
    "VolleyballSpiking": 97,
}

_EXPECTED = (
    "ground truth or video information (ActivityNet or BMN JSON, THUMOS14, annotation or video-information CSV, "
    "Label Studio JSON, ELAN)"
)

_LARGEST_TEXT = 256 << 20  # bytes; the annotations of ActivityNet have 10 MiB

# Field of VideoAnnotation -> names in public files; the first one present is used.
_JSON_KEYS = {
    "duration": ("duration", "duration_second"),
    "fps": ("fps",),
    "frames": ("frames", "frame", "duration_frame"),
    "feature_frames": ("feature_frames", "feature_frame"),
    "feature_stride": ("feature_stride", "stride"),
    "feature_offset": ("feature_offset", "offset"),
}
_TABLE_COLUMNS = {
    "duration": ("duration", "seconds"),
    "fps": ("fps",),
    "frames": ("frames", "numFrame"),
    "feature_frames": ("feature_frames", "featureFrame"),
    "feature_stride": ("feature_stride", "stride"),
    "feature_offset": ("feature_offset", "offset"),
}
_WHOLE = ("frames", "feature_frames")
_POSITIVE = ("fps", "feature_stride")


@dataclass(frozen=True)
class Instance:
    """One annotated action: `start` <= `end` in seconds."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class VideoAnnotation:
    """Facts about one video; None if unknown."""

    id: str
    duration: float | None = None  # seconds
    fps: float | None = None
    frames: int | None = None  # number of video frames
    feature_frames: int | None = None  # number of frames covered by the features
    feature_stride: float | None = None  # frames between consecutive rows of the features
    feature_offset: float | None = None  # frame at which the first row starts
    subset: str | None = None
    instances: tuple[Instance, ...] = ()
    ambiguous: tuple[tuple[float, float], ...] = ()  # intervals marked `Ambiguous`, in seconds


@reads_addresses(_EXPECTED)
def read_annotations(
    path: str | os.PathLike, subset: str | None = None, *, strip_prefix: bool = False
) -> dict[str, VideoAnnotation]:
    """Read the annotations of all videos of a file, in file order.

    subset: keep the videos of this subset only; case does not matter.
    strip_prefix: remove the ActivityNet prefix of the ids, see `strip_activitynet_prefix`.

    InputError: unknown layout, missing key or column, a segment that is not two finite numbers in order, a repeated
    video, no video in the subset.
    """
    if Path(path).is_dir():
        videos = _from_folder(Path(path))
    else:
        text = read_text(path, _EXPECTED, _LARGEST_TEXT)
        with readable(path, _EXPECTED):
            videos = _from_text(text, path)
    if strip_prefix:
        videos = strip_activitynet_prefix(videos, str(path))
        videos = {name: replace(video, id=name) for name, video in videos.items()}
    return videos if subset is None else in_subset(videos, subset, str(path))


def in_subset(videos: Mapping[str, VideoAnnotation], subset: str, source: str) -> dict[str, VideoAnnotation]:
    """Keep the videos of one subset; case does not matter. InputError: there are none; lists the subsets."""
    kept = {name: video for name, video in videos.items() if (video.subset or "").lower() == subset.lower()}
    if not kept:
        found = sorted({video.subset for video in videos.values() if video.subset is not None})
        raise InputError(
            f"{source} has {'the subsets ' + ', '.join(found) if found else 'no subsets'}, expected {subset!r}"
        )
    return kept


def strip_activitynet_prefix(videos: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Remove the prefix `v_` of the ids.

    ActivityNet names a video `v_` plus its 11-character YouTube id. An id of 11 characters is a YouTube id, which may
    itself start with `v_`. InputError: two ids become equal.
    """
    stripped: dict[str, Any] = {}
    for name, value in videos.items():
        short = name[2:] if name.startswith("v_") and len(name) != 11 else name
        if short in stripped:
            raise InputError(f"{source}: video {short!r} occurs with and without the prefix v_")
        stripped[short] = value
    return stripped


def _from_text(text: str, path: str | os.PathLike) -> dict[str, VideoAnnotation]:
    first = text.lstrip()[:1]
    if first == "<":
        return _annotated([elan_video(text, path)], path)
    if first not in ("{", "["):
        return _from_csv(text, path)
    content = parse_json(text, path, _EXPECTED)
    return _annotated(labelstudio_videos(content, path), path) if is_labelstudio(content) else _from_json(content, path)


def _from_folder(path: Path) -> dict[str, VideoAnnotation]:
    """ELAN files, one for each video."""
    files = sorted(path.glob("*.eaf"))
    if not files:
        raise InputError(f"{path} is a folder without .eaf files, expected {_EXPECTED}")
    found = []
    for file in files:
        text = read_text(file, "an ELAN file", _LARGEST_TEXT)
        with readable(file, "an ELAN file"):
            found.append(elan_video(text, file))
    return _annotated(found, path)


def _annotated(found: Iterable[AnnotatedVideo], path: str | os.PathLike) -> dict[str, VideoAnnotation]:
    videos: dict[str, VideoAnnotation] = {}
    for one in found:
        if one.name in videos:
            raise InputError(f"{path}: video {one.name!r} is repeated")
        instances = tuple(_instance(*segment) for segment in one.segments)
        videos[one.name] = VideoAnnotation(id=one.name, fps=one.fps, instances=instances)
    return videos


def _from_json(content: Any, path: str | os.PathLike) -> dict[str, VideoAnnotation]:
    database = content.get("database", content) if isinstance(content, dict) else content
    if not isinstance(database, dict) or not all(isinstance(entry, dict) for entry in database.values()):
        keys = f"the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else type(content).__name__
        results = isinstance(content, dict) and "results" in content
        looks = "; it looks like a result file, as infer writes it" if results else ""
        raise InputError(f"{path} has another JSON layout ({keys}), expected {_EXPECTED}{looks}")
    if not database:
        raise InputError(f"{path} has no video, expected {_EXPECTED}")
    known = {"annotations", "subset"}.union(*_JSON_KEYS.values())
    if not any(known.intersection(entry) for entry in database.values()):
        found = ", ".join(list(next(iter(database.values())))[:5])
        raise InputError(f"{path} has entries with unknown keys ({found or 'none'}), expected {_EXPECTED}")
    videos = {}
    for name, entry in database.items():
        where = f"{path}: video {name!r}"
        annotations = entry.get("annotations", [])
        if not isinstance(annotations, list):
            raise InputError(f"{where}: annotations is {brief(annotations)}, expected a list")
        videos[name] = VideoAnnotation(
            id=name,
            **_facts(entry, _JSON_KEYS, where),
            subset=_text_or_none(entry.get("subset")),
            instances=tuple(_json_instance(annotation, where) for annotation in annotations),
        )
    return videos


def _json_instance(annotation: Any, where: str) -> Instance:
    if not isinstance(annotation, dict) or not {"segment", "label"} <= annotation.keys():
        raise InputError(f"{where}: annotation is {brief(annotation)}, expected the keys segment and label")
    segment = annotation["segment"]
    if not isinstance(segment, list) or len(segment) != 2:
        raise InputError(f"{where}: segment is {brief(segment)}, expected two numbers in seconds")
    return _instance(segment[0], segment[1], annotation["label"], where)


def _instance(start: Any, end: Any, label: Any, where: str) -> Instance:
    start_s, end_s = _number(start), _number(end)
    if start_s is None or end_s is None:
        raise InputError(f"{where}: segment is [{brief(start)}, {brief(end)}], expected two numbers in seconds")
    if end_s < start_s:
        raise InputError(f"{where}: segment is [{start}, {end}], expected start <= end")
    if not isinstance(label, str | int | float):
        raise InputError(f"{where}: label is {brief(label)}, expected text or a number")
    return Instance(start_s, end_s, str(label))


def _from_csv(text: str, path: str | os.PathLike) -> dict[str, VideoAnnotation]:
    header, rows = read_table(text, path, _EXPECTED)
    columns = set(header)
    if {"video", "type", "type_idx", "start", "end"} <= columns:
        videos = _thumos_annotations(rows)
    elif {"video-name", "t-init", "t-end", "label-idx"} <= columns:
        videos = _thumos_ground_truth(rows)
    elif {"video", "start", "end", "label"} <= columns:
        videos = _own_annotations(rows)
    elif "video" in columns and columns & set().union(*_TABLE_COLUMNS.values()):
        videos = _video_table(rows)
    else:
        raise InputError(f"{path} has the columns {', '.join(header)[:60]!r}, expected {_EXPECTED}")
    if not videos:
        raise InputError(f"{path} has no row after the header, expected {_EXPECTED}")
    return videos


def read_table(text: str, path: str | os.PathLike, expected: str) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Parse CSV: column names, and rows with their position for messages. InputError: malformed or uneven rows."""
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
    try:
        columns = list(reader.fieldnames or ())
        rows = [(f"{path}: line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise InputError(
            f"{path}: malformed CSV at line {reader.reader.line_num} ({error}), expected {expected}"
        ) from error
    for where, row in rows:
        if None in row or None in row.values():
            raise InputError(f"{where}: more or fewer cells than the {len(columns)} columns of the header")
    return columns, rows


def _thumos_annotations(rows: list[tuple[str, dict[str, str]]]) -> dict[str, VideoAnnotation]:
    marked: dict[str, list[tuple[bool, Instance]]] = {}
    for where, row in rows:
        instance = _instance(row["start"], row["end"], row["type"], where)
        marked.setdefault(row["video"], []).append((row["type_idx"].strip() == "0", instance))
    return {name: VideoAnnotation(id=name, **_split(items)) for name, items in marked.items()}


def _thumos_ground_truth(rows: list[tuple[str, dict[str, str]]]) -> dict[str, VideoAnnotation]:
    keys = {"duration": ("video-duration",), "fps": ("frame-rate",), "frames": ("video-frames",)}
    labels = list(THUMOS14_CLASSES)
    videos: dict[str, VideoAnnotation] = {}
    marked: dict[str, list[tuple[bool, Instance]]] = {}
    for where, row in rows:
        name = row["video-name"]
        if name not in videos:
            videos[name] = VideoAnnotation(id=name, **_facts(row, keys, where))
        index = _number(row["label-idx"])
        if index is None or not (index.is_integer() and -1 <= index < len(labels)):
            raise InputError(f"{where}: label-idx is {row['label-idx']!r}, expected -1 to {len(labels) - 1}")
        instance = _instance(row["t-init"], row["t-end"], labels[int(index)], where)
        marked.setdefault(name, []).append((index < 0, instance))
    return {name: replace(video, **_split(marked[name])) for name, video in videos.items()}


def _split(marked: list[tuple[bool, Instance]]) -> dict[str, Any]:
    """The fields `instances` and `ambiguous` of a video, from its rows in file order and whether each is ambiguous."""
    return {
        "instances": tuple(one for is_ambiguous, one in marked if not is_ambiguous),
        "ambiguous": tuple((one.start, one.end) for is_ambiguous, one in marked if is_ambiguous),
    }


def _own_annotations(rows: list[tuple[str, dict[str, str]]]) -> dict[str, VideoAnnotation]:
    """One row for each instance; a video without instances has a row with empty cells."""
    videos: dict[str, VideoAnnotation] = {}
    instances: dict[str, list[Instance]] = {}
    for where, row in rows:
        name = row["video"]
        if name not in videos:
            facts = _facts(row, _TABLE_COLUMNS, where)
            videos[name] = VideoAnnotation(id=name, **facts, subset=_text_or_none(row.get("subset")))
        of_video = instances.setdefault(name, [])
        if any(row[column].strip() for column in ("start", "end", "label")):
            of_video.append(_instance(row["start"], row["end"], row["label"], where))
    return {name: replace(video, instances=tuple(instances[name])) for name, video in videos.items()}


def _video_table(rows: list[tuple[str, dict[str, str]]]) -> dict[str, VideoAnnotation]:
    videos: dict[str, VideoAnnotation] = {}
    for where, row in rows:
        name = row["video"]
        if name in videos:
            raise InputError(f"{where}: video {name!r} is repeated")
        videos[name] = VideoAnnotation(
            id=name, **_facts(row, _TABLE_COLUMNS, where), subset=_text_or_none(row.get("subset"))
        )
    return videos


def _facts(entry: Mapping[str, Any], keys: Mapping[str, tuple[str, ...]], where: str) -> dict[str, Any]:
    """Numbers of one video, without empty cells and missing keys. InputError: a value is not a valid number."""
    facts: dict[str, Any] = {}
    for field, names in keys.items():
        name = next((name for name in names if entry.get(name) not in (None, "")), None)
        if name is None:
            continue
        value = _number(entry[name])
        low = SMALLEST_FLOAT if field in _POSITIVE else 0.0
        if value is None or (field != "feature_offset" and value < low) or 0 < abs(value) < SMALLEST_FLOAT:
            raise InputError(f"{where}: {name} is {brief(entry[name])}, expected a positive number")
        facts[field] = round(value) if field in _WHOLE else value
    return facts


def _number(value: Any) -> float | None:
    """Convert a number or its text to a finite float that is not huge, or else None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST_FLOAT else None


def _text_or_none(value: Any) -> str | None:
    return None if value in (None, "") else str(value)
