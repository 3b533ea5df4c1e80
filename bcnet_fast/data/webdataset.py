"""Features in tars, as WebDataset writes them: a member `<id>.npy` or `<id>.features.npy` for each video.

Members are read at their place in the file and never unpacked, so that their names lead nowhere.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from ..errors import InputError
from ..storage.address import Address, Place
from ..storage.arrays import StoredArray
from ..storage.files import readable, require_file
from ..storage.remote import RemoteFile, read_range
from .source import ARRAY_NAMES, ReadLimits, SharedFiles

_EXPECTED = "a tar with .npy members, not compressed"
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LONGEST_HEADER = 1 << 20  # bytes of the names and attributes of a member
_LONGEST_END = 1 << 20  # bytes after the last member: zeros that fill up a record
_HEADER_BYTES = 1 << 16  # bytes of a file in another storage that are read for each header
_MOST_HEADERS = 1_000  # for all members
_BLOCK = tarfile.BLOCKSIZE


def is_tar(name: str) -> bool:
    """Whether a file is named like a tar, compressed ones included; `.pth.tar` are checkpoints."""
    lower = name.lower()
    return lower.endswith((".tar", *_PACKED_SUFFIXES)) and not lower.endswith((".pth.tar", ".pt.tar"))


class Tars(SharedFiles):
    """Members of one or more tars, from an index that is made in one pass over the headers."""

    expected = "a .npy member of a tar"

    def __init__(self, files: Sequence[Place], kind: str, limits: ReadLimits) -> None:
        self.kind, self.limits = kind, limits
        self._files = list(files)
        self.videos: dict[str, tuple[int, int, int]] = {}  # number of the file, first byte, bytes
        self._unusable: dict[str, str] = {}
        # Beside `<id>.features.npy`, other .npy members of a sample are something else.
        plain: dict[str, tuple[int, int, int]] = {}
        twice: list[str | None] = [None, None]
        for number, path in enumerate(self._files):
            for member, problem in _members(path):
                named = _video_of(member.name)
                if named is None:
                    continue
                video, is_plain = named
                videos = plain if is_plain else self.videos
                if video in videos:
                    other = self._files[videos[video][0]]
                    twice[is_plain] = twice[is_plain] or f"{other} and {path} have a member of video {video!r}"
                videos[video] = number, member.offset_data, member.size
                if problem:
                    self._unusable[video] = problem
        if repeated := twice[not self.videos]:
            raise InputError(f"{repeated}, expected one for each video")
        self.videos = self.videos or plain

    def open(self, name: str) -> Any:
        number, begin, size = self.videos[name]
        path = self._files[number]
        if name in self._unusable:
            raise InputError(f"{self.where(name)} is {self._unusable[name]}, expected {self.expected}")
        if not isinstance(path, Address):
            return StoredArray(lambda: io.BufferedReader(_Part(open(path, "rb"), begin, size)))
        # Arrays may be stored as float64, and a header comes before them.
        self.limits.require(size // 2 - (1 << 20), self.where(name), [size])
        content = read_range(path, begin, begin + size)
        return StoredArray(lambda: io.BytesIO(content))


def _video_of(member: str) -> tuple[str, bool] | None:
    """Id, and whether only `.npy` follows it; None where the member has no features."""
    base = member.rpartition("/")[2]
    stem, suffix = os.path.splitext(base)
    if base.startswith(".") or suffix.lower() != ".npy":
        return None
    for name in ARRAY_NAMES:
        if stem.endswith(f".{name}"):
            return stem[: -len(name) - 1], False
    return stem, True


def _members(path: Place) -> Iterator[tuple[tarfile.TarInfo, str | None]]:
    """The members of a tar that are not folders, and why one cannot be read.

    InputError: it is compressed, damaged or cut. Then it is unknown which videos it has.
    """
    remote = isinstance(path, Address)
    raw = RemoteFile(path, _HEADER_BYTES) if remote else open(require_file(path, _EXPECTED), "rb")
    with readable(path, _EXPECTED), raw:
        start = raw.read(8) or b""
        packed = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), None)
        if packed:
            raise InputError(f"{path} is compressed ({packed}), expected a plain tar, whose members can be found again")
        size = raw.seek(0, os.SEEK_END)
        raw.seek(0)
        headers: Any = _Headers(raw)
        tar: Any
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # or all of them stay in memory
                if len(tar.pax_headers) > _MOST_HEADERS:  # each member has a copy of them
                    raise InputError(f"{path} has {len(tar.pax_headers)} global headers, expected {_EXPECTED}")
                if member.isdir():
                    continue
                kind = "a link" if member.islnk() or member.issym() else "a device" if not member.isreg() else None
                kind = "sparse" if member.type == tarfile.GNUTYPE_SPARSE or member.sparse is not None else kind
                beyond = member.offset_data + member.size > size
                yield member, "larger than its tar" if beyond and not kind else kind
            end = tar.offset
        raw.seek(end)
        last = raw.read(_BLOCK) or b""
        if last.strip(b"\0") or len(last) < _BLOCK:
            raise InputError(f"{path} is damaged or cut at byte {end}, expected {_EXPECTED}")
        if size - end > _LONGEST_END:
            raise InputError(f"{path} has data after its end at byte {end}, expected a single tar")


class _Headers:
    """A file from which `tarfile` reads headers only, in order. ValueError: a header asks for something else."""

    def __init__(self, raw: IO[bytes] | RemoteFile) -> None:
        self._raw = raw
        self.tell = raw.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise ValueError(f"a header has {size} bytes")
        return self._raw.read(size) or b""

    def seek(self, position: int) -> int:
        if position < self._raw.tell() - 1:
            raise ValueError(f"a header at byte {self._raw.tell()} leads back to byte {position}")
        return self._raw.seek(position)


class _Part(io.RawIOBase):
    """A member of a tar, which is closed with it."""

    def __init__(self, file: IO[bytes], begin: int, size: int) -> None:
        super().__init__()
        self._file, self._left = file, size
        file.seek(begin)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(min(len(buffer), self._left))
        self._left -= len(content)
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
