"""Temporal action proposal generation: BCNet, BMN and G-TAD, fast on plain CPUs and ready for GPUs.

`load` gives a network ready for inference, `ops` the operators on their own, `layers` those of BMN and G-TAD made of
them, `inference` runs a network over an archive of features, `evaluation` has the metrics.
"""

from __future__ import annotations

import importlib
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import evaluation, inference, layers, ops
    from .inference import load

__version__ = "0.2.0"
__all__ = ["evaluation", "inference", "layers", "load", "ops"]


def _is_command() -> bool:
    """Whether Python is about to run a module of this package, as by `python -m bcnet_fast.infer`."""
    if getattr(sys, "argv", [])[:1] != ["-m"]:
        return False
    # The option may follow others in one word, and the module follows in the same word or the next: "-um", "-mNAME".
    words = iter(sys.orig_argv[1:])
    found = next(filter(None, (re.fullmatch(r"-[^-cWX]*?m(.*)", word) for word in words)), None)
    return found is not None and (found[1] or next(words, "")).partition(".")[0] == __name__


# Until `cli.parser.run` takes over, Ctrl-C ends a command at once: an interrupted import may print a traceback, abort
# or go on. sys.argv[0] is "-m" only while Python looks for the module to run, so that the library changes nothing.
if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# Imported on first use: the evaluator and the feature inspector start in a fraction of the time that torch takes.
def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module(".inference", __name__).load
    if name in ("evaluation", "inference", "layers", "ops"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
