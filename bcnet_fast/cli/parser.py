"""The parser of all commands, the name a command shows for itself, and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..errors import BackendError, InputError
from ..results.figure import FORMATS

_MODULE = "python -m bcnet_fast."  # precedes the name of a command in --help and hints


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, like all others, without the usage text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def started_by_script() -> bool:
    """Whether this process is the console script `bcnet`."""
    return Path(sys.argv[0]).stem == "bcnet"


def program(command: str) -> str:
    """How the user starts a command: `bcnet infer` from the console script, else `python -m bcnet_fast.infer`."""
    return f"bcnet {command}" if started_by_script() else f"{_MODULE}{command}"


def command_parser(command: str, description: str | None) -> Parser:
    """Parser of a command, with --version. Examples in the description use the `program` the user started."""
    parser = Parser(prog=program(command), description=(description or "").replace(_MODULE, program("")))
    parser.add_argument("--version", action="version", version=f"bcnet_fast {__version__}")
    return parser


def add_plot_flags(group: argparse._ArgumentGroup, pictures: str) -> None:
    """Add --plot and --plot-format, which mean the same in every command; `pictures` says what is drawn."""
    group.add_argument(
        "--plot",
        metavar="PATH",
        help=f"draw {pictures} into this folder; a .png, .svg or .pdf is the file of one picture",
    )
    group.add_argument("--plot-format", choices=FORMATS, help="format of the pictures in the folder (default: png)")


def require_at_least(options: object, **lowest: int) -> None:
    """Raise InputError if a flag is below its lowest value; None means the flag is absent."""
    for name, low in lowest.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise InputError(f"--{name.replace('_', '-')} is {value}, expected at least {low}")


def run(main: Callable[[], int]) -> None:
    """Run an entry point and exit: 0 done, 1 some videos failed, 2 bad input (one line on stderr), 130 interrupted."""
    try:
        code = main()
        sys.stdout.flush()
    except (InputError, BackendError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        # The reader of a pipe (head, less) has closed it, which is no error.
        sys.stdout = None
        code = 0
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    raise SystemExit(code)
