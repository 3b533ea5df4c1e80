"""Parts of a large result: the files that several runs over one archive write into a folder.

A part has a header, a record for each video, and a row for each proposal; videos are sorted by id. It never changes
once it has its name, `part-SHARD-of-SHARDS-NUMBER.jsonl` or `.parquet`.

JSON lines: the header, the records, and then the rows. Parquet: the rows have the columns of `results.parquet`, and the
footer has header and records under `HEADER` and `RECORDS`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..bounds import LARGEST_FLOAT
from ..errors import InputError
from ..storage.address import Address, Place, place_of
from ..storage.files import open_binary, readable, require_file
from ..storage.optional import require_pyarrow
from ..storage.remote import listed, read_range, size_of
from ..text import brief
from .parquet import SUFFIX, Columns, parquet_table, parquet_writer, require_plain, texts

FORMATS = ("jsonl", "parquet")
NAME = re.compile(r"part-(\d{3,})-of-(\d{3,})-(\d{4,})\.(jsonl|parquet)")
HEADER, RECORDS = "bcnet_fast_part", "bcnet_fast_videos"  # keys in the footer of Parquet
DONE, FAILED = "done", "failed"
_VERSION = 1
_EXPECTED = "a whole part of `infer --shard`"
_READ_BYTES = 1 << 16  # read at once from a file, which is closed in between: merging reads from every shard
_REMOTE_BYTES = 1 << 20  # the same for a file in another storage
_LONGEST_LINE = 1 << 24  # bytes
_MOST_ROWS = 1 << 20  # most rows of a Parquet row group that is read
_GROUP_ROWS = 4096  # rows of Parquet that are unpacked at once
_READ = ("video", "start", "end", "score", "label")  # columns of Parquet


class Record(NamedTuple):
    """The record of one video in a part.

    error: why it failed.
    windows, proposals: number of each.
    attempt: 1, or more where the video had failed or its feature files have changed since.
    source: size and time of the last change in ns of its feature files.
    fingerprint: of weights, settings and version, `fingerprint_of`.
    """

    video: str
    status: str
    error: str | None
    windows: int
    proposals: int
    attempt: int
    source: list[list[int]]
    fingerprint: str

    def order(self) -> tuple[int, bool]:
        """Sort key of a video's records; the greatest counts: the last attempt, and in it success over failure."""
        return self.attempt, self.status == DONE


@dataclass(frozen=True)
class Header:
    """The header of a part: facts about the part and its run.

    videos_in_archive: number of videos of all shards.
    version, details, settings: of the submission file, `write_submission`.
    first, last: ids.
    sizes, checksums: bytes and CRC-32 of records and rows; empty for Parquet, which has its own.
    """

    videos_in_archive: int
    version: str
    details: str
    settings: dict[str, Any]
    fingerprint: str
    videos: int = 0
    rows: int = 0
    first: str = ""
    last: str = ""
    sizes: tuple[int, ...] = ()
    checksums: tuple[int, ...] = ()


# A row without the id before it: rank, and an entry of a submission. Entries are copied without parsing them. Therefore
# the form is that of JSON, and numbers are below 1e30.
_NUMBER = rb"-?(?:(?:0|[1-9]\d{0,29})(?:\.\d{1,30})?(?:e-\d{1,3})?|[1-9](?:\.\d{1,30})?e\+?[12]?\d)"
_TEXT = rb'[^"\\\x00-\x1f]*'
_LABEL = rb'"%b(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})%b)*"' % (_TEXT, _TEXT)
_ROW = re.compile(
    rb'^\d+, ("score": %b, "segment": \[%b, %b\](?:, "label": %b)?\})$' % (_NUMBER, _NUMBER, _NUMBER, _LABEL),
    re.MULTILINE,
)
_HEADER_TYPES = (int, str, str, dict, str, int, int, str, str, list | tuple, list | tuple)
_RECORD_TYPES = (str, str, str | None, int, int, int, list, str)


def _are(values: Iterable[Any], kinds: Iterable[Any]) -> bool:
    return all(isinstance(value, kind) for value, kind in zip(values, kinds, strict=True))


def fingerprint_of(settings: dict[str, Any]) -> str:
    """16 hexadecimal digits that differ where weights, settings or version differ."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Rows:
    """Proposals of one video as they are stored in JSON lines."""

    def __init__(self, video: str, lines: Sequence[bytes], path: Place) -> None:
        self._begin, self._lines, self._path = _row_begin(video).encode(), lines, path

    def json(self) -> str:
        """The entries of a submission, cut out of the rows without parsing them: id and rank precede each entry."""
        rows = b"".join(self._lines)
        found = _ROW.findall(rows.replace(self._begin, b""))
        if not len(found) == len(self._lines) == rows.count(self._begin):
            raise InputError(f"{self._path} has the row {brief(self._wrong())}, expected {_EXPECTED}")
        try:
            return "[{" + b", {".join(found).decode() + "]" if found else "[]"
        except UnicodeDecodeError as error:
            raise InputError(f"{self._path} has a label that is not UTF-8, expected {_EXPECTED}") from error

    def _wrong(self) -> bytes:
        """The first row that has another id or form."""
        return next(
            (
                line
                for line in self._lines
                if not (line.startswith(self._begin) and _ROW.fullmatch(line[len(self._begin) :].removesuffix(b"\n")))
            ),
            b"",
        )

    def columns(self) -> Columns:
        with readable(self._path, _EXPECTED):
            found = json.loads(self.json())
            segments = np.array([row["segment"] for row in found], np.float64).reshape(len(found), 2)
            _require_order(segments)
            labels = [row["label"] for row in found] if found and "label" in found[0] else None
            return Columns(segments, np.array([row["score"] for row in found], np.float64), labels)


def _require_order(segments: np.ndarray) -> None:
    if (segments[:, 0] > segments[:, 1]).any():
        raise ValueError("a segment ends before its start")


class Stored(NamedTuple):
    """A video of a part."""

    record: Record
    found: Rows | Columns


class _Group(NamedTuple):
    """Consecutive rows of a Parquet file. videos: the id of each."""

    videos: np.ndarray
    columns: Columns


class Part:
    """A part on disk; no file stays open. InputError: it is damaged, or something else."""

    def __init__(self, path: Place) -> None:
        self.path = path if isinstance(path, Address) else require_file(path, _EXPECTED)
        self.shard, self.shards, _ = numbers_of(path)
        self._parquet = path.suffix == SUFFIX
        with readable(path, _EXPECTED):
            if self._parquet:
                header = json.loads(self._open().metadata.metadata[HEADER.encode()])
            else:
                with open_binary(path, _EXPECTED) as file:
                    line = file.readline(_LONGEST_LINE)
                self._begin, header = len(line), json.loads(line)[HEADER]
            if header.pop("format") != _VERSION:
                raise InputError(f"{path} is of another version of bcnet_fast, expected {_EXPECTED}")
            self.header = Header(**header)
            values = [getattr(self.header, field.name) for field in dataclasses.fields(Header)]
            numbers = [*self.header.sizes, *self.header.checksums] if _are(values, _HEADER_TYPES) else [None]
            if not all(isinstance(number, int) and number >= 0 for number in numbers):
                raise InputError(f"{path} has the header {brief(header)}, expected {_EXPECTED}")
            if not self._parquet and size_of(path) != self._begin + sum(self.header.sizes):
                raise InputError(f"{path} has been cut, expected {_EXPECTED}; delete it and run its shard again")

    def require_run(self, about: Header) -> None:
        """InputError: the part is from a run with other settings."""
        found, expected = self.header.settings, about.settings
        if self.header.fingerprint != about.fingerprint:
            names = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
            raise InputError(
                f"{self.path} is from a run with other values of {', '.join(names)}; "
                "use the same settings, or another folder"
            )

    def records(self) -> Iterator[Record]:
        """The records of its videos, by id."""
        with readable(self.path, _EXPECTED):
            if self._parquet:
                lines = self._open().metadata.metadata[RECORDS.encode()].splitlines()
            else:
                lines = self._lines(0)
            last = None
            for line in lines:
                record = Record(**json.loads(line))
                if not _are(record, _RECORD_TYPES) or min(record.windows, record.proposals, record.attempt) < 0:
                    raise ValueError(f"a record is {brief(line)}")
                if record.video < last if last is not None else record.video != self.header.first:
                    raise ValueError(f"the video {brief(record.video)} is not at its place")
                yield record
                last = record.video
            if last != self.header.last:
                raise ValueError(f"the last video is {brief(last)}, not {brief(self.header.last)}")

    def videos(self) -> Iterator[Stored]:
        """Records and proposals of its videos, by id."""
        with readable(self.path, _EXPECTED):
            if self._parquet:
                rows: Iterator[Any] = self._groups()
                held = next(rows, None)
                for record in self.records():
                    taken, held = _take(record.video, held, rows, record.proposals)
                    yield Stored(record, taken)
                more = held is not None
            else:
                lines = self._lines(1)
                for record in self.records():
                    of_video = list(itertools.islice(lines, record.proposals))
                    if len(of_video) < record.proposals:
                        raise ValueError("rows are missing")
                    yield Stored(record, Rows(record.video, of_video, self.path))
                more = next(lines, None) is not None
            if more:
                raise ValueError("more rows than its records state")

    def _lines(self, section: int) -> Iterator[bytes]:
        """The lines of the records (0) or rows (1). Their checksum is compared, because rows are not parsed."""
        checksum = functools.reduce(lambda checksum, block: zlib.crc32(block, checksum), self._blocks(section), 0)
        if checksum != self.header.checksums[section]:
            raise InputError(f"{self.path} is damaged, expected {_EXPECTED}; delete it and run its shard again")
        return itertools.chain.from_iterable(self._whole_lines(section))

    def _whole_lines(self, section: int) -> Iterator[list[bytes]]:
        rest = b""
        for block in self._blocks(section):
            lines = (rest + block).splitlines(keepends=True)
            rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
            if len(rest) > _LONGEST_LINE:
                raise ValueError(f"a line is longer than {_LONGEST_LINE} bytes")
            yield lines
        if rest:
            raise ValueError("its last line is cut")

    def _blocks(self, section: int) -> Iterator[bytes]:
        """The bytes of the records (0) or rows (1); the file is closed in between."""
        place = self._begin + sum(self.header.sizes[:section])
        end = place + self.header.sizes[section]
        while place < end:
            if isinstance(self.path, Address):
                block = read_range(self.path, place, min(place + _REMOTE_BYTES, end))
            else:
                with open(self.path, "rb") as file:
                    file.seek(place)
                    block = file.read(min(_READ_BYTES, end - place))
            if not block:
                raise ValueError("cut while it was read")
            place += len(block)
            yield block

    def _open(self) -> Any:
        source = open_binary(self.path, _EXPECTED) if isinstance(self.path, Address) else self.path
        return require_pyarrow().parquet.ParquetFile(
            source, page_checksum_verification=True, read_dictionary=["video", "label"]
        )

    def _groups(self) -> Iterator[_Group]:
        """The rows, a group at a time."""
        for number in range(self._open().num_row_groups):
            file = self._open()
            if file.metadata.row_group(number).num_rows > _MOST_ROWS:
                raise ValueError(f"a group has more than {_MOST_ROWS} rows")
            require_plain(file, _READ, [number])
            for batch in file.iter_batches(row_groups=[number], columns=list(_READ)):
                start, end, score = (batch.column(name) for name in _READ[1:4])
                numbers = np.array([start.to_numpy(), end.to_numpy(), score.to_numpy()], np.float64)
                if not (np.abs(numbers) <= LARGEST_FLOAT).all():
                    raise ValueError(f"a time or score is not a number up to {LARGEST_FLOAT:g}")
                _require_order(numbers[:2].T)
                videos, label = texts(batch.column("video")), batch.column("label")
                labels = None if label.null_count == len(label) else np.array(texts(label), object)
                if None in videos or (labels is not None and label.null_count):
                    raise ValueError("a row has no video or no label")
                yield _Group(np.array(videos, object), Columns(numbers[:2].T, numbers[2], labels))


def _take(video: str, held: _Group | None, more: Iterator[_Group], count: int) -> tuple[Columns, _Group | None]:
    """The next `count` rows and those that are left of their group. ValueError: they are fewer, or of another video."""
    pieces: list[Columns] = []
    while count:
        if held is None:
            raise ValueError("rows are missing")
        if (held.videos[:count] != video).any():
            raise ValueError(f"a row of the video {brief(video)} has another id")
        pieces.append(_slice(held.columns, 0, count))
        length = len(pieces[-1].scores)
        count -= length
        held = _Group(held.videos[length:], _slice(held.columns, length, None))
        if not len(held.videos):
            held = next(more, None)
    if not pieces:
        return Columns(np.empty((0, 2)), np.empty(0)), held
    labels = [piece.labels for piece in pieces if piece.labels is not None]
    if labels and len(labels) < len(pieces):
        raise ValueError(f"a row of the video {brief(video)} has no label")
    return Columns(
        np.concatenate([piece.segments for piece in pieces]),
        np.concatenate([piece.scores for piece in pieces]),
        np.concatenate(labels) if labels else None,
    ), held


def _slice(columns: Columns, begin: int, end: int | None) -> Columns:
    segments, scores, labels = columns
    return Columns(segments[begin:end], scores[begin:end], None if labels is None else labels[begin:end])


def numbers_of(path: Place) -> tuple[int, int, int]:
    """Shard, number of shards and number of a part, from its name."""
    match = NAME.fullmatch(path.name)
    assert match, path
    shard, shards, number = map(int, match.groups()[:3])
    return shard, shards, number


def parts_in(folder: str | os.PathLike) -> list[Place]:
    """Every part in a folder, by shard and number. InputError: it cannot be read."""
    place = place_of(folder)
    paths: list[Place] = []
    if isinstance(place, Address):
        for name, facts in listed(place):
            if NAME.fullmatch(name):
                paths.append(Address((place / name).whole, facts))
    else:
        with readable(folder, "a folder of parts that `infer --shard` wrote"), os.scandir(place) as found:
            paths.extend(Path(entry) for entry in found if NAME.fullmatch(entry.name))
    return sorted(paths, key=lambda path: (numbers_of(path), path.name))


def write_part(path: Path, about: Header, videos: Iterable[tuple[Record, Columns]], suffix: str) -> None:
    """Write a part to `path` in the format of a suffix. OSError: it cannot be written."""
    chosen = sorted(videos, key=lambda video: video[0].video)
    records = [record for record, _ in chosen]
    header = dataclasses.replace(
        about,
        videos=len(records),
        rows=sum(record.proposals for record in records),
        first=records[0].video,
        last=records[-1].video,
    )
    lines = "".join(json.dumps(record._asdict()) + "\n" for record in records).encode()
    if suffix == SUFFIX:
        table = parquet_table([(record.video, columns) for record, columns in chosen if record.proposals])
        with parquet_writer(path, {HEADER: json.dumps(_stated(header)), RECORDS: lines.decode()}) as file:
            file.write_table(table, row_group_size=_GROUP_ROWS)
        return
    rows = "".join(row for record, columns in chosen for row in _rows(record.video, columns)).encode()
    sections = lines, rows
    header = dataclasses.replace(
        header, sizes=tuple(map(len, sections)), checksums=tuple(zlib.crc32(section) for section in sections)
    )
    with open(path, "wb") as file:
        file.write(json.dumps({HEADER: _stated(header)}).encode() + b"\n" + lines + rows)


def _stated(header: Header) -> dict[str, Any]:
    return {"format": _VERSION, **dataclasses.asdict(header)}


def _rows(video: str, columns: Columns) -> Iterator[str]:
    """A line for each proposal: id and rank, and then the entry of a submission."""
    begin = _row_begin(video)
    for rank, entry in enumerate(columns.entries(), 1):
        yield f"{begin}{rank}, {entry[1:]}\n"


def _row_begin(video: str) -> str:
    return f'{{"video": {json.dumps(video)}, "rank": '
