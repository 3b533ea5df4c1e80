"""The context of a step: its device, the time that is left, and the record of its findings.

Nothing here imports PyTorch before a step asks for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Skip(Exception):
    """The step has no meaning on this machine; the text says why."""


class Stop(Exception):
    """No later step can run either; the text says why."""


class Context:
    """Whatever is recorded is on disk at once: a crash or a hang later in the step loses nothing.

    device: "cuda" or "cpu". small: whether shapes are small, because the step runs on a CPU.
    """

    def __init__(self, device: str, out: Path, events: Path, limit: float) -> None:
        self.device, self.out, self.events = device, out, events
        self.small = device == "cpu"
        self.limit, self.until = limit, time.monotonic() + limit
        self.left_out: list[str] = []
        self.attempts, self.longest = 0, 0.0  # how many, and the most seconds that one took
        self.interpreted = os.environ.get("TRITON_INTERPRET") == "1"

    def left(self) -> float:
        """Seconds until the driver ends this process."""
        return self.until - time.monotonic()

    def record(self, kind: str, value: Any) -> None:
        line = json.dumps([kind, value], default=_plain) + "\n"
        with open(self.events, "ab", buffering=0) as file:
            file.write(line.encode())

    def row(self, **cells: Any) -> None:
        """A row of the step's table."""
        self.record("rows", cells)

    def fact(self, name: str, value: Any) -> None:
        """A line of the table of single values."""
        self.record("facts", {name: value})

    def note(self, text: str) -> None:
        self.record("notes", text)

    def failure(self, text: str) -> None:
        """Something is wrong: the step goes on, and counts as failed."""
        self.record("failures", text)

    def check(self, good: bool, text: str) -> bool:
        """Record a failure unless `good`."""
        if not good:
            self.failure(text)
        return bool(good)

    def file(self, path: Path) -> None:
        """A file that was written below the output folder."""
        self.record("files", str(path.relative_to(self.out)))

    def attempt(
        self,
        name: str,
        function: Callable[..., Any],
        *arguments: Any,
        seconds: float = 2.0,
        others: bool = False,
    ) -> Any:
        """The function's result, or None. None follows an exception, which is recorded as a failure of `name`, or too
        little time: less than `seconds`, or than another attempt took. A slow machine then gives a shorter table and no
        timeout.

        others: whether this is third-party code, whose errors are notes and not failures.
        """
        started = self.left()
        if started < max(seconds, self.longest) + min(3.0, 0.1 * self.limit):
            self.left_out.append(name)
            return None
        self.attempts += 1
        number = self.attempts
        try:
            return function(*arguments)
        except (Skip, Stop):
            raise
        except Exception as error:
            traceback.print_exc()
            text = f"{name}: {summary(error)}"
            if others:
                self.note(text)
            else:
                self.failure(text)
        finally:
            if number == self.attempts:  # none is part of this one
                self.longest = max(self.longest, started - self.left())
        self._require_device()
        return None

    def _require_device(self) -> None:
        """After an illegal access nothing more runs on the device in this process: end the step there."""
        if self.device != "cuda":
            return
        import torch

        try:
            torch.cuda.synchronize()
        except Exception as error:
            raise RuntimeError(f"the device is lost to this process: {summary(error)}") from error

    def finish(self) -> None:
        """The step came to its end."""
        if self.left_out:
            shown = ", ".join(self.left_out[:6]) + (", ..." if len(self.left_out) > 6 else "")
            self.note(f"Left out for want of time: {shown}.")
        self.record("end", {"done": True})

    def work(self, name: str) -> Path:
        """A folder for files that later steps use, and for scratch files."""
        path = self.out / "work" / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def summary(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _plain(value: Any) -> Any:
    """NumPy's and PyTorch's numbers as Python's."""
    with contextlib.suppress(Exception):
        return value.item()
    return str(value)
