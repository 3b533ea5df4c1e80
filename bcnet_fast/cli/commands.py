"""Names and purposes of the commands. Imports none of them, so that the list appears at once."""

from __future__ import annotations

import importlib

from .. import __version__
from ..errors import InputError
from ..text import did_you_mean
from .parser import ended_at_once

COMMANDS = {
    "infer": "write proposals for every video of a feature archive; without flags, run the demo",
    "extract": "compute features of video files",
    "merge": "join the parts of infer --shard or --ray to one result file",
    "train": "train a network of either stage on your features, or on synthetic videos",
    "refine": "give proposals classes and better boundaries by P-GCN or MUSES-Net",
    "evaluate": "print AR@AN, AUC and mAP of a result file",
    "view": "make one HTML page to look at a result file, or export it to other tools",
    "convert": "convert public checkpoints to one safetensors file",
    "inspect": "show what feature files contain and which flags they need",
    "doctor": "show what was built and test every operator on this machine",
}


def listing(start: str) -> str:
    """One line per command; `start` is what the user types before its name."""
    width = max(map(len, COMMANDS))
    lines = [f"bcnet_fast {__version__}: temporal action proposals for untrimmed videos", ""]
    lines += [f"usage: {start} COMMAND [--help] ...", ""]
    lines += [f"  {name:<{width}}  {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(lines)


def dispatch(argv: list[str], start: str) -> int:
    """Run the command named by the first argument and return its exit code. InputError: unknown command."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(listing(start))
        return 0
    if name == "--version":
        print(f"bcnet_fast {__version__}")
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {name!r}{hint}")
    with ended_at_once():
        module = importlib.import_module(f"bcnet_fast.{name}")
    return module.main(rest)
