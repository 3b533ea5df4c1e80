"""report.md from the results: failures first, then an overview, then one table a step."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

SHOWN = ("bcnet_fast", "commit", "device", "memory", "driver", "torch", "triton", "python")


def render(
    results: Sequence[dict[str, Any]], *, device: str, date: str, seconds: float, budget: float, steps: int
) -> str:
    """The report on the steps so far, as Markdown that also reads well as plain text."""
    environment = next((r["facts"] for r in results if r["step"] == "environment"), {})
    name = environment.get("device") or {"cpu": "a CPU", "cuda": "a GPU"}.get(device, device)
    lines = [f"# First contact with {name}", ""]
    about = [(shown, environment[shown]) for shown in SHOWN if environment.get(shown)]
    lines += [*_table(["", ""], [("date", date), *about]), ""]
    lines += [_summary(results, seconds, budget, steps), "", "## Failures", ""]
    failing = [r for r in results if r["status"] in ("failed", "timeout", "crashed")]
    if not failing:
        lines += ["None.", ""]
    for result in failing:
        lines += _failure(result)
    lines += ["## Overview", ""]
    overview = [(r["step"], r["status"], f"{r['seconds']:.1f}", r["reason"]) for r in results]
    lines += [*_table(["step", "status", "seconds", "remark"], overview), ""]
    for result in results:
        if result["status"] != "skipped" or result["rows"] or result["facts"] or result["notes"]:
            lines += _step(result)
    return "\n".join(lines).rstrip() + "\n"


def _summary(results: Sequence[dict[str, Any]], seconds: float, budget: float, steps: int) -> str:
    counts: dict[str, int] = {}
    for result in results:
        counts[result["status"]] = counts.get(result["status"], 0) + 1
    parts = ", ".join(f"{counts[status]} {status}" for status in sorted(counts, key=lambda s: (s != "ok", s)))
    waiting = f"; {steps - len(results)} are still to come" if len(results) < steps else ""
    return f"{len(results)} steps: {parts}, in {seconds:.0f} s of {budget:.0f} s{waiting}."


def _failure(result: dict[str, Any]) -> list[str]:
    lines = [f"### {result['step']}: {result['status']}", "", f"{result['reason']}  "]
    lines += [f"after {result['seconds']:.1f} s of {result['limit'] or 0:.0f} s", ""]
    if len(result["failures"]) > 1 or (result["failures"] and result["status"] != "failed"):
        lines += [*(f"- {failure}" for failure in result["failures"]), ""]
    if result["output"]:
        lines += ["```text", *(line.replace("```", "'''") for line in result["output"]), "```", ""]
    return lines


def _step(result: dict[str, Any]) -> list[str]:
    seconds = f", {result['seconds']:.1f} s"
    lines = [f"## {result['title']}", "", f"`{result['step']}`: {result['status']}{seconds}", ""]
    rows = result["rows"]
    text = {name: value for name, value in result["facts"].items() if "\n" in str(value)}
    facts = [(name, value) for name, value in result["facts"].items() if name not in text]
    if facts and not rows:
        lines += [*_table(["", ""], facts), ""]
    else:
        lines += [f"- {name}: {_cell(value)}" for name, value in facts] + ([""] if facts else [])
    if rows:
        header = list(dict.fromkeys(name for row in rows for name in row))
        lines += [*_table(header, [[row.get(name) for name in header] for row in rows]), ""]
    for name, value in text.items():
        lines += [f"{name}:", "", "```text", *str(value).splitlines(), "```", ""]
    if result["notes"]:
        lines += [*(line for note in result["notes"] for line in _wrapped(note)), ""]
    if result["files"]:
        lines += ["Files: " + ", ".join(f"`{file}`" for file in result["files"]), ""]
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent="- ", subsequent_indent="  ", break_long_words=False)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return number(value)
    return str(value).replace("\n", " ").replace("|", "\\|")


def number(value: float) -> str:
    """Three digits that count, without an exponent where the number is of a usual size."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table whose columns are also aligned as plain text, numbers to the right."""
    rows = [list(row) for row in rows]
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    right = [
        any(isinstance(row[i], int | float) and not isinstance(row[i], bool) for row in rows)
        or (bool(rows) and all(_is_number(_cell(row[i])) for row in rows))
        for i in range(len(header))
    ]
    rule = ["-" * (width - 1) + (":" if to_right else "-") for width, to_right in zip(widths, right, strict=True)]
    return [
        "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)) + " |"
        for row in [cells[0], rule, *cells[1:]]
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
