"""One file to mutate, and a command that reads it."""

from __future__ import annotations

from dataclasses import dataclass

from attack.mutations import Mutation


@dataclass(frozen=True)
class Target:
    """One file to mutate, and a command that reads it.

    folder: below the root of all targets; a copy of it is the working folder of the command.
    victim: file to mutate; None: one of the arguments, see `argument`.
    outputs: what must not exist where the command ends with exit code 2.
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
