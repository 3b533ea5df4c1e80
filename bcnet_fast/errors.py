"""The two errors that the package raises for what a user can fix."""

from __future__ import annotations


class InputError(ValueError):
    """A file or flag cannot be used.

    The message is one line: the file or flag, what it is, and what is required. Commands print it and exit with code 2.
    """


class BackendError(RuntimeError):
    """A backend that was requested by name cannot run here; the message says why."""
