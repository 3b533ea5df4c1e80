"""What mkdocs runs while it builds the site: pages get the --help of commands, and the settings of config.py."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from typing import Any

from bcnet_fast import config

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
    """The docstring of a dataclass of config.py, and its fields with their defaults and meanings as a table."""
    section = getattr(config, name)
    meanings, own = config.meanings(section), inspect.get_annotations(section)
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(section):
        if field.name in own:
            rows.append(f"| `{field.name}` | `{field.default!r}` | {meanings[field.name]} |")
    return f"{inspect.getdoc(section)}\n\n" + "\n".join(rows)
