"""Writing proposals as they come, so that an interrupted run resumes and memory does not grow with the archive.

While a run goes on, `<output>.partial` holds the run's settings and then one JSON line for each finished video. The
submission file itself appears whole, at the end, with its videos in the order of their ids.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import atomic_text, require_writable


def entries(segments: np.ndarray, scores: np.ndarray, labels: list[str] | None = None) -> list[dict[str, Any]]:
    """Proposals of a video as a submission lists them: segments [n, 2] in seconds, scores [n], at full precision."""
    rows = [{"score": s, "segment": segment} for s, segment in zip(scores.tolist(), segments.tolist(), strict=True)]
    if labels is not None:
        rows = [{"label": label, **row} for label, row in zip(labels, rows, strict=True)]
    return rows


class ResultWriter:
    """Collects the proposals of many videos on disk; `finish` makes the submission JSON of them.

    settings: what decides the results; a partial file of other settings is not resumed (InputError).
    done: the ids that the partial file already has, with resume.
    """

    def __init__(self, output: str | os.PathLike, settings: dict[str, Any], *, resume: bool = False) -> None:
        settings = json.loads(json.dumps(settings))  # as they come back from the file: lists for tuples
        self.output = require_writable(output)
        self.partial = self.output.with_name(self.output.name + ".partial")
        self.done: dict[str, int] = {}  # video -> byte at which its line begins
        try:
            resumed = resume and self.partial.exists()
            self._file = open(self.partial, "r+b" if resumed else "w+b")
            if resumed:
                self._read(settings)
            else:
                self._append({"settings": settings})
        except OSError as error:
            raise self._failed(error) from error

    def _read(self, settings: dict[str, Any]) -> None:
        end = 0
        for line in self._file:
            # A line that the interruption cut short is dropped; its video is done again.
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            if end == 0:
                self._require_same(record.get("settings"), settings)
            else:
                self.done[record["video"]] = end
            end += len(line)
        self._file.seek(end)
        self._file.truncate()
        if end == 0:
            self._append({"settings": settings})

    def _require_same(self, found: Any, expected: dict[str, Any]) -> None:
        if found != expected:
            found = found if isinstance(found, dict) else {}
            names = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
            raise InputError(
                f"{self.partial}: expected an interrupted run with the same settings, "
                f"found others for {', '.join(names)}; run without --resume to start again"
            )

    def add(self, video: str, proposals: list[dict[str, Any]]) -> None:
        """Store the proposals of one video; they survive if the process dies right after."""
        self.done[video] = self._file.tell()
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
        self._file.close()
        self.partial.unlink()
        return count

    def close(self, *, discard: bool = False) -> None:
        """Close the partial file; kept for a later --resume unless `discard`."""
        self._file.close()
        if discard:
            self.partial.unlink(missing_ok=True)


def write_subtitles(path: str | os.PathLike, proposals: list[dict[str, Any]]) -> None:
    """Write proposals as SubRip (.srt) subtitles in order of time, each with its rank, confidence and label."""
    ranked = sorted(enumerate(proposals, 1), key=lambda item: item[1]["segment"])
    with atomic_text(Path(path)) as file:
        for number, (rank, proposal) in enumerate(ranked, 1):
            start, end = (_clock(second) for second in proposal["segment"])
            text = " ".join(filter(None, (f"#{rank}", proposal.get("label"), f"{proposal['score']:.3f}")))
            file.write(f"{number}\n{start} --> {end}\n{text}\n\n")


def _clock(seconds: float) -> str:
    """Seconds as SubRip writes them, hh:mm:ss,mmm."""
    milliseconds = max(round(seconds * 1000), 0)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d},{milliseconds % 1000:03d}"
