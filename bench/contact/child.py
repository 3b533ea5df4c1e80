"""The process of one step: import what it needs, wait for the driver's word, run it, and say how it ended.

Started by contact.runner alone, as `python -m contact.child`. Standard input brings the limit in seconds, and stays
open while the driver lives.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .context import Context, Skip, Stop, summary


def find(target: str) -> Callable[[Context], None]:
    """The function of "module:function"; the module may be the path of a file."""
    module, _, name = target.rpartition(":")
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location("step", module)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    else:
        loaded = importlib.import_module(module)
    return getattr(loaded, name)


def end_with_driver() -> None:
    """End this process when standard input ends, which is when the driver does."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    request: dict[str, Any] = json.loads(sys.argv[1])
    function, failure = None, None
    try:
        function = find(request["target"])
    except Exception as error:  # reported when it is this step's turn
        failure = error
    word = os.read(0, 64)
    if not word:
        os._exit(1)
    limit, sent = map(float, word.split())
    limit -= min(max(0.0, time.time() - sent), 0.9 * limit)  # time that importing took since then
    end_with_driver()
    # Where the threads are shortly before the driver kills this process; from C, so it needs no lock of Python's.
    faulthandler.dump_traceback_later(limit - min(2.0, 0.3 * limit))
    if hasattr(signal, "alarm"):
        signal.alarm(int(limit) + 10)  # the default action ends the process, even if it hangs and the driver is gone
    context = Context(request["device"], Path(request["out"]), Path(request["events"]), limit)
    try:
        if failure is not None:
            raise failure
        function(context)
        context.finish()
    except Skip as skip:
        context.record("end", {"skipped": str(skip)})
    except Stop as stop:
        context.record("failures", str(stop))
        context.record("end", {"stop": str(stop)})
    except Exception as error:
        traceback.print_exc()
        context.record("end", {"error": summary(error)})
    sys.stdout.flush()
    sys.stderr.flush()
    # The end of a process that holds graphs is tested by a step of its own, and must not spoil the others.
    os._exit(0)


if __name__ == "__main__":
    main()
