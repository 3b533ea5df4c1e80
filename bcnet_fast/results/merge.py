"""Join the parts of many runs to one result. Memory depends on the number of shards, not on that of videos."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from ..errors import InputError
from ..storage.address import place_of
from ..storage.files import require_file
from ..storage.output import atomic_path, atomic_text
from ..text import brief, count
from .parquet import SUFFIX, Columns, not_utf8, parquet_table, parquet_writer
from .parts import DONE, Header, Part, Stored, parts_in
from .writer import write_submission

_GROUP_ROWS = 100_000  # rows of a merged Parquet file that are in memory at once
_LONGEST_LINE = 1 << 16  # characters of an id and the end of its line
_LISTED = 10  # unfinished videos in a report
META = "bcnet_fast"  # key in the footer of a merged Parquet file


@dataclass
class MergeReport:
    """Result of `merge`.

    failed, missing: numbers of videos that failed, and that no part has; `unfinished` has a line for the first ones.
    duplicates: results of videos that had another one.
    strangers: videos that the archive does not have, left out.
    """

    output: str
    parts: int
    shards: int
    videos: int = 0
    proposals: int = 0
    failed: int = 0
    missing: int = 0
    duplicates: int = 0
    strangers: int = 0
    unfinished: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every video of the archive has a result."""
        return not (self.failed or self.missing)

    def summary(self) -> str:
        """One line: output file and counts."""
        text = f"{self.output}: {count(self.videos, 'video')}, {count(self.proposals, 'proposal')} from "
        text += f"{count(self.parts, 'part')} of {count(self.shards, 'shard')}"
        for number, what in (
            (self.failed, "failed"),
            (self.missing, "missing"),
            (self.duplicates, "duplicates removed"),
            (self.strangers, "left out, not in the archive"),
        ):
            text += f"; {number} {what}" if number else ""
        return text


def merge(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    videos: Iterable[str] | None = None,
    unfinished: str | os.PathLike | None = None,
) -> MergeReport:
    """Write one submission JSON, or one Parquet file, with every video of the parts in `folder`, sorted by id.

    The JSON has the bytes of a single run over the archive. A video with several results keeps one: that of the last
    attempt, and within it a success rather than a failure.

    videos: the ids of the archive, sorted. None: only their number is known, from the parts.
    unfinished: file of JSON lines for each video without a result: id, status, error.

    InputError: there are no parts, they are of different runs, one is damaged, or a file cannot be written.
    """
    parts: list[Part] = []
    for path in parts_in(folder):
        parts.append(Part(path))
        parts[-1].require_run(parts[0].header)
        parts[-1].header = dataclasses.replace(parts[-1].header, settings=parts[0].header.settings)  # in memory once
    if not parts:
        raise InputError(f"{folder} has no part, expected a folder of parts that `infer --shard` wrote")
    about = parts[0].header
    report = MergeReport(str(place_of(output)), len(parts), len({(part.shard, part.shards) for part in parts}))
    with contextlib.ExitStack() as stack:
        listing = stack.enter_context(atomic_text(unfinished)) if unfinished else None
        found = _against(_kept(parts, report), videos, report, listing)
        write = _write_parquet if place_of(output).suffix == SUFFIX else _write_json
        write(output, _counted(found, report), about)
        if videos is None:
            expected = max(part.header.videos_in_archive for part in parts)
            report.missing = max(0, expected - report.videos - report.failed)
    return report


def _kept(parts: list[Part], report: MergeReport) -> Iterator[Stored]:
    """One result of each video, by id."""
    by_id: Callable[[Stored], str] = lambda stored: stored.record.video  # noqa: E731
    streams = [itertools.chain.from_iterable(part.videos() for part in run) for run in _in_rows(parts)]
    for _, same in itertools.groupby(heapq.merge(*streams, key=by_id), by_id):
        results = list(same)
        best = max(results, key=lambda stored: stored.record.order())
        report.duplicates += max(0, sum(stored.record.status == DONE for stored in results) - 1)
        yield best


def _in_rows(parts: list[Part]) -> list[list[Part]]:
    """Arrange parts in the fewest rows that are sorted by id from one part to the next."""
    rows: list[tuple[str, int, list[Part]]] = []  # last id, number of the row, parts
    for part in sorted(parts, key=lambda part: part.header.first):
        if rows and rows[0][0] < part.header.first:
            _, number, row = heapq.heappop(rows)
        else:
            number, row = len(rows), []
        row.append(part)
        heapq.heappush(rows, (part.header.last, number, row))
    return [row for _, _, row in rows]


def _against(
    found: Iterator[Stored], videos: Iterable[str] | None, report: MergeReport, listing: TextIO | None
) -> Iterator[Stored]:
    """Yield videos with a result; report the others, and ids of the archive that no part has."""

    def unfinished(video: str, status: str, error: str | None) -> None:
        if len(report.unfinished) < _LISTED:
            report.unfinished.append(f"{status}: {video}" + (f": {error}" if error else ""))
        if listing is not None:
            listing.write(json.dumps({"video": video, "status": status, "error": error}) + "\n")

    def missing(video: str) -> None:
        report.missing += 1
        unfinished(video, "missing", None)

    wanted = _ascending(videos, "videos") if videos is not None else None
    expected = next(wanted, None) if wanted else None
    for stored in found:
        video = stored.record.video
        if wanted is not None:
            while expected is not None and expected < video:
                missing(expected)
                expected = next(wanted, None)
            if expected != video:
                report.strangers += 1
                continue
            expected = next(wanted, None)
        if stored.record.status == DONE:
            yield stored
        else:
            report.failed += 1
            unfinished(video, "failed", stored.record.error)
    while wanted is not None and expected is not None:
        missing(expected)
        expected = next(wanted, None)


def _ascending(videos: Iterable[str], where: str) -> Iterator[str]:
    last = None
    for video in videos:
        if last is not None and video <= last:
            raise InputError(
                f"{where}: the id {brief(video)} follows {brief(last)}, "
                "expected sorted ids (LC_ALL=C sort -u), each once"
            )
        last = video
        yield video


def _counted(found: Iterator[Stored], report: MergeReport) -> Iterator[Stored]:
    for stored in found:
        report.videos += 1
        report.proposals += stored.record.proposals
        yield stored


def _write_json(output: str | os.PathLike, found: Iterator[Stored], about: Header) -> None:
    results = ((stored.record.video, stored.found.json()) for stored in found)
    with atomic_text(output) as file:
        write_submission(file, results, about.version, about.details, about.settings)


def _write_parquet(output: str | os.PathLike, found: Iterator[Stored], about: Header) -> None:
    said = {"version": about.version, "details": about.details, "settings": about.settings}
    with atomic_path(output) as temporary, parquet_writer(temporary, {META: json.dumps(said)}) as file:
        held: list[tuple[str, Columns]] = []
        rows = 0
        for stored in found:
            columns = stored.found.columns()
            if problem := not_utf8(stored.record.video, columns.labels):
                raise InputError(f"{output}: {problem}, which Parquet requires; merge to a .json file")
            held.append((stored.record.video, columns))
            rows += stored.record.proposals
            if rows >= _GROUP_ROWS:
                file.write_table(parquet_table(held))
                held, rows = [], 0
        file.write_table(parquet_table(held))


def read_ids(path: str | os.PathLike) -> Iterator[str]:
    """The lines of a UTF-8 file, one id each. InputError: it cannot be read, or its lines are not sorted."""
    return _ascending(_lines_of(path), str(path))


def _lines_of(path: str | os.PathLike) -> Iterator[str]:
    expected = "sorted ids, one a line"
    try:
        with open(require_file(path, expected), encoding="utf-8") as file:
            while line := file.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE:
                    raise InputError(f"{path} has a line of {_LONGEST_LINE} characters or more, expected {expected}")
                if name := line.rstrip("\r\n"):
                    yield name
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{path} cannot be read ({reason}), expected {expected}") from error
