"""Progress of long work, on a terminal or in a log file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(
    items: Iterable[T], total: int, what: str, note: Callable[[], str] = lambda: "", *, hidden: bool = False
) -> Iterator[T]:
    """Iterate with a progress bar on a terminal, and with ten plain lines in a log file; `note` is shown beside it."""
    if hidden:
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, unit=what) as bar:
            for item in items:
                yield item
                # Only when the bar is drawn: on a GPU the note has to wait for the numbers in it.
                if bar.update():
                    bar.set_postfix_str(note())
    else:
        step = max(1, total // 10)
        for count, item in enumerate(items, 1):
            yield item
            if count % step == 0 or count == total:
                print(f"{count}/{total} {what} {note()}".rstrip(), file=sys.stderr, flush=True)
