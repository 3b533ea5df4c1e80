"""Where the time goes, by named stage: `with record() as profile:` around the work, `with stage("name"):` inside it."""

from __future__ import annotations

import contextlib
import contextvars
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .storage.output import atomic_text


class Event(NamedTuple):
    """One run of a stage; seconds since the recording began. Nested stages are deeper."""

    name: str
    start: float
    end: float
    depth: int


class Profile:
    """All stages that ran while it was recorded."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds = 0.0  # of the whole recording
        self.events: list[Event] = []
        self.depth = 0

    def table(self) -> str:
        """Calls, seconds and share of each stage, in the order of their first run; nested ones are indented."""
        rows: dict[tuple[int, str], list[float]] = {}
        for event in sorted(self.events, key=lambda e: (e.start, e.depth)):
            row = rows.setdefault((event.depth, event.name), [0, 0.0])
            row[0] += 1
            row[1] += event.end - event.start
        width = max([len("  " * depth + name) for depth, name in rows] + [len("not in a stage")])
        lines = [f"{'stage':<{width}}  {'calls':>7}  {'ms':>10}  {'ms/call':>9}  {'share':>6}"]
        whole = self.seconds or 1.0
        for (depth, name), (calls, seconds) in rows.items():
            share = f"{100 * seconds / whole:5.1f} %"
            label = "  " * depth + name
            lines.append(
                f"{label:<{width}}  {calls:7d}  {1e3 * seconds:10.2f}  {1e3 * seconds / calls:9.3f}  {share:>6}"
            )
        rest = self.seconds - sum(e.end - e.start for e in self.events if e.depth == 0)
        lines.append(f"{'not in a stage':<{width}}  {'':>7}  {1e3 * rest:10.2f}  {'':>9}  {100 * rest / whole:5.1f} %")
        return "\n".join(lines)

    def write_trace(self, path: str | Path) -> None:
        """Write the events for chrome://tracing or ui.perfetto.dev, atomically."""
        events = [
            {"name": e.name, "ph": "X", "ts": 1e6 * e.start, "dur": 1e6 * (e.end - e.start), "pid": 0, "tid": 0}
            for e in self.events
        ]
        with atomic_text(path) as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)


_active: contextvars.ContextVar[Profile | None] = contextvars.ContextVar("profile", default=None)


@contextlib.contextmanager
def record() -> Iterator[Profile]:
    """Record the stages that this thread runs inside the `with` block."""
    profile = Profile()
    token = _active.set(profile)
    try:
        yield profile
    finally:
        _active.reset(token)
        profile.seconds = time.perf_counter() - profile.began


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Name what is done inside the `with` block. Costs about a microsecond when nothing is recorded.

    Work that a GPU was given is waited for while a profile is recorded, so that each stage is charged with its own.
    """
    profile = _active.get()
    if profile is None:
        yield
        return
    start, depth = time.perf_counter(), profile.depth
    profile.depth += 1
    try:
        yield
    finally:
        _wait_for_gpu()
        profile.depth = depth
        now = time.perf_counter()
        profile.events.append(Event(name, start - profile.began, now - profile.began, depth))


def _wait_for_gpu() -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize()
