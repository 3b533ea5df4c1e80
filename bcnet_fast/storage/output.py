"""Write files as a whole: readers see the old file or the complete new one, even after a crash.

A file is written in a folder of its own beside its place, which no one else may enter, and then moved. What a killed
process leaves of such folders is removed by the next run that writes there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError

_TEMPORARY = re.compile(r"\.bcnet-(\d+)-[0-9a-f]{16}\.tmp")  # with the number of the process
_in_use: set[str] = set()  # temporary folders of this process


def require_writable(path: str | os.PathLike) -> Path:
    """Check before long work that `path` can be written, and create its folder if it is missing."""
    target = _target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        with _temporary_folder(target.parent):
            pass
    except OSError as error:
        raise InputError(f"{path} is not writable: {error.strerror or error}") from error
    return Path(path)


def require_apart(output: str | os.PathLike, flag: str, **inputs: str | os.PathLike | None) -> None:
    """InputError: the output is also one of the inputs, by this or another name, and would replace it.

    flag: of the output. inputs: by the names of their flags, with underscores; None for one that is not stated.
    """
    for name, path in inputs.items():
        if path is not None and _same(output, path):
            raise InputError(f"{flag} {output} is the file of --{name.replace('_', '-')}, expected another one")


def _same(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one does not exist
        return False


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield where to write a file of the same name; on success it is moved to `path`, on error removed.

    A file that is replaced keeps its mode. InputError: it cannot be written.
    """
    target = _target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_folder(target.parent) as folder:
            temporary = folder / target.name
            yield temporary
            move_into_place(temporary, target)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def move_into_place(temporary: Path, target: Path) -> None:
    """Bring a finished file to disk and give it the name `target` on the same file system. OSError: it fails."""
    temporary.chmod(_mode(target))
    _to_disk(temporary)
    os.replace(temporary, target)
    with contextlib.suppress(OSError):  # some file systems know no such thing
        _to_disk(target.parent)


@contextlib.contextmanager
def atomic_text(path: str | os.PathLike) -> Iterator[TextIO]:
    """Open `path` for atomic text output, see `atomic_path`."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield file


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = None) -> None:
    """Write `value` as JSON, atomically and at full precision. ValueError: a value is NaN or infinite."""
    with atomic_text(path) as file:
        json.dump(value, file, indent=indent, allow_nan=False)
        file.write("\n")


def _target(path: str | os.PathLike) -> Path:
    """Resolve links to the file that writing to `path` creates or replaces. InputError: it is no regular file."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"{path} is a folder, expected a file name to write to")
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is a device, expected a file name to write to")
    return target


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder of a random name that only this user may enter, removed with what is in it."""
    folder = parent / f".bcnet-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    _in_use.add(folder.name)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _in_use.discard(folder.name)


def _remove_leftovers(parent: Path) -> None:
    """Remove temporary folders of processes that have ended."""
    with os.scandir(parent) as entries:
        found = [(entry.path, match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
    for path, match in found:
        # In containers, the number of the process is often the same in every run.
        process = int(match[1])
        if match[0] not in _in_use if process == os.getpid() else not is_running(process):
            shutil.rmtree(path, ignore_errors=True)


def is_running(process: int) -> bool:
    if os.name == "nt":  # where asking ends the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _mode(target: Path) -> int:
    """That of the file, or the usual one of a new file."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        umask = os.umask(0)  # reading it requires setting it
        os.umask(umask)
        return 0o666 & ~umask


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are safe from a power cut."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
