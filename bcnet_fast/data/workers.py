"""Processes that read data while this one computes: they end with it, and one that is killed does not end it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.autograd.profiler import record_function
from torch.utils.data import DataLoader

T = TypeVar("T")
KILLED = "the process that read video {!r} was killed twice, probably because memory ran out"
_DEATH = "DataLoader worker (pid"  # start of PyTorch's message
_SIGNAL_S = 0.2  # longest delay of a death's signal after the end of its connection
_CHECKED_S = 0.5  # seconds between two looks at whether the parent is still there


def read_in_order(items: Sequence[T], loader: Callable[[Sequence[T], bool], DataLoader]) -> Iterator[Any]:
    """Yield what a DataLoader with workers reads for each item; None for an item on which a worker died twice.

    loader: makes the DataLoader for the given items in their order. True asks for one worker that reads item by item,
        which identifies the item on which it dies.
    """
    first, deaths = 0, 0  # index of the first item that is left; deaths at it
    careful = False
    while first < len(items):
        try:
            with _any_number_of_workers():
                made = loader(items[first:], careful)
            for result in _with_deaths_noticed(made):
                yield result
                first, deaths = first + 1, 0
        except RuntimeError as error:
            if not str(error).startswith(_DEATH):
                raise
            if not careful:
                print("note: a process that reads features was killed; going on with one", file=sys.stderr)
            deaths += careful
            careful = True
            if deaths == 2:
                yield None
                first, deaths = first + 1, 0


@contextlib.contextmanager
def _any_number_of_workers() -> Iterator[None]:
    """Silence PyTorch about more workers than cores: the user chose them, and waiting for a storage takes no core."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


def _with_deaths_noticed(loader: DataLoader) -> Iterator[Any]:
    """Yield what the loader reads. RuntimeError: a worker has died, raised only while this waits for it.

    PyTorch's own signal handler raises wherever the main thread is when a worker dies, such as within the network.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        with _any_number_of_workers():
            results = iter(loader)
        yield from results
        return
    with record_function("start"):  # here it imports what it needs, where nothing raises; `next` below uses it
        pass
    waits = died = False
    interrupted: Any = None  # the frame in which a check began

    def note(number: int, frame: Any) -> None:
        nonlocal died, interrupted
        died = True
        # PyTorch's handler calls the one that was set before it, with the same frame: it may be this one.
        if waits and frame is not interrupted:
            interrupted = frame
            try:
                check(number, frame)
            finally:
                interrupted = None

    check = _callable(signal.signal(signal.SIGCHLD, note))
    try:
        with _any_number_of_workers():
            results = iter(loader)
        if signal.getsignal(signal.SIGCHLD) is not note:  # the first loader of the process sets PyTorch's handler
            check = _callable(signal.signal(signal.SIGCHLD, note))
        while True:
            waits = True
            try:
                # A worker that died while writing leaves half a message, on which `next` would wait forever.
                if died:
                    check(signal.SIGCHLD, None)
                result = next(results)
            except StopIteration:
                return
            except Exception as error:
                # The check raises in the middle of `next`, such as in the start of a thread, which may turn the error
                # into another one. The connection also ends before the signal of the death arrives.
                if isinstance(error, (EOFError, OSError)) and not died:
                    waits = False
                    time.sleep(_SIGNAL_S)
                if died and not str(error).startswith(_DEATH):
                    raise RuntimeError(f"{_DEATH} unknown) ended") from error
                raise
            finally:
                waits = False
            yield result
    finally:
        results = None  # ends the workers that are left
        # PyTorch may still track a worker that died while its loader started, and would raise at the end of any later
        # process.
        with contextlib.suppress(RuntimeError):
            check(signal.SIGCHLD, None)
            signal.signal(signal.SIGCHLD, check)


def _callable(handler: Any) -> Callable[[int, Any], Any]:
    return handler if callable(handler) else lambda number, frame: None


def end_with_parent(threads: int | None = None) -> Callable[[int], None]:
    """The `worker_init_fn` of a DataLoader of this process.

    A worker whose parent was killed would wait forever to hand over what it has read, and keep its memory.

    threads: of PyTorch in the worker. None: one, the default of a DataLoader.
    """
    return functools.partial(_watch, os.getpid(), threads)


def _watch(parent: int, threads: int | None, worker: int) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    threading.Thread(target=_wait, args=(parent,), name="parent", daemon=True).start()


def _wait(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECKED_S)
    os._exit(1)
