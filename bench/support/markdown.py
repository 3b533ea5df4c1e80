"""Figures and tables as the pages of the documentation have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SPACE = "\u00a0"  # keeps a figure and its ratio on one line


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent between 0.001 and 99999; empty for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = max(0, digits - len(str(int(abs(value)))) if abs(value) >= 1 else digits)
    return f"{value:.{decimals}f}"


def times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
