"""One file to mutate, and a command that reads it."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attack.mutations import Mutation


@dataclass(frozen=True)
class Target:
    """One file to mutate, and a command that reads it.

    folder: below the root of all targets; a copy of it is the working folder of the command.
    victim: file to mutate; None: one of the arguments, see `argument`.
    outputs: files that must not exist when the command ends with exit code 2.
    named: words of which an error line must have one.
    kept: videos of out.json that no mutation may change.
    """

    name: str
    folder: str
    command: tuple[str, ...]
    victim: str | None
    mutations: tuple[Mutation, ...]
    named: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    argument: int | None = None


def quietly(folder: Path, command: Callable[[list[str]], object], *arguments: str) -> None:
    """Run a command in a folder and discard its output."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            command(list(arguments))
    finally:
        os.chdir(before)
