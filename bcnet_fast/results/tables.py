"""Results from columns of any origin: CSV, Parquet, the JSON of tables and the text of THUMOS submissions.

Columns are found by their names, whose case, `-` and `_` do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..bounds import LARGEST_FLOAT
from ..data.annotations import THUMOS14_CLASSES, VideoAnnotation
from ..errors import InputError
from ..text import brief, count, some
from .columns import Results, is_usable

EXPECTED = (
    "proposals: JSON, CSV or Parquet with video, start, end and score, THUMOS submission text, a proposal list, or a "
    "folder of CSV files by video"
)

VIDEO = ("video", "video id", "video name", "videoid", "vid", "id")
_START = ("start", "t start", "t init", "start s", "start time", "begin")
_END = ("end", "t end", "end s", "end time", "stop")
_FIRST_FRAME, _LAST_FRAME = ("f init", "start frame", "f start"), ("f end", "end frame")
_FROM, _TO = ("xmin", "tmin"), ("xmax", "tmax")
_SCORE = ("score", "confidence", "conf", "prob", "probability")
_LABEL = ("label", "class", "class name", "category", "type", "label name", "label id", "class id")
# Scores of BSN's ends and of its evaluation module; only the first two exist before that module.
_FACTORS = (("xmin score", "tmin score"), ("xmax score", "tmax score"), ("iou score",))
KNOWN = {*VIDEO, *_START, *_END, *_FIRST_FRAME, *_LAST_FRAME, *_FROM, *_TO, *_SCORE, *_LABEL}
READ = KNOWN.union(*_FACTORS)  # all columns whose values are read

_BY_NUMBER = {number: name for name, number in THUMOS14_CLASSES.items()}
UCF_CLASSES = 101

Videos = Mapping[str, VideoAnnotation]
Where = Callable[[int], str]  # the place of a row, for messages


def plain_name(column: str) -> str:
    return " ".join(column.strip().lower().replace("_", " ").replace("-", " ").split())


def results_of_table(table: Mapping[str, Sequence[Any]], path: object, where: Where, videos: Videos | None) -> Results:
    """Proposals in seconds from named columns of equal lengths.

    where: says where a row is, such as `FILE, line 7`.
    videos: length and frame rate of videos, for times in frames or in shares of the video.

    InputError: a column is missing, a value is not a finite number, or an end is before its start.
    """
    results, unit = rows_of_table(table, path, where)
    return results if unit is None else in_seconds(results, path, videos, unit.seconds, unit.name)


@dataclass(frozen=True)
class Unit:
    """A unit of times: its name, and its seconds in a video."""

    name: str
    seconds: Callable[[str, VideoAnnotation | None], float | None]


def rows_of_table(
    table: Mapping[str, Sequence[Any]], path: object, where: Where, name: str | None = None
) -> tuple[Results, Unit | None]:
    """Proposals from named columns, and the unit of their times, None for seconds.

    name: the video of a table without such a column.
    """
    columns = {plain_name(column): values for column, values in table.items()}
    _refuse_others(columns, list(table), path)
    names, score = _first(columns, VIDEO), _first(columns, _SCORE)
    factors = [values for values in (_first(columns, synonyms) for synonyms in _FACTORS) if values is not None]
    ends = ((_first(columns, start), _first(columns, end), unit) for start, end, unit in _ENDS)
    start, end, unit = next((one for one in ends if one[0] is not None and one[1] is not None), (None, None, None))
    if start is None or end is None or (score is None and len(factors) < 2) or (names is None and name is None):
        raise InputError(f"{path} has the columns {', '.join(table)[:80]!r}, expected {EXPECTED}")
    if score is None:
        scores = np.prod([numbers(values, where, "score") for values in factors], axis=0)
    else:
        scores = numbers(score, where, "score")
    labels = _first(columns, _LABEL)
    if labels is not None and len(labels) and all(one is None for one in labels):
        labels = None  # as `merge` writes proposals
    for what, values in (("video", names), ("label", labels)):
        row = next((row for row, one in enumerate(values or ()) if one is None), None)
        if row is not None:
            raise InputError(f"{where(row)}: {what} is null, expected text or a number")
    ids = [str(one) for one in names] if names is not None else [name or ""] * len(scores)
    first, last = numbers(start, where, "start"), numbers(end, where, "end")
    if unit is _SHARES:
        first, last = np.maximum(first, 0.0), np.minimum(last, 1.0)  # as BSN and BMN cut them
    results = from_columns(ids, first, last, scores, labels, where)
    return (results if ids or name is None else replace(results, video_names=(name,))), unit


def _refuse_others(columns: Mapping[str, Any], table: Sequence[str], path: object) -> None:
    """Raise InputError for tables whose columns have the names of times and mean something else."""
    shown = f"{path} has the columns {', '.join(table)[:80]!r}"
    if {"action", "start", "end"} <= columns.keys() and _first(columns, _FROM) is not None:
        raise InputError(f"{shown}: probabilities of snippets, as BSN's first stage writes them; expected {EXPECTED}")
    if {"type idx", "label idx"} & columns.keys() and _first(columns, _SCORE) is None:
        raise InputError(f"{shown}, expected {EXPECTED}; it looks like an annotation file, which --ground-truth takes")


def _first(columns: Mapping[str, Sequence[Any]], synonyms: Iterable[str]) -> Sequence[Any] | None:
    return next((columns[synonym] for synonym in synonyms if synonym in columns), None)


def numbers(values: Sequence[Any], where: Where, what: str) -> np.ndarray:
    """Convert a column to float64. InputError: names the row of a value that is no finite number, or huge."""
    try:
        found = np.fromiter(map(float, values), np.float64, len(values))
        usable = is_usable(found)
    except (TypeError, ValueError, OverflowError):
        found, usable = np.zeros(0), np.array([_is_number(value) for value in values])
    if not usable.all():
        row = int(np.argmin(usable))
        raise InputError(
            f"{where(row)}: {what} is {brief(values[row])}, expected a finite number up to {LARGEST_FLOAT:g}"
        )
    return found


def _is_number(value: Any) -> bool:
    try:
        return bool(is_usable(float(value)))
    except (TypeError, ValueError, OverflowError):
        return False


def from_columns(
    names: Sequence[str],
    start: np.ndarray,
    end: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[Any] | None,
    where: Where,
    positions: str = "from 0",
) -> Results:
    """Results from columns; numbers that stand for THUMOS14 classes become their names, see `with_class_names`."""
    backward = np.flatnonzero(start > end)
    if len(backward):
        row = int(backward[0])
        raise InputError(f"{where(row)}: segment is [{start[row]:g}, {end[row]:g}], expected start <= end")
    codes, video = _coded(names)
    segments = np.stack([start, end], axis=1)
    if labels is None:
        return Results(codes, video, segments, scores)
    text_of = {one: _label_text(one) for one in set(labels)}
    texts, label = _coded([text_of[one] for one in labels])
    return with_class_names(Results(codes, video, segments, scores, texts, label), positions)


def _coded(values: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return tuple(codes), np.fromiter(map(codes.__getitem__, values), np.int64, len(values))


def _label_text(value: Any) -> str:
    """The text of a label; a whole number has no fraction, because tables may store codes as 7.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def with_class_names(results: Results, positions: str) -> Results:
    """Results in which numbers that stand for THUMOS14 classes are replaced by names.

    Numbers that can only be those of UCF-101 are taken as such. Others are positions in the list of the 20 detection
    classes; `positions` says whether these begin "from 0" (networks) or "from 1" (submissions).
    """
    if results.label is None or not is_thumos14(results.video_names):
        return results
    try:
        ids = [int(float(text)) for text in results.label_names]
    except (ValueError, OverflowError):
        return results
    first = 0 if positions == "from 0" else 1
    classes = list(THUMOS14_CLASSES)
    if not ids or min(ids) < first or max(ids) > UCF_CLASSES:
        return results
    if max(ids) >= first + len(classes) or (first == 1 and set(ids) <= _BY_NUMBER.keys()):
        names, meaning = [_BY_NUMBER.get(one, f"UCF-101 class {one}") for one in ids], "numbers of UCF-101"
    else:
        names, meaning = [classes[one - first] for one in ids], f"positions {positions} among the 20 detection classes"
    # Two texts may mean the same class: 7 and 7.0.
    texts, code = _coded(names)
    named = replace(results, label_names=texts, label=code[results.label])
    return named.noted(f"classes are numbers: taken as {meaning}")


def is_thumos14(names: Iterable[str]) -> bool:
    return any(name.startswith(("video_test_", "video_validation_")) for name in names)


def in_seconds(
    results: Results,
    path: object,
    videos: Videos | None,
    seconds: Callable[[str, VideoAnnotation | None], float | None],
    unit: str,
) -> Results:
    """Results whose times are in another unit, in seconds; videos without the facts for it are left out.

    seconds: length of the unit in a video, from its id and what is known of it, or None.

    InputError: it is known for no video.
    """
    lengths = [seconds(name, _find(videos or {}, name)) for name in results.video_names]
    missing = [name for name, length in zip(results.video_names, lengths, strict=True) if length is None]
    if missing and len(missing) == len(lengths):
        raise InputError(
            f"{path}: times are {unit}, and nothing states the length or frame rate of {some(missing)}; expected them "
            "in the ground truth or in --video-info FILE (videos= in Python)"
        )
    scale = np.array([np.nan if length is None else length for length in lengths])[results.video]
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = replace(results, segments=results.segments * scale[:, None])
    wrong = np.flatnonzero(~(is_usable(scaled.segments).all(1) | np.isnan(scale)))
    if len(wrong):
        name = results.video_names[results.video[wrong[0]]]
        raise InputError(f"{path}: video {name!r} has times beyond {LARGEST_FLOAT:g} seconds, expected a known length")
    if not missing:
        return scaled
    note = f"{count(len(missing), 'video')} ({some(missing)}) left out: times are {unit}, of a video of unknown length"
    return scaled.without(set(missing))[0].noted(note)


def _find(videos: Videos, name: str) -> VideoAnnotation | None:
    """A video by its id, which may have the prefix v_ of ActivityNet here and not there."""
    return videos.get(name) or videos.get(name.removeprefix("v_")) or videos.get(f"v_{name}")


def _seconds_of_frame(_: str, video: VideoAnnotation | None) -> float | None:
    if video is None:
        return None
    if video.fps:
        return 1 / video.fps
    return video.duration / video.frames if video.frames and video.duration else None


def _seconds_of_share(_: str, video: VideoAnnotation | None) -> float | None:
    """The length of the features of BSN and BMN: a video is as long as its whole groups of 16 frames."""
    if video is None or video.duration is None or not video.frames:
        return None if video is None else video.duration
    return video.frames // 16 * 16 / video.frames * video.duration


_SHARES = Unit("shares of the video", _seconds_of_share)
# Columns of start and end, and their unit.
_ENDS = (
    (_START, _END, None),
    (_FIRST_FRAME, _LAST_FRAME, Unit("frames", _seconds_of_frame)),
    (_FROM, _TO, _SHARES),
)
