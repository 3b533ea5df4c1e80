"""Addresses of other storages, such as s3://bucket/folder, which print without passwords and signatures."""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

from ..errors import InputError

WEB = ("http", "https")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>()]+")


class Address(str):
    """A file or folder in another storage. `str()` and f-strings give `shown_address`; pickling keeps the whole.

    facts: size in bytes and version, as far as a listing has stated them.
    """

    facts: tuple[int, int] | None

    def __new__(cls, text: str, facts: tuple[int, int] | None = None) -> Address:
        address = super().__new__(cls, text)
        address.facts = facts
        return address

    @property
    def whole(self) -> str:
        """The address with everything that it takes to reach it."""
        return str.__str__(self)

    def __str__(self) -> str:
        return shown_address(self.whole)

    def __repr__(self) -> str:
        return repr(str(self))

    def __format__(self, specification: str) -> str:
        return format(str(self), specification)

    @property
    def _parts(self) -> tuple[str, str]:
        """Place and query, which begins with `?`."""
        before, mark, query = self.whole.partition("?") if self.is_web else (self.whole, "", "")
        return before, mark + query

    @property
    def protocol(self) -> str:
        return self.whole.partition("://")[0].lower()

    @property
    def is_web(self) -> bool:
        return self.protocol in WEB

    @property
    def name(self) -> str:
        """The last part, such as that of a path."""
        name = self._parts[0].rstrip("/").rpartition("/")[2]
        return urllib.parse.unquote(name) if self.is_web else name

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]

    @property
    def parent(self) -> Address:
        before, query = self._parts
        return Address(before.rstrip("/").rpartition("/")[0] + query)

    def with_name(self, name: str) -> Address:
        return self.parent / name

    def __truediv__(self, name: str) -> Address:
        before, query = self._parts
        return Address(f"{before.rstrip('/')}/{urllib.parse.quote(name) if self.is_web else name}{query}")


Place = Path | Address


def is_address(path: object) -> bool:
    """Whether a path names another storage, such as `s3://bucket/name`."""
    return isinstance(path, str) and _ADDRESS.match(path) is not None


def place_of(path: str | os.PathLike) -> Place:
    """A local path, or the address of another storage. `file://` is local. InputError: that names another machine."""
    if isinstance(path, Address) or not is_address(path):
        return path if isinstance(path, Address) else Path(path)
    text = str(path)
    if text.lower().startswith("file://"):
        try:
            parts = urllib.parse.urlparse(text)
        except ValueError:  # a bracket in the place of the machine
            parts = None
        if parts is None or parts.netloc.lower() not in ("", "localhost"):
            raise InputError(f"{text!r:.200} names no file of this machine, expected file:///PATH")
        return Path(urllib.parse.unquote(parts.path))
    return Address(text)


def shown_address(text: str) -> str:
    """An address without user, password and signature; other text as it is."""
    protocol, mark, rest = text.partition("://")
    if not mark:
        return text
    host, slash, path = rest.partition("/")
    user, at, server = host.rpartition("@")
    if at and (protocol.lower() in WEB or ":" in user):
        host = server
    path = re.sub(r"\?[^?=]*=.*|(?<=\w)#.*" if protocol.lower() not in WEB else r"[?#].*", "", path)
    return f"{protocol}://{host.partition('?')[0]}{slash}{path}"


def without_secrets(text: str) -> str:
    """A message of a library, with the addresses in it as `shown_address`."""
    return _IN_TEXT.sub(lambda found: shown_address(found[0]), text)
