"""Run steps one after the other, each in a process of its own with a limit, and keep what each of them found.

Nothing here imports PyTorch, so that a broken installation is a result and not the end of the run. A step writes its
figures to a file as it finds them, and the driver reads that file however the process ended. Each result is one line of
results.jsonl, on disk before the next step begins, and the report is written anew with it.

The process of the next step starts while the present one works: it imports what it needs and then waits for its turn.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .report import render
from .steps import Step

BENCH = Path(__file__).resolve().parents[1]
FAILING = ("failed", "timeout", "crashed")
OUTPUT_LINES, OUTPUT_BYTES = 40, 1 << 16
UNKILLABLE_S = 5.0  # a process that hangs inside the GPU's driver may not even end when it is killed


@dataclass
class Result:
    """Result of a step; a line of results.jsonl.

    status: ok, failed (a check did not hold, or an exception), timeout, crashed (the process ended by itself), skipped.
    reason: one line for all but ok.
    facts, rows, notes, failures, files: as the step recorded them, also where it did not come to its end.
    output: last lines of the process, the traceback among them, of a step that did not end well.
    """

    step: str
    title: str
    status: str
    seconds: float = 0.0
    limit: float | None = None
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)


class Interrupted(BaseException):
    """Somebody asked this process to end."""


class Process:
    """The process of one step, which prepares itself at once and waits for `go`."""

    def __init__(self, step: Step, out: Path, device: str) -> None:
        logs = out / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.step, self.events, self.log = step, logs / f"{step.name}.events.jsonl", logs / f"{step.name}.log"
        request = {"target": step.target, "device": device, "out": str(out), "events": str(self.events)}
        with open(self.log, "wb") as log:
            # A file, not a pipe: a process that a step leaves behind could hold a pipe open forever.
            self.popen = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "contact.child", json.dumps(request)],
                cwd=BENCH,  # Python looks for modules there first, and must not find those of the user's folder
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(step, device),
                start_new_session=True,
            )

    def go(self, limit: float) -> None:
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):  # it is gone already: `wait` will see that
            self.popen.stdin.write(f"{limit} {time.time()}\n".encode())
            self.popen.stdin.flush()

    def wait(self, limit: float) -> int | None:
        """The exit code, or None after `limit` seconds. Nothing of the process is left in either case."""
        try:
            return self.popen.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and all that it started."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        else:
            self.popen.kill()
        with contextlib.suppress(OSError):
            if self.popen.stdin is not None:
                self.popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(UNKILLABLE_S)

    def found(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The step's records, as fields of `Result`, and how it ended (nothing where it did not)."""
        fields: dict[str, Any] = {"facts": {}, "rows": [], "notes": [], "failures": [], "files": []}
        end: dict[str, Any] = {}
        with contextlib.suppress(OSError):
            for line in self.events.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # the last line of a process that was killed
                    kind, value = json.loads(line)
                    if kind == "end":
                        end = value
                    elif kind == "facts":
                        fields["facts"] |= value
                    else:
                        fields[kind].append(value)
        return fields, end

    def output(self) -> list[str]:
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - OUTPUT_BYTES))
            return file.read().decode(errors="replace").splitlines()[-OUTPUT_LINES:]
        return []


def _environment(step: Step, device: str) -> dict[str, str]:
    env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    # The package is that of this checkout, installed or not.
    paths = [str(BENCH), str(BENCH.parent), os.environ.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    env.pop("BCNET_FAST_BACKEND", None)  # steps ask for backends themselves
    env.pop("TRITON_INTERPRET", None)
    if device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "passive"}
        if step.interpreter:
            env["TRITON_INTERPRET"] = "1"
    return env


class Run:
    """A sequence of steps with one budget and one folder."""

    def __init__(
        self,
        steps: Sequence[Step],
        out: Path,
        device: str,
        budget: float,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.steps, self.out, self.device, self.budget, self.tell = list(steps), out, device, budget, tell
        self.results: list[Result] = []
        self.began, self.date = time.monotonic(), time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self.next: Process | None = None
        self.stop = ""  # why no further step can run

    def left(self) -> float:
        return self.budget - (time.monotonic() - self.began)

    def all(self) -> list[Result]:
        """Run the steps; Interrupted is raised once everything that is known has been written."""
        self.out.mkdir(parents=True, exist_ok=True)
        with _signals():
            try:
                self._prepare(0)
                for number in range(len(self.steps)):
                    self._add(self._one(number))
            except Interrupted as interruption:
                for step in self.steps[len(self.results) :]:
                    self._add(Result(step.name, step.title, "skipped", reason=f"interrupted: {interruption}"))
                raise
            finally:
                self._discard()
        return self.results

    def _prepare(self, number: int) -> None:
        """Start the process of a step, which then waits. Where that fails, its turn comes as a second try."""
        if number < len(self.steps):
            with contextlib.suppress(OSError):
                self.next = Process(self.steps[number], self.out, self.device)

    def _discard(self) -> None:
        if self.next is not None:
            self.next.kill()
            self.next = None

    def _allowed(self, number: int) -> float:
        """Seconds for a step: its limit, or twice its need where later steps would otherwise run out of time."""
        step, left = self.steps[number], self.left()
        later = sum(other.seconds for other in self.steps[number + 1 :])
        return min(step.limit, left, max(2 * step.seconds, left - later))

    def _one(self, number: int) -> Result:
        step, allowed = self.steps[number], self._allowed(number)
        result = Result(step.name, step.title, "skipped")
        if self.stop or self.left() < step.seconds / 2:
            result.reason = self.stop or f"budget: {max(0.0, self.left()):.0f} s of {self.budget:.0f} s are left"
            return result
        if self.next is None or self.next.step is not step:
            self._discard()
            self._prepare(number)
        process, self.next = self.next, None
        if process is None:
            result.status, result.reason = "failed", "no process could be started"
            return result
        started, result.limit = time.monotonic(), allowed
        try:
            process.go(allowed)
            self._prepare(number + 1)
            code = process.wait(allowed)
        except Interrupted as interruption:
            process.kill()
            result.reason = f"interrupted: {interruption}"
            _take(result, process, started)
            self._add(result)
            raise
        end = _take(result, process, started)
        self.stop = end.get("stop", "")
        result.status, result.reason = _verdict(code, end, result.failures, allowed)
        if result.status in FAILING:
            result.output = process.output()
            if result.status == "timeout" and allowed < min(step.limit, 2 * step.seconds):
                result.status, result.reason = "skipped", f"budget: cut off after {allowed:.3g} s"
            elif step.rival:
                result.status, result.reason = "skipped", f"rival: {result.status}, {result.reason}"
        return result

    def _add(self, result: Result) -> None:
        self.results.append(result)
        line = json.dumps(clean(asdict(result)), allow_nan=False) + "\n"
        try:
            # One system call, which no signal handler can come between.
            with open(self.out / "results.jsonl", "ab", buffering=0) as file:
                file.write(line.encode())
                os.fsync(file.fileno())
            self.report()
        except Exception as error:  # a full disk, or a fault of the report: go on, with the line on the screen
            self.tell(f"not written: {error!r}: {line}")
        reason = f"  {result.reason}" if result.reason else ""
        spent = self.budget - self.left()
        self.tell(f"{spent:6.1f} s  {result.step:<21} {result.status:<8} {result.seconds:6.1f} s{reason}")

    def report(self) -> None:
        text = render(
            [clean(asdict(result)) for result in self.results],
            device=self.device,
            date=self.date,
            seconds=self.budget - self.left(),
            budget=self.budget,
            steps=len(self.steps),
        )
        temporary = self.out / ".report.md.new"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.out / "report.md")


def _take(result: Result, process: Process, started: float) -> dict[str, Any]:
    """Fill the result from the records of its process, and return how the process ended."""
    result.seconds = time.monotonic() - started
    fields, end = process.found()
    for name, value in fields.items():
        setattr(result, name, value)
    return end


def _verdict(code: int | None, end: dict[str, Any], failures: list[str], limit: float) -> tuple[str, str]:
    """Status and reason of a step that ran."""
    if code is None and not end:
        return "timeout", f"killed after {limit:.3g} s"
    if end.get("error"):
        return "failed", end["error"]
    if not end and code is not None:
        return "crashed", f"exit status {code}" if code >= 0 else f"signal {_signal_name(-code)}"
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        return "failed", failures[0] + more
    if end.get("skipped"):
        return "skipped", end["skipped"]
    return "ok", ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def clean(value: Any) -> Any:
    """The value in JSON: a number that is not finite becomes text."""
    if isinstance(value, dict):
        return {str(name): clean(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [clean(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Inside the block, a request to end raises Interrupted, so that results so far are written first."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def interrupt(number: int, _frame: Any) -> None:
        for other in numbers:  # a second request must not disturb the writing, which takes a moment
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(_signal_name(number))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
