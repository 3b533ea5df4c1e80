"""Numbers and names as words in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def count(number: int, noun: str) -> str:
    """`1 video`, `2 videos`, `2 processes`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def some(names: Sequence[str]) -> str:
    """The first three names, and an ellipsis where there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def alternatives(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean infer?`, the known name nearest to a mistyped one; empty where none is near."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a mistyped one, or None where none is alike."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)
