"""A file that one run holds: two runs on one output would mix their results."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no file locks of this kind
    fcntl = None

_held: set[int] = set()  # descriptors


def _leave_to_parent() -> None:
    """A lock lasts until all copies of its descriptor are closed: a forked process must not keep that of its parent."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class InUse(InputError):
    """Another run holds a lock."""


class Lock:
    """Holds a file, which is created if it is missing, until `release` or the end of this process.

    name: what messages call it, by default the path.

    InUse: another run holds it. OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, name: object = None) -> None:
        self.path, self.name = path, name or path
        self._descriptor = self._open()
        _held.add(self._descriptor)

    def _open(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The run that held it may have removed the file in between.
                if os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    return descriptor
            except BlockingIOError as error:
                os.close(descriptor)
                raise InUse(f"{self.name} is in use by another run") from error
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self, *, remove: bool = False) -> None:
        """Let others hold the file; `remove` deletes it first. A second call does nothing."""
        if self._descriptor not in _held:
            return
        if remove:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        _held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
