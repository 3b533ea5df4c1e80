"""Reading proposals and detections, whatever wrote them; the content of a file determines its format.

| content | written by |
| --- | --- |
| JSON with `results`, or videos at its top | this package, BCNet, BMN, G-TAD, AFSD, OpenTAD, mmaction2 |
| JSON of columns or of rows | ActionFormer and TriDet (their pickle converted), pandas |
| CSV or Parquet with video, start, end, score | anyone |
| lines `video start end class score` | submissions to THUMOS'14 |
| blocks separated by lines that begin with `#` | TAG, SSN, P-GCN, MUSES-Net: proposals without scores |
| folder of CSV files by video, times as shares of it | BSN, BMN |
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data.annotations import VideoAnnotation
from ..data.proposal_list import ListedProposals, listed_proposals
from ..errors import InputError
from ..storage.files import first_bytes, no_collection, parse_json, read_text, readable
from ..storage.foreign import refuse_pickle
from ..storage.remote import reads_addresses
from ..text import alternatives, brief
from .columns import Results
from .parquet import is_text, require_plain, texts
from .tables import (
    EXPECTED,
    KNOWN,
    READ,
    UCF_CLASSES,
    VIDEO,
    Unit,
    Videos,
    from_columns,
    in_seconds,
    is_thumos14,
    numbers,
    plain_name,
    results_of_table,
    rows_of_table,
    with_class_names,
)

__all__ = ["Results", "read_results"]

_FEW_ROWS = 1_000_000  # rows that any Parquet file may have
_SUBMISSION = ("video", "start", "end", "class", "score")
_LONGEST_LINE = 1 << 16  # characters of a header
_VIDEO_SUFFIX = re.compile(r"\.(?:mp4|mpeg|avi)$")


@reads_addresses(EXPECTED)
def read_results(path: str | os.PathLike, videos: Mapping[str, VideoAnnotation] | None = None) -> Results:
    """Read proposals or detections of any format of this module, gzipped or not; its content says which.

    videos: length and frame rate of videos, for formats whose times are frames or shares of the video.

    `Results.notes` says what had to be assumed. InputError: the file is missing, a pickle, of another format, or it is
    damaged (names the line or the entry).
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, videos)
    start = first_bytes(path, EXPECTED)
    refuse_pickle(path, start)
    if start.startswith(b"PAR1"):
        return _read_parquet(path, videos)
    text = read_text(path, EXPECTED)
    first = text.lstrip()[:1]
    with readable(path, EXPECTED), no_collection():
        if first in ("{", "["):
            return _from_json(text, path, videos)
        if first == "#":
            return _from_list(path, videos)
        if _is_submission(_words(_first_line(text))):
            return _from_submission(text, path)
        results, unit = _from_csv(text, path, path.name.partition(".")[0])
        return results if unit is None else in_seconds(results, path, videos, unit.seconds, unit.name)


def _first_line(text: str) -> str:
    return text.lstrip()[:_LONGEST_LINE].partition("\n")[0]


def _words(line: str) -> list[str]:
    return line.replace(",", " ").split()


def _is_submission(words: Sequence[str]) -> bool:
    try:
        return len(words) == len(_SUBMISSION) and all(np.isfinite(float(words[place])) for place in (1, 2, 4))
    except ValueError:
        return False


def _from_submission(text: str, path: Path) -> Results:
    """THUMOS'14 submission: start and end in either order, class as a number or a name, the suffix .mp4 or none."""
    lines = text.split("\n")
    rows = [words for words in map(_words, lines) if words]
    uneven = next((row for row, words in enumerate(rows) if len(words) != len(_SUBMISSION)), None)

    def where(row: int) -> str:
        filled = (number for number, line in enumerate(lines, 1) if _words(line))
        return f"{path}, line {next(islice(filled, row, None))}"

    if uneven is not None:
        raise InputError(f"{where(uneven)} is {' '.join(rows[uneven])!r:.80}, expected {' '.join(_SUBMISSION)}")
    names, start, end, labels, scores = zip(*rows, strict=True)
    first, last = numbers(start, where, "start"), numbers(end, where, "end")
    plain = {name: _VIDEO_SUFFIX.sub("", name) for name in set(names)}
    ids = [plain[name] for name in names]
    if is_thumos14(ids) and labels[0].replace(".", "", 1).isdigit():
        classes = numbers(labels, where, "class")
        wrong = np.flatnonzero((classes < 1) | (classes > UCF_CLASSES) | (classes % 1 != 0))
        if len(wrong):
            row = int(wrong[0])
            raise InputError(f"{where(row)}: class is {labels[row]}, expected a number of UCF-101, or 1 to 20")
    ends = np.minimum(first, last), np.maximum(first, last)
    return from_columns(ids, *ends, numbers(scores, where, "score"), labels, where, "from 1")


def _from_json(text: str, path: Path, videos: Videos | None) -> Results:
    content = parse_json(text, path, EXPECTED, unique_keys=False)
    if isinstance(content, dict) and isinstance(content.get("results"), list):
        content = content["results"]
    table = _json_table(content, path)
    if table is not None:
        return results_of_table(table, path, lambda row: f"{path}: row {row + 1}", videos)
    entries = content.get("results") if isinstance(content, dict) else None
    if not isinstance(entries, dict) and isinstance(content, dict) and any(map(_is_proposals, content.values())):
        entries = content
    if not isinstance(entries, dict):
        found = f"the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else type(content).__name__
        annotations = isinstance(content, dict) and "database" in content
        looks = "; it looks like an annotation file, which --ground-truth takes" if annotations else ""
        raise InputError(f"{path} has {found}, expected {EXPECTED}{looks}")
    if not entries:
        raise InputError(f"{path} has no video, expected {EXPECTED}")
    in_columns = any(isinstance(value, dict) and _column(value, "segments") is not None for value in entries.values())
    if in_columns:
        entries = {name: _rows_of(value, f"{path}: video {name!r}") for name, value in entries.items()}
    results = Results.from_dict(entries, str(path))
    if not in_columns and text.count('"segment"') != len(results.scores):
        # Probably a repeated video, of which JSON keeps the last; parsing again names it.
        parse_json(text, path, EXPECTED)
    return with_class_names(results, "from 0")


def _is_proposals(value: Any) -> bool:
    """Whether a value of a JSON object may be the proposals of a video."""
    if isinstance(value, dict):
        return _column(value, "segments") is not None and _column(value, "scores") is not None
    if not (isinstance(value, list) and value):
        return False
    if isinstance(value[0], dict):
        return "segment" in value[0]
    return isinstance(value[0], list) and len(value[0]) == 3


def _column(value: Mapping[str, Any], name: str) -> list[Any] | None:
    found = value.get(name)
    return found if isinstance(found, list) else None


def _rows_of(value: Any, where: str) -> Any:
    """The entries of a video that has its segments, scores and labels in lists."""
    if not isinstance(value, dict):
        return value
    segments, scores, labels = (_column(value, name) for name in ("segments", "scores", "labels"))
    if (
        segments is None
        or scores is None
        or len({len(one) for one in (segments, scores, labels) if one is not None}) > 1
    ):
        raise InputError(f"{where} has {brief(value)}, expected segments, scores and perhaps labels of one length")
    entries = [{"segment": segment, "score": score} for segment, score in zip(segments, scores, strict=True)]
    return entries if labels is None else [{**one, "label": label} for one, label in zip(entries, labels, strict=True)]


def _json_table(content: Any, path: Path) -> dict[str, list[Any]] | None:
    """The columns of a JSON of columns or of rows, or None if it is neither."""
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        names = list(content[0])
        wrong = next((number for number, row in enumerate(content, 1) if row.keys() != content[0].keys()), None)
        if wrong is not None:
            raise InputError(
                f"{path}: row {wrong} has the keys {', '.join(content[wrong - 1])[:80]!r}, not those of row 1"
            )
        return {name: [row[name] for row in content] for name in names}
    if not isinstance(content, dict) or not {plain_name(str(name)) for name in content} & set(VIDEO):
        return None
    columns = {name: list(one.values()) if isinstance(one, dict) else one for name, one in content.items()}
    kept = {name: one for name, one in columns.items() if isinstance(one, list)}
    lengths = {len(one) for one in kept.values()}
    if len(lengths) > 1:
        raise InputError(f"{path} has columns of {alternatives(map(str, sorted(lengths)))} rows, expected one length")
    return kept if len(kept) >= 3 else None


def _from_list(path: Path, videos: Videos | None) -> Results:
    """A proposal list: in order of their place, because the list has no scores."""
    listed = {one.name: one for one in listed_proposals(path)}
    for one in listed.values():
        if (one.segments[:, 0] > one.segments[:, 1]).any():
            raise InputError(f"{path}: video {one.name!r} has a proposal that ends before its start")
    lengths = [len(one.segments) for one in listed.values()]
    place = np.concatenate([np.arange(length) / length for length in lengths])
    segments = np.concatenate([one.segments for one in listed.values()])
    results = Results(tuple(listed), np.repeat(np.arange(len(listed)), lengths), segments, 1.0 - place)
    results = results.noted("a proposal list has no scores: proposals rank by their place in it")
    return in_seconds(results, path, videos, lambda name, video: _list_unit(listed[name], video), "frames or shares")


def _list_unit(listed: ListedProposals, video: VideoAnnotation | None) -> float | None:
    """Seconds of a frame of the list, or of the whole video where its times are shares of that."""
    if listed.rate != 1:
        return 1 / listed.rate
    if video is None or not listed.duration:
        return None
    if video.duration:
        return video.duration / listed.duration
    return 1 / video.fps if video.fps and listed.duration != 1 else None


def _from_csv(text: str, path: Path, name: str) -> tuple[Results, Unit | None]:
    """CSV with a header, and the unit of its times; `name` is the video where no column says it."""
    header = _first_line(text)
    delimiter = max(",\t; ", key=lambda one: sum(plain_name(cell) in KNOWN for cell in header.split(one)))

    def reader() -> Any:
        return csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)

    source = reader()
    try:
        rows = [row for row in source if row]
    except csv.Error as error:
        raise InputError(f"{path}: malformed CSV at line {source.line_num} ({error}), expected {EXPECTED}") from error

    def where(row: int) -> str:
        """Counts again: a quoted cell may have several lines."""
        again, seen = reader(), -1
        for cells in again:
            seen += bool(cells)
            if seen == row + 1:
                break
        return f"{path}, line {again.line_num}"

    if not rows:
        raise InputError(f"{path} is empty, expected {EXPECTED}")
    columns, body = rows[0], rows[1:]
    if not {plain_name(column) for column in columns} & KNOWN:
        raise InputError(f"{path} begins with {header.strip()!r:.80}, expected {EXPECTED}")
    uneven = next((row for row, cells in enumerate(body) if len(cells) != len(columns)), None)
    if uneven is not None:
        names = ", ".join(columns)[:80]
        raise InputError(f"{where(uneven)}: {len(body[uneven])} cells, expected {len(columns)} ({names})")
    table = dict(zip(columns, zip(*body, strict=True) if body else [()] * len(columns), strict=True))
    return rows_of_table(table, path, where, name)


def _read_folder(path: Path, videos: Videos | None) -> Results:
    """CSV files by video, as BSN and BMN write them; the id of a video is the name of its file."""
    files = sorted(file for file in path.iterdir() if file.suffix == ".csv" and not file.name.startswith("."))
    if not files:
        raise InputError(f"{path} is a folder without a .csv file, expected {EXPECTED}")
    parts = []
    for file in files:
        text = read_text(file, EXPECTED)
        with readable(file, EXPECTED):
            results, unit = _from_csv(text, file, file.stem)
        if parts and unit is not parts[0][1]:
            raise InputError(f"{file} has times in another unit than {files[0].name}, expected the same in all")
        parts.append((results, unit))
    try:
        joined, unit = Results.joined([results for results, _ in parts]), parts[0][1]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return joined if unit is None else in_seconds(joined, path, videos, unit.seconds, unit.name)


def _read_parquet(path: Path, videos: Videos | None) -> Results:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(f"{path} is a Parquet file, which needs pyarrow: pip install 'bcnet_fast[parquet]'") from error
    with readable(path, EXPECTED):
        facts = parquet.read_metadata(path)
        rows, size = facts.num_rows, path.stat().st_size
        if rows > max(size, _FEW_ROWS):  # compressed more than real scores can be
            raise InputError(f"{path} has {rows} rows in {size} bytes, expected {EXPECTED}")
        schema = facts.schema.to_arrow_schema()
        names = [name for name in dict.fromkeys(schema.names) if plain_name(name) in READ]
        text = [name for name in names if is_text(schema.field(name).type)]
        with parquet.ParquetFile(path, read_dictionary=text) as file:
            require_plain(file, names, range(facts.num_row_groups))
            table = _parquet_columns(file, names, text)
        # A column of nulls counts as absent: `merge` writes one as the labels of proposals. Others are only named.
        table = {
            name: table.get(name, [])
            for name in schema.names
            if not rows or name not in table or any(one is not None for one in table[name])
        }
        return results_of_table(table, path, lambda row: f"{path}: row {row + 1}", videos)


def _parquet_columns(file: Any, names: Sequence[str], text: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a Parquet file, read in parts: a column of text may unpack to far more than its file states."""
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for batch in file.iter_batches(columns=list(names)) if names else ():
        for name in names:
            column = batch.column(name)
            columns[name] += texts(column) if name in text else column.to_pylist()
    return columns
