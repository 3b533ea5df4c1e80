"""Write proposals video by video, so that a run can be resumed and memory does not grow with the archive.

During a run, `<output>.partial` contains the settings and then one line per finished video: a checksum and JSON. The
submission file is written at the end, atomically, with its videos sorted by id.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import InputError
from ..storage.address import Address, Place
from ..storage.files import read_json
from ..storage.lock import Lock, open_own
from ..storage.output import atomic_text, require_storable, require_writable
from ..storage.remote import exists, facts_of
from ..text import count

_ENTRY = ("score", "segment", "label")  # keys of a proposal
_LONGEST_LINE = 1 << 28  # bytes of a video in the partial file


def entries(
    segments: np.ndarray, scores: np.ndarray, labels: Sequence[str] | np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Turn columns into the entries of a submission, at full precision.

    segments: [n, 2], seconds.
    scores: [n].
    labels: n names of classes, for detections.
    """
    for name, column in (("scores", scores), ("labels", labels)):
        if column is not None and len(column) != len(segments):
            raise ValueError(f"{name} has length {len(column)}, expected {len(segments)} as segments")
    rows = zip(scores.tolist(), segments.tolist(), strict=True)
    if labels is None:
        return [{"score": score, "segment": segment} for score, segment in rows]
    return [
        {"score": score, "segment": segment, "label": label}
        for (score, segment), label in zip(rows, labels, strict=True)
    ]


def write_submission(
    file: TextIO, results: Iterable[tuple[str, str]], version: str, details: str, settings: dict[str, Any]
) -> None:
    """Write a submission JSON as its videos arrive.

    results: ids, and their proposals as JSON; sorted by id.
    version, details, settings: what the file says about itself and the run.
    """
    file.write(f'{{"version": {json.dumps(version)}, "results": {{')
    for position, (video, proposals) in enumerate(results):
        file.write(f"{',' if position else ''}\n{json.dumps(video)}: {proposals}")
    external_data = {"used": True, "details": details, "settings": settings}
    file.write(f'\n}}, "external_data": {json.dumps(external_data)}}}\n')


class ResultWriter:
    """Collects the proposals of many videos on disk; `finish` writes the submission JSON.

    settings: everything that determines the results, except the features.
    sources: for each video, [size, time of the last change in ns] of its feature files. A finished video whose files
        differ is not taken over, but counted by `changed`; `damaged` is the number of lines that are not taken over.
    output: file or address. The partial file of an address is on this machine.
    resume: take over the finished videos of a partial file or, without one, of an existing submission, with the same
        settings; `done` lists them, and `finished` is the number of proposals of that submission.
    overwrite: discard the partial file of an interrupted run.

    InputError: partial file or submission have other settings or another format; the partial file is in use by another
    run, or has finished videos while neither `resume` nor `overwrite` is true.
    """

    def __init__(
        self,
        output: str | os.PathLike,
        settings: dict[str, Any],
        *,
        sources: Mapping[str, Sequence[Sequence[int]]] | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        settings = json.loads(json.dumps(settings))  # as read from the file: lists instead of tuples
        self.output = require_storable(output)
        self.partial = partial_of(self.output)
        self.settings = settings
        self.sources: dict[str, Any] = json.loads(json.dumps(dict(sources or {})))
        self.damaged = self.changed = 0
        self.done: dict[str, int] = {}  # video -> offset of its line in bytes
        self.finished: int | None = None
        try:
            self._lock = Lock(self.partial)
            self._file = open(self.partial, "a+b", opener=open_own)
        except OSError as error:
            raise self._failed(error) from error
        try:
            if overwrite:
                self._file.truncate(0)
            self._read(resume)
            if not self.done:
                self._begin(resume)
        except OSError as error:
            self.close()
            raise self._failed(error) from error
        except BaseException:
            self.close()
            raise

    def _begin(self, resume: bool) -> None:
        self._file.truncate(0)
        try:
            self._append({"settings": self.settings})
            if resume and exists(self.output):
                self._take_over()
        except BaseException:
            self.partial.unlink()
            raise

    def _read(self, resume: bool) -> None:
        self._file.seek(0)
        end, found = 0, dict[str, Any]()
        while line := self._file.readline(_LONGEST_LINE):
            # An incomplete line is dropped, and its video is processed again.
            if not line.endswith(b"\n"):
                break
            record = _record(line)
            if end == 0:
                if record is None or not isinstance(record.get("settings"), dict):
                    raise InputError(
                        f"{self.partial} is not the partial result of an interrupted run, "
                        "or its first line is damaged; delete it"
                    )
                found = record["settings"]
            elif record is None or not (isinstance(record.get("video"), str) and _are_entries(record.get("proposals"))):
                self.damaged += 1
            elif record.get("source") != self.sources.get(record["video"], record.get("source")):
                self.changed += 1
                self.done.pop(record["video"], None)
            else:
                self.done[record["video"]] = end
            end += len(line)
        finished = len(self.done) + self.changed + self.damaged
        if finished and not resume:
            raise InputError(
                f"{self.partial} has {count(finished, 'finished video')} of an interrupted run; "
                "continue with --resume, or start again with --overwrite"
            )
        if finished:
            self._require_equal(found, self.partial)
        self._file.truncate(end)

    def _require_equal(self, found: dict[str, Any], path: Place) -> None:
        settings = self.settings
        if found != settings:
            names = sorted(name for name in found.keys() | settings if found.get(name) != settings.get(name))
            raise InputError(
                f"{path} is from a run with other values of {', '.join(names)}; "
                "resume with the same settings, or start again with --overwrite"
            )

    def _take_over(self) -> None:
        """Copy the videos of the finished submission to the partial file."""
        content = read_json(self.output, "a submission of an earlier run")
        try:
            found, results = content["external_data"]["settings"], content["results"]
            if not isinstance(found, dict) or not isinstance(results, dict):
                raise TypeError
        except (TypeError, KeyError) as error:
            raise InputError(
                f"{self.output} does not say with which settings it was made, so it cannot be resumed; "
                "start again with --overwrite"
            ) from error
        self._require_equal(found, self.output)
        self.finished, written = 0, (facts_of(self.output) or (0, 0))[1]
        for video, proposals in results.items():
            if not _are_entries(proposals):
                raise InputError(f"{self.output} has other entries for video {video!r}, expected score and segment")
            if any(changed > written for _, changed in self.sources.get(video, ())):
                self.changed += 1
                continue
            # Other keys may hold what JSON does not have.
            known = [{key: value for key, value in one.items() if key in _ENTRY} for one in proposals]
            self._add(video, known)
            self.finished += len(proposals)

    def add(
        self, video: str, segments: np.ndarray, scores: np.ndarray, labels: Sequence[str] | np.ndarray | None = None
    ) -> None:
        """Store the proposals of one video; they survive even if the process is killed.

        segments: [n, 2], seconds.
        scores: [n].
        labels: n names of classes, for detections.
        """
        self._add(video, entries(segments, scores, labels))

    def _add(self, video: str, proposals: list[dict[str, Any]]) -> None:
        place = self._file.seek(0, os.SEEK_END)
        source = {"source": self.sources[video]} if video in self.sources else {}
        self._append({"video": video, **source, "proposals": proposals})
        self.done[video] = place

    def _append(self, record: dict[str, Any]) -> None:
        text = json.dumps(record, allow_nan=False).encode()
        try:
            self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> InputError:
        return InputError(f"{self.partial} cannot be written: {error.strerror or error}")

    def finish(self, version: str, details: str) -> int:
        """Write the submission, remove the partial file and return the number of proposals."""
        total = 0

        def results() -> Iterator[tuple[str, str]]:
            nonlocal total
            for video in sorted(self.done):
                self._file.seek(self.done[video])
                record = _record(self._file.readline())
                if record is None:
                    raise InputError(f"{self.partial} was changed during the run; start again with --resume")
                total += len(record["proposals"])
                yield video, json.dumps(record["proposals"])

        with atomic_text(self.output) as file:
            write_submission(file, results(), version, details, self.settings)
        self.close(discard=True)
        return total

    def close(self, *, discard: bool = False) -> None:
        """Close the partial file, and delete it if `discard`; otherwise it can be resumed.

        InputError: what was left to write cannot be written.
        """
        try:
            self._file.close()  # which writes what a failed write has left
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._lock.release(remove=discard)


def partial_of(output: Place) -> Path:
    """The partial file: beside the output, or for an address in a folder of this user on this machine."""
    if not isinstance(output, Address):
        return output.with_name(output.name + ".partial")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bcnet_fast"
    name = hashlib.sha256(str(output).encode()).hexdigest()[:16]
    return require_writable(cache / f"{name}.json.partial")


def _record(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None if it is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        return None
    return record if isinstance(record, dict) else None


def _are_entries(value: Any) -> bool:
    """Whether a value has the types of `entries`."""
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and _is_finite(entry.get("score"))
        and isinstance(segment := entry.get("segment"), list)
        and len(segment) == 2
        and all(map(_is_finite, segment))
        and isinstance(entry.get("label", ""), str)
        for entry in value
    )


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that JSON and a double can hold."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
