"""Processes that read data while this one computes: they end with it, and one that is killed does not end it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader

T = TypeVar("T")
_CHECKED_S = 0.5  # seconds between two looks at whether the parent is still there


def read_in_order(items: Sequence[T], loader: Callable[[Sequence[T], bool], DataLoader]) -> Iterator[Any]:
    """Yield what a DataLoader with workers reads for each item; None for an item on which a worker died twice.

    loader: makes the DataLoader for the given items in their order; True asks for one worker that reads them one by
        one, so that the item on which it dies is known.
    """
    first, deaths = 0, 0  # of the items that are left; at that item
    careful = False
    while first < len(items):
        try:
            with _deaths_are_noticed_here(iter(loader(items[first:], careful))) as results:
                for result in results:
                    yield result
                    first, deaths = first + 1, 0
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            if not careful:
                print("note: a process that reads features was killed; going on with one", file=sys.stderr)
            deaths += careful
            careful = True
            if deaths == 2:
                yield None
                first, deaths = first + 1, 0


@contextlib.contextmanager
def _deaths_are_noticed_here(results: Iterator[Any]) -> Iterator[Iterator[Any]]:
    """Switch off PyTorch's signal handler, which raises wherever the main thread is when a worker dies.

    Without it the DataLoader looks whether its workers live when it has waited for five seconds.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield results
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield results
    finally:
        signal.signal(signal.SIGCHLD, before)


def end_with_parent() -> Callable[[int], None]:
    """The `worker_init_fn` of a DataLoader of this process.

    A worker whose parent was killed would wait forever to hand over what it has read, and keep its memory.
    """
    return functools.partial(_watch, os.getpid())


def _watch(parent: int, worker: int) -> None:
    threading.Thread(target=_wait, args=(parent,), name="parent", daemon=True).start()


def _wait(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECKED_S)
    os._exit(1)
