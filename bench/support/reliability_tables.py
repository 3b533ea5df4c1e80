"""Tables of docs/reliability.md from the results of tests/attack."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .markdown import number, table


def attack(found: dict[str, Any]) -> str:
    broken = Counter(failure["target"] for failure in found["failures"])
    codes, targets = ("exit 0", "exit 1", "exit 2"), found["targets"]
    lines = [[name, *(str(of.get(c, 0)) for c in codes), str(broken[name])] for name, of in targets.items()]
    note = f"*{found['inputs']:,} inputs; the longest took {number(found['longest_s'])} s.*\n\n"
    header = ["input", "read (exit 0)", "a video failed (1)", "refused (2)", "promise broken"]
    return note + table(header, lines)


def kills(found: dict[str, Any]) -> str:
    names = ("runs", "kills", "main", "worker", "group", "lost", "doubled")
    lines = [
        [row["part_format"], *(str(row[name]) for name in names), "yes" if row["equal"] else "no"]
        for row in found["rows"]
    ]
    header = ["parts", "runs", "killed", "the process", "a worker", "all of them", "videos lost", "videos doubled"]
    return table([*header, "bytes equal"], lines)
