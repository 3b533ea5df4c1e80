"""What all entry points share: how an error becomes an exit code, and how progress is shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import BackendError, InputError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser with `HelpFormatter`, whose errors are one line like all others, without the usage text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def run(main: Callable[[], int]) -> None:
    """Run an entry point: 0 done, 1 done but something failed, 2 one clear line about bad input, 130 interrupted."""
    try:
        code = main()
        sys.stdout.flush()
    except (InputError, BackendError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: nothing is wrong, and nobody is left to tell.
        sys.stdout = None
        code = 0
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    raise SystemExit(code)
