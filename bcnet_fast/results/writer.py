"""Writing proposals as they come, so that an interrupted run resumes and memory does not grow with the archive.

While a run goes on, `<output>.partial` holds the run's settings and then one JSON line for each finished video. The
submission file itself appears whole, at the end, with its videos in the order of their ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError
from ..storage.files import atomic_text, require_writable

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


def entries(segments: np.ndarray, scores: np.ndarray, labels: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Proposals of a video as a submission lists them, at full precision.

    segments: [n, 2], seconds.
    scores: [n].
    labels: n names of classes, for detections.
    """
    for name, column in (("scores", scores), ("labels", labels)):
        if column is not None and len(column) != len(segments):
            raise ValueError(f"found {len(column)} {name}, expected {len(segments)}, one for each segment")
    rows = zip(scores.tolist(), segments.tolist(), strict=True)
    if labels is None:
        return [{"score": score, "segment": segment} for score, segment in rows]
    return [
        {"score": score, "segment": segment, "label": label}
        for (score, segment), label in zip(rows, labels, strict=True)
    ]


class ResultWriter:
    """Collects the proposals of many videos on disk; `finish` makes the submission JSON of them.

    settings: what decides the results. With `resume`, the finished videos of a partial file of the same settings are
    taken over into `done`; InputError when the settings differ, when the partial file is none, when it holds finished
    videos and `resume` was not asked for, or when another run is writing it.
    """

    def __init__(self, output: str | os.PathLike, settings: dict[str, Any], *, resume: bool = False) -> None:
        settings = json.loads(json.dumps(settings))  # as they come back from the file: lists for tuples
        self.output = require_writable(output)
        self.partial = self.output.with_name(self.output.name + ".partial")
        self.done: dict[str, int] = {}  # video -> byte at which its line begins
        try:
            self._file = open(self.partial, "a+b")
        except OSError as error:
            raise self._failed(error) from error
        try:
            _lock(self._file, self.partial)
            self._read(settings, resume)
            if not self.done:
                self._file.truncate(0)
                self._append({"settings": settings})
        except BaseException:
            self.close()
            raise

    def _read(self, settings: dict[str, Any], resume: bool) -> None:
        self._file.seek(0)
        end, found = 0, None
        for line in self._file:
            # A line that the interruption cut short is dropped; its video is done again.
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                if end == 0:
                    found = dict(record["settings"])
                else:
                    self.done[record["video"]] = end
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"{self.partial}: expected the finished videos of an interrupted run, found other lines; delete it"
                ) from error
            end += len(line)
        if self.done and not resume:
            raise InputError(
                f"{self.partial}: holds {len(self.done)} finished videos of an interrupted run; "
                "go on with --resume, or delete it to start again"
            )
        if self.done and found != settings:
            names = sorted(name for name in found.keys() | settings if found.get(name) != settings.get(name))
            raise InputError(
                f"{self.partial}: expected an interrupted run with the same settings, "
                f"found others for {', '.join(names)}; delete it to start again"
            )
        self._file.truncate(end)

    def add(self, video: str, segments: np.ndarray, scores: np.ndarray, labels: Sequence[str] | None = None) -> None:
        """Store the proposals of one video in the given order; they survive if the process dies right after.

        segments: [n, 2], seconds.
        scores: [n].
        labels: n names of classes, for detections.
        """
        proposals = entries(segments, scores, labels)
        self.done[video] = self._file.seek(0, os.SEEK_END)
        self._append({"video": video, "proposals": proposals})

    def _append(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> InputError:
        return InputError(f"{self.partial}: could not be written: {error.strerror or error}")

    def finish(self, version: str, details: str) -> int:
        """Write the submission, remove the partial file; returns the number of proposals."""
        count = 0
        with atomic_text(self.output) as file:
            file.write(f'{{"version": {json.dumps(version)}, "results": {{')
            for position, video in enumerate(sorted(self.done)):
                self._file.seek(self.done[video])
                proposals = json.loads(self._file.readline())["proposals"]
                count += len(proposals)
                file.write(f"{',' if position else ''}\n{json.dumps(video)}: {json.dumps(proposals)}")
            file.write(f'\n}}, "external_data": {json.dumps({"used": True, "details": details})}}}\n')
        self.close(discard=True)
        return count

    def close(self, *, discard: bool = False) -> None:
        """Close the partial file; kept for a later --resume unless `discard`."""
        if discard:
            self.partial.unlink(missing_ok=True)
        self._file.close()


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep the file for this process, until it is closed. InputError when another one has it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path}: expected to write it alone, found another run at work on it") from error
