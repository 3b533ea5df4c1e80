"""Write the share of one run among several: parts of bounded size, each absent or whole, whatever is killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..storage.address import Address, Place, place_of
from ..storage.lock import Lock
from ..storage.optional import require_pyarrow
from ..storage.output import atomic_path, move_into_place, require_storable
from ..storage.remote import remove
from .parquet import SUFFIX, Columns, not_utf8
from .parts import DONE, FAILED, Header, Part, Record, numbers_of, parts_in, write_part

_RUNS, _MOST_PARTS = 10**12, 10**6  # at an address: number of the first part of a run, a random one
_MAX_ROWS = 200_000  # rows of a part, which bounds their memory
_MAX_AGE_S = 60.0  # longest time that a video is not on disk


class PartWriter:
    """Collects the videos of one shard, and commits them as parts.

    folder: folder of the parts of all shards, created if missing; or an address. Addresses have no locks: there, the
        parts of a run have names of their own, so that two runs of a shard repeat work but lose nothing.
    shard, shards: number of the shard, and of all shards.
    about: facts about the run, for the headers of its parts.
    source: returns size and modification time in ns of a video's feature files; None if the archive or the shard lacks
        the video.
    part_format: "jsonl" or "parquet".
    part_videos: most videos of a part.
    resume: take over the videos in parts of this shard, and in parts of runs with another number of shards.
    overwrite: delete the parts of this shard.
    retry_failed: with `resume`, do failed videos again.

    done, failed: the videos of this shard that need no work, with their numbers of proposals or their errors.
    changed: number of videos that are done again because their feature files have changed.

    InputError: the folder cannot be written, another run holds the shard, parts are damaged or of other settings, or
    there are parts and neither `resume` nor `overwrite` is true.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        shard: int,
        shards: int,
        about: Header,
        source: Callable[[str], list[list[int]] | None],
        *,
        part_format: str = "jsonl",
        part_videos: int = 1000,
        resume: bool = False,
        overwrite: bool = False,
        retry_failed: bool = False,
    ) -> None:
        if part_format == SUFFIX.lstrip("."):
            require_pyarrow()
        self.folder, self.shard, self.shards = place_of(folder), shard, shards
        self.about, self._source = about, source
        self._suffix, self._limit = f".{part_format}", part_videos
        self._name = f"part-{shard:03d}-of-{shards:03d}"
        self.done: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self.changed = 0
        self._attempts: dict[str, int] = {}  # of videos that are done again
        self._held: list[tuple[Record, Columns]] = []
        self._rows, self._since, self._next = 0, 0.0, 0
        self._lock = self._made_and_locked(self.folder)
        try:
            self._take_up(*self._own_and_others(), resume, overwrite, retry_failed)
        except BaseException:
            self.close()
            raise

    def _made_and_locked(self, folder: Place) -> Lock | None:
        if isinstance(folder, Address):
            require_storable(folder / "part")
            return None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = Lock(folder / f".{self._name}.lock", f"{folder}: shard {self.shard}/{self.shards}")
            # Leftovers of killed runs of this shard, on any machine: this run holds its lock.
            for path in folder.glob(f".{self._name}-*.tmp"):
                path.unlink()
        except OSError as error:
            raise self._unwritable(error) from error
        return lock

    def _own_and_others(self) -> tuple[list[Place], list[Place]]:
        """Parts of this shard, and of runs with another number of shards, by their names: the rest is not opened."""
        own: list[Place] = []
        others: list[Place] = []
        for path in parts_in(self.folder):
            shard, shards, _ = numbers_of(path)
            if shards != self.shards:
                others.append(path)
            elif shard == self.shard:
                own.append(path)
        return own, others

    def _take_up(
        self, own: list[Place], others: list[Place], resume: bool, overwrite: bool, retry_failed: bool
    ) -> None:
        if overwrite and others:
            raise InputError(
                f"{self.folder} has parts of another number of shards, such as {others[0].name}; delete them"
            )
        if overwrite:
            for path in own:
                remove(path) if isinstance(path, Address) else path.unlink()
            own = []
        if (own or others) and not resume:
            raise InputError(
                f"{self.folder} has parts such as {(own + others)[0].name}; "
                "continue with --resume, or replace them with --overwrite"
            )
        if isinstance(self.folder, Address):
            self._next = secrets.randbelow(_RUNS) * _MOST_PARTS
        else:
            self._next = 1 + max((numbers_of(path)[2] for path in own), default=-1)
        best: dict[str, tuple[tuple[int, bool], bool]] = {}  # sort key of its record, whether files have changed
        for path in own + others:
            part = Part(path)
            part.require_run(self.about)
            for record in part.records():
                source, order = self._source(record.video), record.order()
                if source is None or (record.video in best and best[record.video][0] >= order):
                    continue
                best[record.video] = order, record.source != source
                self.done.pop(record.video, None)
                self.failed.pop(record.video, None)
                if record.status == DONE:
                    self.done[record.video] = record.proposals
                else:
                    self.failed[record.video] = record.error or ""
        for video, (order, changed) in best.items():
            if changed or (retry_failed and video in self.failed):
                self.changed += changed
                self.done.pop(video, None)
                self.failed.pop(video, None)
                self._attempts[video] = order[0]

    def add(
        self,
        video: str,
        windows: int,
        segments: np.ndarray,
        scores: np.ndarray,
        labels: Sequence[str] | np.ndarray | None,
    ) -> None:
        """Take over the proposals of a video: segments [n, 2] in seconds, scores [n], labels n or None.

        InputError: a part is full and cannot be written.
        """
        reason = self._unfit(video, labels)
        if reason:
            self.fail(video, reason)
            return
        self.done[video] = len(scores)
        self._hold(video, DONE, None, windows, Columns(segments, scores, labels))

    def fail(self, video: str, reason: str) -> None:
        """Take note of a video that could not be used."""
        self.failed[video] = reason
        self._hold(video, FAILED, reason, 0, Columns(np.empty((0, 2)), np.empty(0)))

    def _unfit(self, video: str, labels: Sequence[str] | np.ndarray | None) -> str | None:
        """The reason why names cannot be stored: Parquet requires UTF-8, file names do not. None if they can."""
        problem = not_utf8(video, labels) if self._suffix == SUFFIX else None
        return problem and f"{problem}, which Parquet requires; use --part-format jsonl"

    def _hold(self, video: str, status: str, error: str | None, windows: int, columns: Columns) -> None:
        rows, source = len(columns.scores), self._source(video)
        attempt = 1 + self._attempts.pop(video, 0)
        fingerprint = self.about.fingerprint
        record = Record(video, status, error, windows, rows, attempt, source or [], fingerprint)
        self._since = self._since if self._held else time.monotonic()
        self._held.append((record, columns))
        self._rows += rows
        late = time.monotonic() - self._since >= _MAX_AGE_S
        if late or len(self._held) >= self._limit or self._rows >= _MAX_ROWS:
            self.commit()

    def commit(self) -> None:
        """Write the held videos as a part. InputError: it cannot be written; then no part is left."""
        if not self._held:
            return
        target = self.folder / f"{self._name}-{self._next:04d}{self._suffix}"
        try:
            if isinstance(target, Address):
                with atomic_path(target) as temporary:
                    write_part(temporary, self.about, self._held, self._suffix)
            else:
                self._write(target)
        except OSError as error:
            raise self._unwritable(error) from error
        self._next += 1
        self._held, self._rows = [], 0

    def _write(self, target: Path) -> None:
        temporary = target.with_name(f".{self._name}-{secrets.token_hex(8)}.tmp")
        try:
            write_part(temporary, self.about, self._held, self._suffix)
            move_into_place(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.folder} cannot be written: {error.strerror or error}")

    def close(self) -> None:
        """Release the shard for other runs. Uncommitted results are lost."""
        if self._lock is not None:
            self._lock.release(remove=True)
