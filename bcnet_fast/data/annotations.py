"""Ground truth and video information from every public layout, as plain dataclasses.

The layout is told by the content of the file, never by its name; a `.gz` file is read as what it holds:

| layout | recognised by |
| --- | --- |
| ActivityNet JSON, also as ActionFormer, G-TAD (segments as strings) and OpenTAD write it | the key `database` |
| flat JSON of BSN, BMN and mmaction2 | an object for each video id |
| THUMOS14 annotation CSV | columns `video`, `type`, `type_idx`, `start`, `end` |
| THUMOS14 ground-truth CSV | columns `video-name`, `t-init`, `t-end`, `label-idx` |
| video-information CSV of BSN, BMN, G-TAD or BCNet | columns `video`, `seconds`, `fps`, `numFrame`, `featureFrame` |
| the same, a small one of your own | `video` and any of `fps`, `stride`, `offset`, `duration`, `frames` |

Times are seconds. A file that states only a part (say `fps`) gives None for the rest. Instances that THUMOS14 marks
`Ambiguous` are dropped, as every public evaluation does.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..storage.files import parse_json, read_text

# The 20 classes of the THUMOS14 detection task with their UCF-101 numbers (from 1); in this alphabetical order they
# are also numbers 0 to 19 of the ground-truth CSV.
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

_EXPECTED = "ground truth or video information (ActivityNet or BMN JSON, THUMOS14 or video-information CSV)"

# Field of VideoAnnotation -> names that public files use for it, the first one found counts.
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
    """What a file says about one video; None where it says nothing."""

    id: str
    duration: float | None = None  # seconds
    fps: float | None = None
    frames: int | None = None  # of the video
    feature_frames: int | None = None  # frames that the features cover
    feature_stride: float | None = None  # frames between neighbouring rows of the features
    feature_offset: float | None = None  # frame of the boundary before the first row
    subset: str | None = None
    instances: tuple[Instance, ...] = ()


def read_annotations(
    path: str | os.PathLike, subset: str | None = None, *, strip_prefix: bool = False
) -> dict[str, VideoAnnotation]:
    """Read the annotation of every video of a file, in file order.

    `subset` keeps the videos of that subset only (upper and lower case are the same). `strip_prefix` takes the
    ActivityNet prefix off the ids (`strip_activitynet_prefix`). InputError: no known layout, a missing key or column, a
    segment that is not two finite numbers or ends before it starts, a video given twice, no video of that subset.
    """
    text = read_text(path, _EXPECTED)
    if text.lstrip()[:1] in ("{", "["):
        videos = _from_json(parse_json(text, path, _EXPECTED), path)
    else:
        videos = _from_csv(text, path)
    if strip_prefix:
        videos = strip_activitynet_prefix(videos, str(path))
        videos = {name: replace(video, id=name) for name, video in videos.items()}
    return videos if subset is None else in_subset(videos, subset, str(path))


def in_subset(videos: Mapping[str, VideoAnnotation], subset: str, source: str) -> dict[str, VideoAnnotation]:
    """The videos of one subset, upper and lower case being the same; InputError lists the subsets if there are none."""
    kept = {name: video for name, video in videos.items() if (video.subset or "").lower() == subset.lower()}
    if not kept:
        found = sorted({video.subset for video in videos.values() if video.subset is not None})
        raise InputError(
            f"{source}: expected videos of the subset {subset!r}, found {', '.join(found) or 'no subsets'}"
        )
    return kept


def strip_activitynet_prefix(videos: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Take the prefix `v_` off the ids; the values are kept.

    ActivityNet names a video `v_` and its 11-character YouTube id. An id of just 11 characters is such a YouTube id
    already and keeps a `v_` of its own. InputError when two ids become the same.
    """
    stripped: dict[str, Any] = {}
    for name, value in videos.items():
        short = name[2:] if name.startswith("v_") and len(name) != 11 else name
        if short in stripped:
            raise InputError(f"{source}: expected every video once, found {short!r} with and without the prefix v_")
        stripped[short] = value
    return stripped


def _from_json(content: Any, path: str | os.PathLike) -> dict[str, VideoAnnotation]:
    database = content.get("database", content) if isinstance(content, dict) else content
    if not isinstance(database, dict) or not all(isinstance(entry, dict) for entry in database.values()):
        keys = f"the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: expected {_EXPECTED}, found JSON of another layout ({keys})")
    if not database:
        raise InputError(f"{path}: expected {_EXPECTED}, found no video")
    known = {"annotations", "subset"}.union(*_JSON_KEYS.values())
    if not any(known.intersection(entry) for entry in database.values()):
        found = ", ".join(list(next(iter(database.values())))[:5])
        raise InputError(f"{path}: expected {_EXPECTED}, found entries with other keys ({found or 'none'})")
    videos = {}
    for name, entry in database.items():
        where = f"{path}: video {name!r}"
        annotations = entry.get("annotations", [])
        if not isinstance(annotations, list):
            raise InputError(f"{where}: expected a list of annotations, found {annotations!r:.120}")
        videos[name] = VideoAnnotation(
            id=name,
            **_facts(entry, _JSON_KEYS, where),
            subset=_text_or_none(entry.get("subset")),
            instances=tuple(_json_instance(annotation, where) for annotation in annotations),
        )
    return videos


def _json_instance(annotation: Any, where: str) -> Instance:
    if not isinstance(annotation, dict) or not {"segment", "label"} <= annotation.keys():
        raise InputError(f"{where}: expected an annotation with the keys segment and label, found {annotation!r:.120}")
    segment = annotation["segment"]
    if not isinstance(segment, list) or len(segment) != 2:
        raise InputError(f"{where}: expected a segment of two numbers in seconds, found {segment!r:.120}")
    return _instance(segment[0], segment[1], annotation["label"], where)


def _instance(start: Any, end: Any, label: Any, where: str) -> Instance:
    start_s, end_s = _number(start), _number(end)
    if start_s is None or end_s is None:
        raise InputError(f"{where}: expected a segment of two numbers in seconds, found [{start!s:.60}, {end!s:.60}]")
    if end_s < start_s:
        raise InputError(f"{where}: expected a segment that ends after its start, found [{start}, {end}]")
    return Instance(start_s, end_s, str(label))


def _from_csv(text: str, path: str | os.PathLike) -> dict[str, VideoAnnotation]:
    header, rows = read_table(text, path, _EXPECTED)
    columns = set(header)
    if {"video", "type", "type_idx", "start", "end"} <= columns:
        videos = _thumos_annotations(rows)
    elif {"video-name", "t-init", "t-end", "label-idx"} <= columns:
        videos = _thumos_ground_truth(rows)
    elif "video" in columns and columns & set().union(*_TABLE_COLUMNS.values()):
        videos = _video_table(rows)
    else:
        raise InputError(f"{path}: expected {_EXPECTED}, found the columns {', '.join(header)[:60]!r}")
    if not videos:
        raise InputError(f"{path}: expected {_EXPECTED}, found no row after the first line")
    return videos


def read_table(text: str, path: str | os.PathLike, expected: str) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """The column names of a CSV text, and every row with its file and line in words. InputError: broken, uneven."""
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
    try:
        columns = list(reader.fieldnames or ())
        rows = [(f"{path}: line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise InputError(
            f"{path}: expected {expected}, found a broken CSV at line {reader.reader.line_num} ({error})"
        ) from error
    for where, row in rows:
        if None in row or None in row.values():
            raise InputError(f"{where}: expected {len(columns)} columns as in the first line, found more or fewer")
    return columns, rows


def _thumos_annotations(rows: list[tuple[str, dict[str, str]]]) -> dict[str, VideoAnnotation]:
    instances: dict[str, list[Instance]] = {}
    for where, row in rows:
        of_video = instances.setdefault(row["video"], [])
        if row["type_idx"].strip() != "0":
            of_video.append(_instance(row["start"], row["end"], row["type"], where))
    return {name: VideoAnnotation(id=name, instances=tuple(items)) for name, items in instances.items()}


def _thumos_ground_truth(rows: list[tuple[str, dict[str, str]]]) -> dict[str, VideoAnnotation]:
    keys = {"duration": ("video-duration",), "fps": ("frame-rate",), "frames": ("video-frames",)}
    labels = list(THUMOS14_CLASSES)
    videos: dict[str, VideoAnnotation] = {}
    instances: dict[str, list[Instance]] = {}
    for where, row in rows:
        name = row["video-name"]
        if name not in videos:
            videos[name] = VideoAnnotation(id=name, **_facts(row, keys, where))
        index = _number(row["label-idx"])
        if index is None or not (index.is_integer() and -1 <= index < len(labels)):
            raise InputError(f"{where}: expected a label-idx from -1 to {len(labels) - 1}, found {row['label-idx']!r}")
        of_video = instances.setdefault(name, [])
        if index >= 0:
            of_video.append(_instance(row["t-init"], row["t-end"], labels[int(index)], where))
    return {name: replace(video, instances=tuple(instances[name])) for name, video in videos.items()}


def _video_table(rows: list[tuple[str, dict[str, str]]]) -> dict[str, VideoAnnotation]:
    videos: dict[str, VideoAnnotation] = {}
    for where, row in rows:
        name = row["video"]
        if name in videos:
            raise InputError(f"{where}: expected every video once, found {name!r} again")
        videos[name] = VideoAnnotation(
            id=name, **_facts(row, _TABLE_COLUMNS, where), subset=_text_or_none(row.get("subset"))
        )
    return videos


def _facts(entry: Mapping[str, Any], keys: Mapping[str, tuple[str, ...]], where: str) -> dict[str, float | int | None]:
    """The numbers of one video; an empty cell and a missing key are None, anything but a usable number InputError."""
    facts: dict[str, float | int | None] = {}
    for field, names in keys.items():
        name = next((name for name in names if entry.get(name) not in (None, "")), None)
        if name is None:
            continue
        value = _number(entry[name])
        if value is None or (field in _POSITIVE and value <= 0) or (field != "feature_offset" and value < 0):
            raise InputError(f"{where}: expected {name} as a positive number, found {entry[name]!r:.120}")
        facts[field] = round(value) if field in _WHOLE else value
    return facts


def _number(value: Any) -> float | None:
    """A finite float from a number or its text, else None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text_or_none(value: Any) -> str | None:
    return None if value in (None, "") else str(value)
