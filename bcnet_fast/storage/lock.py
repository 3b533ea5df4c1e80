"""A file that one run holds: two runs on one output would mix their results."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .output import require_writable

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


def open_own(path: str | os.PathLike, flags: int) -> int:
    """Open a file that this package writes to in place, for `Lock` and as the opener of `open`.

    InputError: it is a link, has several names, or is no regular file: writing would change a file of other content.
    """
    expected = "expected a regular file without links, or none"
    if os.path.islink(path):
        raise InputError(f"{path} is a link, {expected}")
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    what = "has a hard link" if stat.S_ISREG(found.st_mode) else "is no regular file"
    raise InputError(f"{path} {what}, {expected}")


class InUse(InputError):
    """Another run holds a lock."""


class Lock:
    """Holds a file, which is created if it is missing, until `release` or the end of this process.

    name: what messages call it, by default the path.

    InUse: another run holds it. InputError: see `open_own`. OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, name: object = None) -> None:
        self.path, self.name = path, name or path
        self._descriptor = self._open()
        _held.add(self._descriptor)

    def _open(self) -> int:
        while True:
            descriptor = open_own(self.path, os.O_RDWR | os.O_CREAT)
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


@contextlib.contextmanager
def locked_folder(folder: Path, name: str) -> Iterator[None]:
    """Keep other runs out of a folder, which is created; a new one that stays empty is removed.

    name: of a file that will be written there.

    InputError: another run is there, or the folder is not writable.
    """
    there = os.path.exists(folder)
    require_writable(folder / name)
    try:
        lock = Lock(folder / ".lock", folder)
    except OSError as error:
        raise InputError(f"{folder} is not writable: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release(remove=True)
        if not there:
            with contextlib.suppress(OSError):  # unless there is something in it
                folder.rmdir()
