"""Read small files, with one-line errors."""

from __future__ import annotations

import contextlib
import gc
import gzip
import importlib
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..bounds import MOST_TENSORS
from ..errors import InputError
from ..text import brief
from .address import Address, Place, place_of
from .foreign import content_of
from .remote import RemoteFile, local_copy

LARGEST_TEXT = 512 << 20  # bytes of a text file, unpacked; parsing takes up to 20 times as much memory
_LARGEST_TOML = 1 << 20  # bytes; the time to parse dotted keys grows with the square of their number
_FEW_TEXT = 64 << 20  # bytes that any packed file may unpack to
_MOST_PACKED = 100  # times that a larger text may be smaller when packed; numbers are about 3
_PART = 1 << 20  # bytes read or unpacked at once
_LONGEST_REASON = 160  # characters of a message of a library


@contextlib.contextmanager
def readable(where: object, expected: str) -> Iterator[None]:
    """Turn whatever a reader raises about a file, running out of memory included, into one InputError.

    Libraries that parse damaged files raise almost anything, so that no list of exceptions is complete.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0][:_LONGEST_REASON] if lines else type(error).__name__
        raise InputError(f"{where} cannot be read ({reason}), expected {expected}") from error


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Pause the search for cycles: parsers create none, and scanning their many objects takes longer than parsing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def require_file(path: str | os.PathLike, expected: str) -> Path:
    """Return `path` as a Path, and the local copy of an address. InputError: it is not a readable file."""
    place = place_of(path)
    if isinstance(place, Address):
        return local_copy(place, expected)
    path = place
    if not path.exists():
        found = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise InputError(f"{path} {found}, expected {expected}")
    if not path.is_file():
        raise InputError(f"{path} is a {'folder' if path.is_dir() else 'device'}, expected {expected}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no read permission, expected {expected}")
    return path


def require_possible_count(tensors: int, path: Place) -> None:
    """InputError: a checkpoint has more tensors than any network; reading each of them takes time."""
    if tensors > MOST_TENSORS:
        raise InputError(f"{path} has {tensors:,} tensors, expected at most {MOST_TENSORS:,}")


def open_binary(place: Place, expected: str) -> IO[bytes]:
    """Open a file to read bytes at any position, one of another storage in parts. InputError: it is not readable.

    A pipe is refused: opening one waits for a writer.
    """
    if isinstance(place, Address):
        return io.BufferedReader(RemoteFile(place), 1 << 16)
    return open(require_file(place, expected), "rb")


def first_bytes(path: str | os.PathLike, expected: str, count: int = 512) -> bytes:
    """The first bytes of a file, decompressed as far as they are gzip. InputError: it is not a readable file."""
    local, path = require_file(path, expected), place_of(path)
    with readable(path, expected), open(local, "rb") as file:
        start = file.read(count)
        if start.startswith(b"\x1f\x8b"):
            with contextlib.suppress(zlib.error):
                return zlib.decompressobj(wbits=31).decompress(start, count)
        return start


def read_text(path: str | os.PathLike, expected: str, largest: int | None = None) -> str:
    """Read a UTF-8 file, decompressed if its first bytes are those of gzip.

    largest: bytes, unpacked; None for `LARGEST_TEXT`. Text that is packed more than any real one may have less.
    """
    largest = min(largest or LARGEST_TEXT, LARGEST_TEXT)
    local, path = require_file(path, expected), place_of(path)
    with readable(path, expected), open(local, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if packed:
            largest = min(largest, max(_FEW_TEXT, _MOST_PACKED * os.fstat(raw.fileno()).st_size))
        content = bytearray()
        try:
            file = gzip.GzipFile(fileobj=raw) if packed else raw
            while part := file.read(_PART):
                content += part
                if len(content) > largest:
                    raise InputError(f"{path} has more than {largest >> 20} MiB of text, expected {expected}")
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is not UTF-8 text, expected {expected}{content_of(bytes(content[:64]))}"
            ) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: damaged gzip file ({error}), expected {expected}") from error
    if "\0" in text:  # parsers would make several copies of it before they see that
        raise InputError(f"{path} has a zero byte, as no text has, expected {expected}")
    return text


def parse_json(text: str, path: str | os.PathLike, expected: str = "a JSON file", *, unique_keys: bool = True) -> Any:
    """Parse JSON text. InputError: names the file and the position of the syntax error or the repeated key.

    Checking for repeated keys takes a third of the time. Without `unique_keys` the last value wins, as in `json.loads`.
    """
    try:
        with no_collection():
            return json.loads(text, object_pairs_hook=_unique_keys if unique_keys else None)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: invalid JSON at line {error.lineno}, column {error.colno} ({error.msg}), expected {expected}"
        ) from error
    except (RecursionError, MemoryError) as error:
        reason = "JSON is nested too deeply" if isinstance(error, RecursionError) else "too large for the memory"
        raise InputError(f"{path}: {reason}, expected {expected}") from error
    except ValueError as error:  # Python limits integers to 4300 digits
        raise InputError(f"{path}: a number has too many digits, expected {expected}") from error
    except _RepeatedKeyError as error:
        raise InputError(f"{path}: key {brief(error.args[0])} occurs twice, expected unique keys") from error


def read_json(path: str | os.PathLike, expected: str = "a JSON file") -> Any:
    """Read and parse a JSON file, see `parse_json`."""
    return parse_json(read_text(path, expected), place_of(path), expected)


def read_toml(path: str | os.PathLike) -> dict[str, Any]:
    """Read a TOML file of at most 1 MiB. InputError: names the file and the position of the syntax error."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    text = read_text(path, "a TOML file", _LARGEST_TOML)
    with readable(path, "a TOML file"):
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path}: invalid TOML: {error}") from error


class _RepeatedKeyError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json.loads keeps the last of equal keys: the first entries of a repeated video would be lost silently.
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        raise _RepeatedKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return unique
