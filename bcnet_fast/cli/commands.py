"""The commands: their names and what each is for. Imports none of them, so that the list is there at once."""

from __future__ import annotations

import difflib
import importlib

from .. import __version__
from ..errors import InputError

COMMANDS = {
    "infer": "write the proposals of every video of an archive of features; without flags, run the demo",
    "train": "train BCNet, BMN or G-TAD on your features, or on synthetic videos",
    "evaluate": "print AR@AN, AUC and mAP of a result file",
    "convert": "turn public checkpoints into one safetensors file",
    "inspect": "print what feature files hold, and the flags to use them with",
    "doctor": "print what was built, and test every operator on this machine",
}


def listing(start: str) -> str:
    """The commands, one line each; `start` is what the user types before the name of one."""
    width = max(map(len, COMMANDS))
    lines = [f"bcnet_fast {__version__}: temporal action proposals for untrimmed videos", ""]
    lines += [f"usage: {start} COMMAND [--help] ...", ""]
    lines += [f"  {name:<{width}}  {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(lines)


def dispatch(argv: list[str], start: str) -> int:
    """Run the command that `argv` begins with; returns its exit code. InputError for an unknown one."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(listing(start))
        return 0
    if name == "--version":
        print(f"bcnet_fast {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {name!r}; {hint}")
    module = importlib.import_module(f"bcnet_fast.{name}")
    return module.main(rest)
