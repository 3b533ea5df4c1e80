"""What mkdocs runs while it builds the site: the page of each command gets the command's own --help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

HELP = re.compile(r"<!-- help: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- help: NAME -->` by what `python -m bcnet_fast.NAME --help` prints."""
    return HELP.sub(lambda found: f"```text\n{help_of(found[1])}```", markdown)


def help_of(command: str) -> str:
    """The help text of a command. CalledProcessError where it has none, which fails the build."""
    arguments = [sys.executable, "-m", f"bcnet_fast.{command}", "--help"]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout
