"""Files at fsspec addresses, such as s3://bucket/folder: listed page by page, read in ranges or whole, stored whole.

No connection is kept between calls, so that addresses work in forked processes and on other machines.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import errno
import functools
import hashlib
import importlib
import io
import itertools
import logging
import os
import random
import shutil
import tempfile
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from ..errors import InputError
from .address import WEB, Address, Place, place_of, without_secrets

T = TypeVar("T")
_GOOGLE = ("gs", "gcs")
_SILENT = logging.NullHandler()
_PACKAGES = {
    **dict.fromkeys(WEB, "aiohttp"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(_GOOGLE, "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    "hf": "huggingface_hub",
}
_TRIES = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 8.0  # seconds between two tries
_GIVE_UP_S = 180.0  # no further try after that time
_SILENT_S = 60.0  # seconds without a byte of an answer
_BLOCK, _BLOCKS = 1 << 19, 64  # bytes read at once, and blocks in memory, of a file that is read in parts
_PAGE = 1000  # entries of a listing that are taken over at once
_LONGEST_REASON = 160  # characters of a message of a library
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors of a copy on this machine
_LARGEST_COPY = 16 << 30  # bytes of a checkpoint or result
_copies: dict[tuple[int, str], Path] = {}  # by process and address
_folders: dict[int, str] = {}  # by process
_pauses = random.Random()  # leaves the global random state alone


def _filesystem(address: Address) -> tuple[Any, str]:
    """The fsspec file system of this process, and the path in it. InputError: a package is missing, or unknown."""
    try:
        import fsspec
        import fsspec.core
    except ImportError as error:
        raise InputError(f"{address}: addresses need fsspec: pip install 'bcnet_fast[remote]'") from error
    protocol = address.protocol
    if "::" in address.whole:
        raise InputError(f"{address} is a chain of addresses, expected a single one")
    package = _PACKAGES.get(protocol)
    if protocol in _GOOGLE:  # whose library logs failed requests with tracebacks, which Python prints by default
        logging.getLogger("gcsfs").addHandler(_SILENT)
    try:
        return fsspec.core.url_to_fs(address.whole, use_listings_cache=False, **_options(protocol))
    except ImportError as error:
        needed = f"needs {package}: pip install {package}" if package else without_secrets(str(error))
        raise InputError(f"{address}: {protocol}:// {needed}") from error
    except ValueError as error:
        raise InputError(f"{address}: {without_secrets(str(error))}, expected a protocol of fsspec") from None
    except Exception as error:  # some protocols need more than an address, or connect at once
        raise InputError(f"{address} cannot be opened ({_reason(error, 1)}), expected a file or folder") from None


def _options(protocol: str) -> dict[str, Any]:
    """Timeouts for an answer; everything else, credentials included, is left to the libraries."""
    if protocol in WEB:
        import aiohttp

        silent = aiohttp.ClientTimeout(total=None, sock_connect=_SILENT_S, sock_read=_SILENT_S)
        return {"client_kwargs": {"timeout": silent, "trust_env": True}}
    if protocol in ("s3", "s3a"):
        return {"config_kwargs": {"connect_timeout": _SILENT_S, "read_timeout": _SILENT_S}}
    return {}


def _tried(address: Address, work: Callable[[Any, str], T], tries: int = _TRIES) -> T:
    """`work(file system, path)`, again after errors of servers and connections.

    InputError: it failed. FileNotFoundError: there is no such file.
    """
    begun = time.monotonic()
    for number in itertools.count(1):
        fs, path = _filesystem(address)
        try:
            return work(fs, path)
        except InputError:
            raise
        except Exception as error:
            # The web client reports whatever goes wrong as a missing file.
            cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
            if not _may_pass(cause, address) or number == tries or time.monotonic() - begun > _GIVE_UP_S:
                if isinstance(cause, FileNotFoundError) or _status_of(cause) == 404:
                    raise FileNotFoundError(str(address)) from None
                raise InputError(f"{address} cannot be reached ({_reason(cause, number)})") from None
        time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (number - 1)) * (0.5 + _pauses.random()))
    raise AssertionError


def _status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of a library."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    found = getattr(error, "status", None) or getattr(error, "code", None) or getattr(response, "status_code", None)
    return int(str(found)) if str(found).isdecimal() else None


def _may_pass(error: BaseException, address: Address) -> bool:
    """Whether a further try may help."""
    if address.protocol in _GOOGLE and importlib.import_module("gcsfs.retry").is_retriable(error):
        return False  # the library has tried it six times, in half a minute
    status = _status_of(error)
    if status is not None and 400 <= status < 600:
        return status >= 500 or status in (408, 429)
    if isinstance(error, OSError) and error.errno in _LOCAL:
        return False
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | TimeoutError | EOFError) or library in (
        "aiohttp",
        "asyncio",
        "botocore",
        "httpx",
    )


def _reason(error: BaseException, tries: int) -> str:
    lines = without_secrets(str(error)).strip().splitlines()
    reason = lines[0][:_LONGEST_REASON] if lines else type(error).__name__
    return reason if tries == 1 else f"{reason}; tried {tries} times"


def _info(address: Address) -> dict[str, Any]:
    return _tried(address, lambda fs, path: fs.info(path))


def _facts(info: dict[str, Any]) -> tuple[int, int] | None:
    """Size and version of a file from what a storage says about it; None where it does not say the size.

    The version is the time of the last change in ns or, where that is unknown, a number below all such times.
    """
    size = info.get("size")
    if info.get("type") == "directory" or not isinstance(size, int) or size < 0:
        return None
    for name in ("LastModified", "last_modified", "mtime", "modified", "created"):
        value = info.get(name)
        if isinstance(value, datetime.datetime):
            return size, int(value.timestamp() * 1e6) * 1000
        if isinstance(value, int | float) and value > 0:
            return size, int(value * 1e6) * 1000
    stated = next((str(info[name]) for name in ("ETag", "etag", "blob_id", "md5Hash") if info.get(name)), "")
    return size, int.from_bytes(hashlib.blake2b(stated.encode(), digest_size=6).digest(), "big")


def facts_of(place: Place) -> tuple[int, int] | None:
    """Size in bytes and version of a file, see `_facts`; None where there is none. InputError: it cannot be reached."""
    if not isinstance(place, Address):
        try:
            status = place.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns
    if place.facts is None:
        with contextlib.suppress(FileNotFoundError):
            place.facts = _facts(_info(place))
    return place.facts


def size_of(place: Place) -> int:
    """Bytes of a file. InputError: there is none, or its storage does not state it."""
    if not isinstance(place, Address):
        return place.stat().st_size
    if place.facts is None:
        try:
            place.facts = _facts(_info(place))
        except FileNotFoundError:
            raise InputError(f"{place} does not exist") from None
        if place.facts is None:
            raise InputError(f"{place} has no size that its server reports, expected one to bound the memory")
    return place.facts[0]


def exists(place: Place) -> bool:
    """Whether there is a file. InputError: it cannot be reached."""
    return facts_of(place) is not None if isinstance(place, Address) else place.is_file()


def read_range(address: Address, start: int, end: int) -> bytes:
    """Bytes from `start` to before `end`. InputError: they cannot be read."""

    def work(fs: Any, path: str) -> bytes:
        found = fs.cat_file(path, start=start, end=end)
        if len(found) == end - start:
            return found
        if len(found) > end - start:
            raise InputError(f"{address}: its server sends whole files, expected one that serves ranges")
        raise EOFError(f"{len(found)} of {end - start} bytes at {start} arrived")

    try:
        return _tried(address, work) if end > start else b""
    except FileNotFoundError:
        raise InputError(f"{address} does not exist any more") from None


def read_whole(address: Address, limit: int, flag: str = "") -> bytes:
    """All bytes of a file. InputError: it has more than `limit`, which `flag` sets, or cannot be read."""
    size = size_of(address)
    if size > limit:
        by = f" ({flag})" if flag else ""
        raise InputError(f"{address} has {size / 2**30:.3g} GiB, expected at most {limit / 2**30:.3g} GiB{by}")

    def work(fs: Any, path: str) -> bytes:
        found = fs.cat_file(path)
        if len(found) != size:
            raise EOFError(f"{len(found)} of {size} bytes arrived")
        return found

    try:
        return _tried(address, work)
    except FileNotFoundError:
        raise InputError(f"{address} does not exist any more") from None


class RemoteFile(io.RawIOBase):
    """A file that is read in parts; 32 MiB of it are kept in memory.

    block: bytes read at once where fewer are asked for.

    InputError: its size is unknown, or a part cannot be read.
    """

    def __init__(self, address: Address, block: int = _BLOCK) -> None:
        super().__init__()
        self.address, self.size, self._block = address, size_of(address), block
        self._position = 0
        self._held: OrderedDict[int, bytes] = OrderedDict()  # by number, the last used at the end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if begin + offset < 0:
            raise ValueError(f"position {begin + offset} is negative")
        self._position = begin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        begin, end = self._position, min(self._position + len(view), self.size)
        if end <= begin:
            return 0
        if end - begin > self._block:
            view[: end - begin] = read_range(self.address, begin, end)
            self._position = end
            return end - begin
        for number in range(begin // self._block, -(-end // self._block)):
            first = number * self._block
            block = self._read_block(number)
            low, high = max(begin, first), min(end, first + len(block))
            view[low - begin : high - begin] = block[low - first : high - first]
        self._position = end
        return end - begin

    def _read_block(self, number: int) -> bytes:
        if number not in self._held:
            first = number * self._block
            self._held[number] = read_range(self.address, first, min(first + self._block, self.size))
            while len(self._held) > _BLOCKS:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]

    def readall(self) -> bytes:
        return self.read(max(0, self.size - self._position)) or b""


def open_whole(place: Place, limit: int, flag: str = "") -> IO[bytes]:
    """Open a file that is read as a whole: one of another storage is in memory, see `read_whole`."""
    return io.BytesIO(read_whole(place, limit, flag)) if isinstance(place, Address) else open(place, "rb")


def local_copy(address: Address, expected: str) -> Path:
    """A copy of a file on this machine, made once by each process and removed at its end.

    InputError: there is none, it has more than 16 GiB, or it cannot be read.
    """
    key = os.getpid(), address.whole
    if key not in _copies:
        try:
            size = size_of(address)
        except InputError as error:
            raise InputError(f"{error}, expected {expected}") from None
        if size > _LARGEST_COPY:
            raise InputError(f"{address} has {size >> 30} GiB, expected at most {_LARGEST_COPY >> 30} GiB")
        target = Path(tempfile.mkdtemp(prefix="copy-", dir=_folder_of_process())) / _file_name(address)

        def work(fs: Any, path: str) -> None:
            fs.get_file(path, str(target))
            if (found := target.stat().st_size) != size:
                raise EOFError(f"{found} of {size} bytes arrived")

        try:
            _tried(address, work)
        except FileNotFoundError:
            raise InputError(f"{address} does not exist any more, expected {expected}") from None
        _copies[key] = target
    return _copies[key]


def _file_name(address: Address) -> str:
    """A name for a local copy: the address's own unless it would lead elsewhere."""
    name = address.name
    return name if Path(name).name == name and "\0" not in name else "copy"


def _folder_of_process() -> str:
    """A temporary folder that this process, and no forked one, removes at its end."""
    process = os.getpid()
    if process not in _folders:
        _folders[process] = folder = tempfile.mkdtemp(prefix="bcnet-")
        atexit.register(lambda: os.getpid() == process and shutil.rmtree(folder, ignore_errors=True))
    return _folders[process]


def reads_addresses(expected: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Let a reader of one local file, its first argument, also read an address, by a copy. Errors name the address."""

    def decorate(read: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(read)
        def reader(path: Any, *more: Any, **options: Any) -> T:
            place = place_of(path)
            if not isinstance(place, Address):
                return read(path, *more, **options)
            local = local_copy(place, expected)
            try:
                return read(local, *more, **options)
            except InputError as error:
                raise InputError(str(error).replace(str(local.parent), str(place.parent))) from None

        return reader

    return decorate


def store(local: Path, target: Address) -> None:
    """Write a local file to an address. It appears as a whole or not at all. InputError: it cannot be written."""
    if target.is_web:
        raise InputError(f"{target} is on a web server, expected an object store or a local path to write to")

    def work(fs: Any, path: str) -> None:
        fs.put_file(str(local), path)

    try:
        _tried(target, work)
    except (FileNotFoundError, NotImplementedError) as error:
        raise InputError(f"{target} cannot be written ({type(error).__name__})") from None


def remove(target: Address) -> None:
    """Delete a file; none is no error. InputError: it cannot be deleted."""
    with contextlib.suppress(FileNotFoundError):
        _tried(target, lambda fs, path: fs.rm_file(path))


def listed(folder: Address) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Name, and size and version, of each file in a folder, in any order.

    The listing of S3 is read page by page; other storages give theirs as a whole. A folder that does not exist has no
    file: object stores have none. InputError: it cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        for info in _entries(folder):
            place = str(info["name"])
            name = place.rpartition("/")[2]
            if folder.is_web:
                name = urllib.parse.unquote(name.partition("?")[0])
            if name and "/" not in name and info.get("type") != "directory":
                yield name, _facts(info)


def _entries(folder: Address) -> Iterator[dict[str, Any]]:
    fs, path = _filesystem(folder)
    if not hasattr(fs, "_iterdir") or not hasattr(fs, "split_path"):
        yield from _tried(folder, lambda fs, path: fs.ls(path, detail=True))
        return
    from fsspec.asyn import sync

    bucket, key, _ = fs.split_path(path)
    items = fs._iterdir(bucket, prefix=f"{key.rstrip('/')}/" if key else "", delimiter="/")
    # One try: the library asks for a page again by itself, and an iterator that has failed looks like one at its end.
    page: list[dict[str, Any]] | None = None
    while page is None or page:
        page = _tried(folder, lambda fs, path: sync(fs.loop, _page, items), tries=1) or []
        yield from page


async def _page(items: Any) -> list[dict[str, Any]]:
    page: list[dict[str, Any]] = []
    async for item in items:
        page.append(item)
        if len(page) == _PAGE:
            break
    return page
