"""Progress of long work, on a terminal or in a log file."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_REDRAWN_S = 0.1  # seconds between two drawings of the line on a terminal
_LOGGED_S = 10.0  # least seconds between two lines in a log file


def progress(
    items: Iterable[T],
    total: int,
    what: str,
    note: Callable[[], str] = lambda: "",
    *,
    hidden: bool = False,
    at: Callable[[], int] | None = None,
) -> Iterator[T]:
    """Iterate with a line that is redrawn on a terminal; in a log file, with up to ten lines, none for short work.

    note: text beside it; called only when the line is drawn, because on a GPU it waits for the numbers in it.
    at: how much of `total` is done; by default, the number of items.
    """
    if hidden:
        yield from items
    elif sys.stderr.isatty():
        yield from _on_terminal(items, total, what, note, at)
    else:
        yield from _in_log(items, total, what, note, at)


def _in_log(
    items: Iterable[T], total: int, what: str, note: Callable[[], str], at: Callable[[], int] | None
) -> Iterator[T]:
    began = logged = time.monotonic()
    step = reached = max(1, total // 10)
    for number, item in enumerate(items, 1):
        yield item
        now, count = time.monotonic(), at() if at else number
        if count >= reached and now - logged >= _LOGGED_S:
            logged, reached = now, count // step * step + step
            print(_line(count, total, what, now - began, note()), file=sys.stderr, flush=True)


def _on_terminal(
    items: Iterable[T], total: int, what: str, note: Callable[[], str], at: Callable[[], int] | None
) -> Iterator[T]:
    began = time.monotonic()
    drawn = count = 0
    try:
        for number, item in enumerate(items, 1):
            yield item
            now, count = time.monotonic(), at() if at else number
            if now - drawn >= _REDRAWN_S or count == total:
                drawn = now
                _draw(_line(count, total, what, now - began, note()))
    finally:
        # Later output begins on a line of its own.
        if count:
            print(file=sys.stderr, flush=True)


def _line(count: int, total: int, what: str, seconds: float, note: str) -> str:
    """Count, speed and the time that is left, such as `40/120 videos  33 %  2.5/s  0:32 left`."""
    left = seconds / max(count, 1) * max(total - count, 0)
    parts = [f"{count}/{total} {what}", f"{100 * count // max(total, 1)} %", f"{count / max(seconds, 1e-9):.3g}/s"]
    if round(left):
        parts.append(f"{clock(left)} left")
    return "  ".join([*parts, note]).rstrip()


def clock(seconds: float) -> str:
    """`0:32`, `12:05` or `1:02:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _draw(line: str) -> None:
    """Replace the last line of the terminal; a longer one than it has columns would stay on it."""
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write("\r" + line[:width].ljust(width))
    sys.stderr.flush()
