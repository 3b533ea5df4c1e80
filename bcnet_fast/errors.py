"""The two errors that the package raises for what a user can fix."""

from __future__ import annotations

from .text import shown


class InputError(ValueError):
    """A file or flag cannot be used.

    The message is one line: the file or flag, what it is, and what is required. Commands print it and exit with code 2.
    Characters of file names and contents that would break the line, or control a terminal, are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shown(message))


class BackendError(RuntimeError):
    """A backend that was requested by name cannot run here; the message says why."""
