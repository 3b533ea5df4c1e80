"""Numbers, names and values as words in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def count(number: int, noun: str) -> str:
    """`1 video`, `2 videos`, `2 processes`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def some(names: Sequence[str]) -> str:
    """The first three names, and an ellipsis where there are more."""
    return ", ".join(map(shown, names[:3])) + (", ..." if len(names) > 3 else "")


def shown(text: str) -> str:
    """`text` on one line that can be printed anywhere.

    Line breaks, escape codes of terminals, characters that reverse or hide text, and the surrogates that stand for
    bytes outside UTF-8 become escapes such as `\\n` and `\\x1b`.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shortened(text: str, most: int = 4000) -> str:
    """`text`, or its beginning and end around an ellipsis."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def failure_line(video: str, reason: str) -> str:
    """The line about a video that failed, as every command prints it."""
    return f"failed: {shortened(shown(video))}: {shortened(shown(reason))}"


def brief(value: Any, length: int = 80) -> str:
    """The first characters of a value from a file, or its type where it is too large or too deep to be written."""
    try:
        return repr(value)[:length]
    except (ValueError, RecursionError, MemoryError):  # Python writes integers of at most 4300 digits
        return f"a {type(value).__name__}"


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
