"""The two errors that the package raises on purpose for what a user can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the file (or flag), what was expected and what was found; the commands print it
    and exit with code 2.
    """


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot be used here; the message says why."""
