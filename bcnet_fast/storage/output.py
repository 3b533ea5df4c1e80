"""Write files as a whole: readers see the old file or the complete new one, even after a crash.

A file is written in a private folder beside its target, and then moved there. The next run that writes there removes
such folders of killed processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError
from .address import Address, Place, is_address, place_of
from .remote import remove, store

_PATH_OF_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/(?!/)")  # what pathlib makes of an address
_TEMPORARY = re.compile(r"\.bcnet-(\d+)-[0-9a-f]{16}\.tmp")  # with the number of the process
_in_use: set[str] = set()  # temporary folders of this process
_IN_FOLDERS = (".csv", ".eaf")  # what is read of a folder of results or annotations

Paths = str | os.PathLike | Iterable[str | os.PathLike] | None


def require_writable(path: str | os.PathLike) -> Path:
    """Check before long work that `path` can be written, and create its folder if it is missing."""
    target = _target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        with _temporary_folder(target.parent):
            pass
    except OSError as error:
        raise InputError(f"{path} is not writable: {error.strerror or error}") from error
    return Path(path)


def require_storable(path: str | os.PathLike) -> Place:
    """`require_writable`, also for an address, to whose folder a small file is written and deleted."""
    place = place_of(path)
    if not isinstance(place, Address):
        return require_writable(place)
    if place.whole.endswith("/"):
        raise InputError(f"{place} is a folder, expected a file name to write to")
    with tempfile.NamedTemporaryFile() as empty:
        trial = place.with_name(f".bcnet-{os.getpid()}-{secrets.token_hex(8)}.tmp")
        store(Path(empty.name), trial)
        with contextlib.suppress(InputError):  # some users may write and not delete
            remove(trial)
    return place


def require_apart(outputs: Mapping[str, Paths], **inputs: Paths) -> None:
    """InputError: an output is also an input or the output of another flag, by this or another name.

    outputs: by their flags.
    inputs: by the names of their flags, with underscores. A folder stands for its files of results and annotations too.
    """
    written: dict[object, tuple[str, str | os.PathLike]] = {}
    for flag, paths in outputs.items():
        for path in _each(paths):
            owner, _ = written.setdefault(identity(path), (flag, path))
            if owner != flag:
                raise InputError(f"{flag} {place_of(path)} is the file of {owner}, expected another one")
    if not any(_may_exist(path) for _, path in written.values()):
        return  # so that they are no inputs, of which there may be a million
    for name, paths in inputs.items():
        for path in _each(paths):
            for file in (path, *_files_in(path)):
                if found := written.get(identity(file)):
                    flag, output = found
                    owner = f"--{name.replace('_', '-')}"
                    raise InputError(f"{flag} {place_of(output)} is the file of {owner}, expected another one")


def _may_exist(path: str | os.PathLike) -> bool:
    return isinstance(place := place_of(path), Address) or os.path.exists(place)


def identity(path: str | os.PathLike) -> object:
    """A value that all names of a file share, be it there or not."""
    place = place_of(path)
    if isinstance(place, Address):
        return place.whole
    try:
        found = os.stat(place)
    except OSError:  # it does not exist
        return os.path.realpath(place)
    return found.st_dev, found.st_ino


def _each(paths: Paths) -> Iterable[str | os.PathLike]:
    if paths is None:
        return ()
    return (paths,) if isinstance(paths, str | os.PathLike) else paths


def _files_in(path: str | os.PathLike) -> list[Path]:
    place = place_of(path)
    if isinstance(place, Address) or not os.path.isdir(place):
        return []
    try:
        return [place / name for name in os.listdir(place) if name.endswith(_IN_FOLDERS)]
    except OSError:  # whoever reads it says why
        return []


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield where to write a file of the same name; on success it is moved to `path`, on error removed.

    A file that is replaced keeps its mode. To an address, the file is copied in one piece. InputError: it cannot be
    written.
    """
    place = place_of(path)
    if isinstance(place, Address):
        with tempfile.TemporaryDirectory(prefix="bcnet-") as folder:
            yield (temporary := Path(folder) / place.name)
            store(temporary, place)
        return
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
    with contextlib.suppress(OSError):  # some file systems do not support it
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
    if is_address(place_of(path)) or _PATH_OF_ADDRESS.match(str(path)):
        raise InputError(f"{place_of(path)} is an address, expected a local file name to write to")
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


def remove_leftovers(parent: Path) -> None:
    """Remove temporary folders of processes that have ended."""
    with os.scandir(parent) as entries:
        found = [(entry.path, match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
    for path, match in found:
        # In containers, the number of the process is often the same in every run.
        process = int(match[1])
        if match[0] not in _in_use if process == os.getpid() else not is_running(process):
            shutil.rmtree(path, ignore_errors=True)


def is_running(process: int) -> bool:
    if os.name == "nt":  # there, os.kill ends the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _mode(target: Path) -> int:
    """The mode of the file, or the default mode of a new file."""
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
