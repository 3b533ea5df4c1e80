"""A worker process of `infer --ray`: loads the network once, then does one shard after another."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import __version__
from ..data.shard import Shard
from ..errors import BackendError, InputError
from ..results.parts import Header
from ..storage.address import is_address
from ..storage.lock import InUse
from .options import InferOptions
from .run import InferReport, Inputs, Prepared, open_inputs, with_network
from .shards import ShardRun, about_run

_LOCK_PATIENCE_S = 120.0  # a process that is lost may hold its shard until its machine ends it


class _Stopped(KeyboardInterrupt):
    """The driver asks for an end; what is finished is committed."""


@dataclass(frozen=True)
class Outcome:
    """Result of a call. An error is text, because Ray would wrap an exception.

    report: report of a shard, also of a stopped one.
    left: ids without a result.
    notes: lines that were printed.
    """

    report: InferReport | None = None
    left: Sequence[str] = ()
    changed: int = 0
    notes: Sequence[str] = ()
    error: str | None = None


@dataclass(frozen=True)
class Job:
    """Arguments that all workers of a run share.

    options: `workers` is 0, and `resume` is true after the first parts.
    inputs: those that the driver opened; None: each worker opens them.
    about: facts about the run, for the headers of its parts.
    marker: name of a file that the driver made in the folder of the parts.
    """

    options: InferOptions
    inputs: Inputs | None
    about: Header
    folder: str
    marker: str
    version: str = __version__


class Worker:
    """An actor. It has two threads: one works, the other answers `done` and `stop` meanwhile."""

    def __init__(self, job: Job) -> None:
        self._job, self._options = job, job.options
        self._prepared: Prepared | None = None
        self._done, self._stopped = 0, False

    def ready(self) -> Outcome:
        """Check that this machine has the same files and package as the driver's, then load the network."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                self._require_same_files()
                self._set_threads()
                inputs = self._job.inputs or open_inputs(self._options)
                self._prepared = with_network(self._options, inputs)
                self._require_same_run(self._prepared)
        except (InputError, BackendError, OSError, MemoryError) as error:
            return Outcome(error=_text(error))
        return Outcome(notes=said.getvalue().splitlines())

    def run(self, shard: Shard) -> Outcome:
        """Do what is left of a shard."""
        return self._do(shard, lambda run: run.left)

    def run_one(self, shard: Shard, video: str) -> Outcome:
        """Do one video of a shard, as a part of its own."""
        return self._do(shard, lambda run: [name for name in run.left if name == video])

    def left(self, shard: Shard) -> Outcome:
        """The videos of a shard that have no result."""
        return self._do(shard, lambda run: [])

    def give_up(self, shard: Shard, video: str, reason: str) -> Outcome:
        """Record a video as failed."""

        def record(run: ShardRun) -> Sequence[str]:
            if video in run.left:
                run.writer.fail(video, reason)
            return []

        return self._do(shard, record)

    def done(self) -> int:
        """Videos of the shard that is worked on, so far."""
        return self._done

    def stop(self) -> None:
        """Make `run` commit its results and end after the current video."""
        self._stopped = True

    def _do(self, shard: Shard, choose) -> Outcome:
        assert self._prepared is not None
        started = time.perf_counter()
        self._set_threads()
        try:
            with contextlib.closing(self._open(shard)) as run:
                self._done = len(run.writer.done) + len(run.writer.failed)
                with contextlib.suppress(_Stopped):
                    self._end_if_stopped()
                    run.predict(choose(run))
                run.writer.commit()
                kept = run.writer.done.keys() | run.writer.failed.keys()
                left = [video for video in run.left if video not in kept]
                return Outcome(run.report(started), left, run.writer.changed)
        except (InputError, BackendError, OSError, MemoryError) as error:
            return Outcome(error=_text(error))
        finally:
            self._done = 0

    def _open(self, shard: Shard) -> ShardRun:
        """Lock a shard; a lost worker may still hold it for a moment."""
        assert self._prepared is not None
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                return ShardRun(self._options, self._prepared, shard, self._job.about, self._each)
            except InUse:
                if time.monotonic() > deadline or self._stopped:
                    raise
                time.sleep(0.5)

    def _each(self) -> None:
        self._done += 1
        self._end_if_stopped()

    def _end_if_stopped(self) -> None:
        if self._stopped:
            raise _Stopped

    def _set_threads(self) -> None:
        torch.set_num_threads(self._options.cpus_per_worker)  # applies to this thread and those that it starts

    def _require_same_files(self) -> None:
        """InputError: this machine lacks a path, or has another package."""
        if self._job.version != __version__:
            raise InputError(
                f"{_here()} has bcnet_fast {__version__}, expected {self._job.version} as where infer --ray was started"
            )
        with contextlib.suppress(OSError):  # the driver's folder, for relative paths
            os.chdir(self._job.folder)
        output = self._options.output
        if not (is_address(output) or Path(output, self._job.marker).exists()):
            raise InputError(f"{_here()} does not see the folder {output} that {_SHARED}")
        for path in _paths(self._options):
            if not (is_address(path) or os.path.exists(path)):
                raise InputError(f"{_here()} does not see {path}, which {_SHARED}")

    def _require_same_run(self, inputs: Inputs) -> None:
        found, expected = about_run(self._options, inputs), self._job.about
        if found.fingerprint != expected.fingerprint:
            names = found.settings.keys() | expected.settings
            other = sorted(name for name in names if found.settings.get(name) != expected.settings.get(name))
            raise InputError(f"{_here()} has other values of {', '.join(other)}, {_SHARED}")


_SHARED = "infer --ray was started with, expected storage that all machines have under the same path"


def _paths(options: InferOptions) -> Iterator[str]:
    """Local files and folders that a worker reads."""
    stated = [options.checkpoint, options.time.times, options.labels, *(options.videos or [options.features])]
    yield from (path for path in stated if path is not None and "://" not in path)


def _here() -> str:
    return f"the Ray worker on {socket.gethostname()}"


def _text(error: Exception) -> str:
    return str(error) or "out of memory"
