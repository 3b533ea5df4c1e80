"""Numbers and names as words in messages."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int, noun: str) -> str:
    """`1 video`, `2 videos`, `2 processes`."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def some(names: Sequence[str]) -> str:
    """The first three names, and an ellipsis where there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
