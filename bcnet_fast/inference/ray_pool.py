"""The driver of `infer --ray`: gives shards to workers, and replaces those that end."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.shard import Shard
from ..errors import InputError
from .predict import Failure
from .ray_worker import Job, Outcome, Worker
from .run import InferReport

_TICK_S = 1.0  # longest wait for an answer
_LOOK_S = 2.0  # between two looks at the progress inside shards
_STOP_S = 30.0  # time for workers to finish a video and commit
_SLOW_START_S = 60.0  # after which a user wants to know why nothing happens
_CAREFUL = 2  # worker deaths on a shard, after which its videos are done one by one
_TWICE = 2  # worker deaths on a single video, after which it has failed
_FAILED_STARTS = 10  # in a row


@dataclass
class _Work:
    """A shard, and the number of workers that died before it was done.

    videos: those left, once the shard is done video by video. killed: number of workers that each of them ended.
    """

    shard: Shard
    deaths: int = 0
    videos: deque[str] | None = None
    killed: Counter[str] = field(default_factory=Counter)


@dataclass
class _Slot:
    """The slot of a worker. call: its pending call; None: it is idle. step: name of that call."""

    actor: Any = None
    call: Any = None
    step: str = ""
    work: _Work | None = None
    look: Any = None  # a pending request for its progress
    done: int = 0


class Pool:
    """Workers on a cluster, each of which loads the network when it starts.

    ray: the module, connected.
    """

    def __init__(self, ray: Any, job: Job, workers: int) -> None:
        options = job.options
        self._ray = ray
        # Named by this package, so that workers of every machine import it instead of unpickling its code.
        self._worker = ray.remote(
            num_cpus=options.cpus_per_worker, num_gpus=options.gpus_per_worker, max_concurrency=2, max_restarts=0
        )(Worker)
        self._job = ray.put(job)
        self._slots = [_Slot() for _ in range(workers)]
        self._waiting: deque[_Work] = deque()
        self._notes: dict[str, None] = {}
        self._failed_starts, self._ever_ready = 0, False
        self._looked = self._began = time.monotonic()
        self.reports: dict[int, InferReport] = {}  # by shard
        self.changed = 0
        self._finished = 0
        for slot in self._slots:
            self._start(slot)

    @property
    def finished(self) -> int:
        """Videos with a result, as far as is known."""
        return self._finished + sum(slot.done for slot in self._slots)

    def wait(self, workers: int = 1) -> None:
        """Wait until this many workers are ready. InputError: a worker cannot start."""
        while sum(slot.call is None for slot in self._slots) < workers:
            self._handle_answers()

    def run(self, shards: Sequence[Shard]) -> Iterator[None]:
        """Do all shards; yields about once a second. InputError: any worker raised it."""
        self._waiting.extend(_Work(shard) for shard in shards)
        while self._waiting or any(slot.work for slot in self._slots):
            for slot in self._slots:
                if slot.call is None and self._waiting:
                    slot.work = self._waiting.popleft()
                    self._next_step(slot)
            self._handle_answers()
            self._look()
            yield

    def stop(self) -> int:
        """Let workers commit what they have, and return the number of videos with a result."""
        busy = [slot for slot in self._slots if slot.work and slot.step != "start"]
        for slot in busy:
            slot.actor.stop.remote()
        calls = [slot.call for slot in busy]
        ended, _ = self._ray.wait(calls, num_returns=len(calls), timeout=_STOP_S) if calls else ([], [])
        for slot in busy:
            if slot.call in ended and isinstance(outcome := self._answer(slot.call), Outcome) and outcome.report:
                slot.done = outcome.report.videos + len(outcome.report.failures)
        return self.finished

    def close(self) -> None:
        """End all workers."""
        for slot in self._slots:
            self._ray.kill(slot.actor)

    def failures(self) -> tuple[Failure, ...]:
        """Failures of all shards, by id."""
        found = [failure for report in self.reports.values() for failure in report.failures]
        return tuple(sorted(found, key=lambda failure: failure.video))

    def _start(self, slot: _Slot) -> None:
        slot.actor = self._worker.remote(self._job)
        slot.call, slot.step, slot.look, slot.done = slot.actor.ready.remote(), "start", None, 0

    def _next_step(self, slot: _Slot) -> None:
        """Call a worker for the next step of its work."""
        work, actor = slot.work, slot.actor
        assert work is not None
        if work.videos is None and work.deaths >= _CAREFUL:
            slot.step, slot.call = "left", actor.left.remote(work.shard)
        elif work.videos:
            video = work.videos[0]
            if work.killed[video] >= _TWICE:
                reason = (
                    f"the process that computed video {video!r} was killed {_TWICE} times, "
                    "probably because memory ran out"
                )
                slot.step, slot.call = "video", actor.give_up.remote(work.shard, video, reason)
            else:
                slot.step, slot.call = "video", actor.run_one.remote(work.shard, video)
        else:
            slot.step, slot.call = "shard", actor.run.remote(work.shard)

    def _handle_answers(self) -> None:
        """Wait a moment for answers of workers, and go on with those."""
        asked = {slot.call: slot for slot in self._slots if slot.call is not None}
        answered, _ = self._ray.wait(list(asked), num_returns=1, timeout=_TICK_S)
        for call in answered:
            slot = asked[call]
            outcome = self._answer(call)
            if isinstance(outcome, Outcome):
                self._go_on(slot, outcome)
            else:
                self._replace(slot, outcome)
        if not self._ever_ready and time.monotonic() - self._began > _SLOW_START_S:
            self._began = float("inf")
            self._say("no worker has started yet: the cluster has no room for it, or its machines are slow")

    def _answer(self, call: Any) -> Outcome | Exception:
        """A worker's answer, or the error with which it ended. A Python error in the worker is raised here."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(call)
        except errors.RayTaskError:
            raise
        except errors.RayError as error:
            return error

    def _go_on(self, slot: _Slot, outcome: Outcome) -> None:
        self._failed_starts = 0
        slot.call, slot.look, slot.done = None, None, 0
        for note in outcome.notes:
            self._say(note)
        if outcome.error is not None:
            slot.work = None
            raise InputError(outcome.error)
        self._ever_ready = True
        work = slot.work
        if work is None:
            return
        if slot.step == "shard":
            assert outcome.report is not None
            self.reports[work.shard.index] = outcome.report
            self._finished += outcome.report.videos + len(outcome.report.failures)
            self.changed += outcome.changed
            slot.work = None
            return
        if slot.step == "left":
            work.videos = deque(outcome.left)
        elif work.videos:
            work.videos.popleft()
        self._next_step(slot)

    def _replace(self, slot: _Slot, error: Exception) -> None:
        """Start another worker in the place of one that has ended, and let any of them go on with its work."""
        work = slot.work
        if work is not None:
            work.deaths += 1
            if slot.step == "video" and work.videos:
                work.killed[work.videos[0]] += 1
            self._waiting.appendleft(work)
            slot.work = None
        else:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                reason = " ".join(str(error).split())[:300]
                raise InputError(f"{_FAILED_STARTS} Ray workers in a row ended before they were ready: {reason}")
        self._start(slot)

    def _look(self) -> None:
        """Ask busy workers how far they are, without waiting for the answers."""
        for slot in self._slots:
            if slot.look is not None and self._ray.wait([slot.look], timeout=0)[0]:
                done = self._answer(slot.look)
                slot.look, slot.done = None, done if isinstance(done, int) else slot.done
        if time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            for slot in self._slots:
                if slot.look is None and slot.step == "shard" and slot.call is not None:
                    slot.look = slot.actor.done.remote()

    def _say(self, note: str) -> None:
        """Print a line once."""
        if note not in self._notes:
            self._notes[note] = None
            print(note, file=sys.stderr)
