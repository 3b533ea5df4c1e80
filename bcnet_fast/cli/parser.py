"""The parser of all commands, the name a command shows for itself, and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..errors import BackendError, InputError
from ..results.figure import FORMATS
from ..storage.address import Address, is_address, place_of
from ..text import alternatives, did_you_mean, nearest, shortened, shown

_PATHS = ("FILE", "PATH", "DIR", "PARTS", "RESULTS")  # how help shows arguments that are paths
_UNWRITABLE = {errno.ENOSPC, errno.EFBIG, errno.EIO}
_MODULE = "python -m bcnet_fast."  # precedes the name of a command in --help and hints
_FLAG = re.compile(r"(--?[A-Za-z][^\s=]*)(=.*)?", re.DOTALL)  # as opposed to a negative number or a value with spaces

# Messages of argparse, and their form in this package. A flag with two names is called by the first one.
_PLAIN = [
    (re.compile(r"^the following arguments are required: ([^,/]+)(?:/\S+)?(, .*)?$"), r"\1 is required"),
    (re.compile(r"^argument ([^:/]+)(?:/\S+)?: invalid int value: (.*)$"), r"\1 is \2, expected a whole number"),
    (re.compile(r"^argument ([^:/]+)(?:/\S+)?: invalid float value: (.*)$"), r"\1 is \2, expected a number"),
    (re.compile(r"^argument ([^:/]+)(?:/\S+)?: (?=expected)"), r"\1 has no value, "),
    (re.compile(r"^ambiguous option: (\S+) could match (.*)$"), r"\1 is ambiguous, expected one of \2"),
]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, like all others, and name the flag or choice that was meant."""

    def __init__(self, addresses: Sequence[str] = (), **options: Any) -> None:
        """addresses: names of the values that may be in another storage; other paths are local."""
        super().__init__(formatter_class=HelpFormatter, **options)
        self._addresses = addresses

    def error(self, message: str) -> NoReturn:
        for pattern, plain in _PLAIN:
            message = pattern.sub(plain, message)
        raise InputError(message if message.endswith("?") else f"{message}; see --help")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        # Checked before argparse, which would report a mistyped required flag as missing.
        for argument in args[: args.index("--")] if "--" in args else args:
            found = _FLAG.fullmatch(argument)
            if found and not self._is_known(found[1]):
                by_name = {known.lstrip("-"): known for known in self._option_string_actions}
                near = nearest(found[1].lstrip("-"), by_name)
                self.error(f"unknown flag {found[1]}" + (f"; did you mean {by_name[near]}?" if near else ""))
        values, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            if str(action.metavar).partition(".")[0] in _PATHS and hasattr(values, action.dest):
                setattr(values, action.dest, self._checked_place(action, getattr(values, action.dest)))
        return values, rest

    def _checked_place(self, action: argparse.Action, value: Any) -> Any:
        """Convert a path, or each of several, to an `Address` where it is one."""
        if isinstance(value, list | tuple):
            return type(value)(self._checked_place(action, part) for part in value)
        if not is_address(value):
            return value
        if action.dest not in self._addresses:
            name = action.option_strings[0] if action.option_strings else str(action.metavar)
            self.error(f"{name} is {place_of(value)}, expected a local path")
        place = place_of(value)
        return place if isinstance(place, Address) else str(place)

    def _is_known(self, flag: str) -> bool:
        """Whether `flag` is a flag, or the beginning of one that argparse completes."""
        return any(known.startswith(flag) for known in self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name, choices = action.option_strings[0], [str(choice) for choice in action.choices]
            expected = f"expected {alternatives(choices)}{did_you_mean(str(value), choices)}"
            self.error(f"{name} is {value!r:.80}, {expected}")


def started_by_script() -> bool:
    """Whether this process is the console script `bcnet`."""
    return Path(sys.argv[0]).stem == "bcnet"


def program(command: str) -> str:
    """How the user starts a command: `bcnet infer` from the console script, else `python -m bcnet_fast.infer`."""
    return f"bcnet {command}" if started_by_script() else f"{_MODULE}{command}"


def command_parser(command: str, description: str | None, addresses: Sequence[str] = ()) -> Parser:
    """Parser of a command, with --version. Examples in the description use the `program` the user started.

    addresses: see `Parser`.
    """
    parser = Parser(addresses, prog=program(command), description=(description or "").replace(_MODULE, program("")))
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


def require_in_bounds(options: object, **bounds: int | tuple[int, int]) -> None:
    """Raise InputError if a flag is below its lowest value, or above its highest one. None means the flag is absent."""
    for name, bound in bounds.items():
        low, high = bound if isinstance(bound, tuple) else (bound, math.inf)
        flag, value = f"--{name.replace('_', '-')}", getattr(options, name)
        if value is not None and value < low:
            raise InputError(f"{flag} is {value}, expected at least {low}")
        if value is not None and value > high:
            raise InputError(f"{flag} is {value}, expected at most {high}")


class Ended(KeyboardInterrupt):
    """A signal other than SIGINT asks this process to end; finished work is kept as with Ctrl-C."""


def _end(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise Ended(number)


_HANDLERS: dict[int, Any] = {
    getattr(signal, name): handler
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGTERM", _end), ("SIGHUP", _end))
    if hasattr(signal, name)
}


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Let signals end the process without a line: an import into which one raises an exception may abort or go on."""
    handlers = {number: found for number in _HANDLERS if callable(found := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(main: Callable[[], int]) -> None:
    """Run an entry point and exit.

    0 done, 1 some videos failed, 2 bad input (one line on stderr), 128 + N ended by signal N: 130 by Ctrl-C, 143 by
    SIGTERM, 141 because the reader of a pipe has closed it.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # Characters that the terminal or file cannot encode are printed as escapes and do not end the run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for number, handler in _HANDLERS.items():
        if signal.getsignal(number) == signal.SIG_DFL:  # and not ignored, as under nohup
            signal.signal(number, handler)
    try:
        code = main()
        sys.stdout.flush()
    except (InputError, BackendError) as error:
        code = _say(f"error: {shown(str(error))}", 2)
    except BrokenPipeError:
        sys.stdout = None
        code = 141
    except (OSError, MemoryError) as error:
        code = _say(f"error: {_reason(error)}", 2)
    except Ended as error:
        code = _say("ended by a signal", 128 + error.args[0])
    except KeyboardInterrupt:
        code = _say("interrupted", 130)
    raise SystemExit(code)


def _reason(error: OSError | MemoryError) -> str:
    # Only standard streams raise without a file name: writing to files is checked where they are written.
    if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
        return f"standard output cannot be written: {error.strerror}"
    return shown(str(error)) or "out of memory"


def _say(line: str, code: int) -> int:
    with contextlib.suppress(OSError):  # the reader of stderr may be gone, too
        print(shortened(line), file=sys.stderr)
    return code


def _open_closed_streams() -> None:
    """Discard output to standard streams that the caller has closed, such as by `>&-`.

    Otherwise a file that is opened later would get the stream's descriptor, and receive its output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Gets the descriptor of the closed stream, unless it is taken.
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))
