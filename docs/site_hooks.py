"""What mkdocs runs while it builds the site: pages get the --help of commands, and the settings of config.py."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().parent.parent / "bcnet_fast" / "config.py"
HELP = re.compile(r"<!-- help: (\w+) -->")
SETTINGS = re.compile(r"<!-- settings: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- help: COMMAND -->` by its help text, and `<!-- settings: CLASS -->` by a table of its fields."""
    markdown = HELP.sub(lambda found: f"``` {{ .text .help }}\n{help_of(found[1])}```", markdown)
    return SETTINGS.sub(lambda found: settings_of(found[1]), markdown)


def help_of(command: str) -> str:
    """The help text of a command. CalledProcessError where it has none, which fails the build."""
    arguments = [sys.executable, "-m", f"bcnet_fast.{command}", "--help"]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout


def settings_of(name: str) -> str:
    """The docstring of a dataclass of config.py, and its fields with their defaults and comments as a table."""
    source = CONFIG.read_text(encoding="utf-8")
    lines = source.splitlines()
    found = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name)
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for field in found.body:
        if isinstance(field, ast.AnnAssign) and field.value is not None:
            default, meaning = ast.unparse(field.value), lines[field.end_lineno - 1].partition("  # ")[2]
            comments = itertools.takewhile(
                lambda line: line.startswith("# "), map(str.strip, lines[field.lineno - 2 :: -1])
            )
            meaning = meaning or " ".join(line[2:] for line in reversed([*comments]))
            rows.append(f"| `{ast.unparse(field.target)}` | `{default}` | {meaning} |")
    return f"{ast.get_docstring(found)}\n\n" + "\n".join(rows)
