"""`bcnet`, or `python -m bcnet_fast`: lists the commands and runs them."""

from __future__ import annotations

import sys

from .cli.commands import dispatch
from .cli.parser import run, started_by_script


def main() -> None:
    start = "bcnet" if started_by_script() else "python -m bcnet_fast"
    run(lambda: dispatch(sys.argv[1:], start))


if __name__ == "__main__":
    main()
