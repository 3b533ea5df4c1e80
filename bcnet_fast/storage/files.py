"""Reading and writing small files: one clear error a file, and never a half-written output."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError


def require_file(path: str | os.PathLike, expected: str) -> Path:
    """Return `path` as a Path, or raise InputError when it is not a readable file."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: expected {expected}, found nothing there")
    if not path.is_file():
        raise InputError(f"{path}: expected {expected}, found a {'folder' if path.is_dir() else 'device'}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: expected {expected}, found a file without read permission")
    return path


def read_text(path: str | os.PathLike, expected: str) -> str:
    """The text of a UTF-8 file, unpacked when it is a gzip file (told by its first bytes)."""
    path = require_file(path, expected)
    content = path.read_bytes()
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected {expected}, found bytes that are not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: expected {expected}, found a broken gzip file ({error})") from error


def parse_json(text: str, path: str | os.PathLike, expected: str = "a JSON file", *, unique_keys: bool = True) -> Any:
    """Parse JSON text; InputError names the file and where it stops being JSON, or a key that is there twice.

    Looking for repeated keys costs a third of the time: without `unique_keys` the last one stands, as in `json.loads`.
    """
    # A parser makes no garbage, and searching its million new objects for some takes longer than making them.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text, object_pairs_hook=_unique_keys if unique_keys else None)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: expected {expected}, found invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except RecursionError as error:
        raise InputError(f"{path}: expected {expected}, found JSON nested too deeply to be read") from error
    except ValueError as error:  # Python reads no integer of more than 4300 digits
        raise InputError(f"{path}: expected {expected}, found a number of too many digits") from error
    except _RepeatedKeyError as error:
        raise InputError(f"{path}: expected every key once, found {error.args[0]!r} twice") from error
    finally:
        if collecting:
            gc.enable()


def read_json(path: str | os.PathLike, expected: str = "a JSON file") -> Any:
    """`parse_json` of `read_text`."""
    return parse_json(read_text(path, expected), path, expected)


def read_toml(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a TOML file; InputError names it and where it stops being TOML."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10; only this function needs the package
        import tomli as tomllib
    try:
        return tomllib.loads(read_text(path, "a TOML file"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: expected a TOML file, found invalid TOML: {error}") from error


class _RepeatedKeyError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON readers keep the last of two equal keys: a video written twice would lose its first half unseen.
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        raise _RepeatedKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return unique


def _target(path: str | os.PathLike) -> Path:
    """The file that writing to `path` makes or replaces: links are followed, and only regular files are replaced."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"{path}: expected the name of a file to write, found a folder")
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: expected the name of a file to write, found a device")
    return target


def require_writable(path: str | os.PathLike) -> Path:
    """Check, before any long work, that a file can be made at `path`; creates its folder when that is missing."""
    target = _target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise InputError(f"{path}: expected a place to write, found: {error.strerror or error}") from error
    return Path(path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it becomes `path`, on any error it is removed.

    The temporary name keeps the suffix of `path`, because writers such as matplotlib choose the format by it.
    """
    target = _target(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"{path}: could not be written: {error.strerror or error}") from error
    finally:
        # Where the folder could not even be made, removing fails too, and must not hide the first error.
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_text(path: str | os.PathLike) -> Iterator[TextIO]:
    """Open `path` for writing text so that readers see the old file or the whole new one, also after a crash."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = None) -> None:
    """Write `value` as JSON, atomically. Floats keep full precision; NaN and infinity are refused (ValueError)."""
    with atomic_text(path) as file:
        json.dump(value, file, indent=indent, allow_nan=False)
        file.write("\n")
