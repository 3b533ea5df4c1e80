"""Temporal action proposal generation: BCNet, BMN and G-TAD, fast on plain CPUs and ready for GPUs.

`load` gives a network ready for inference, `ops` the operators on their own, `layers` those of BMN and G-TAD made of
them, `inference` runs a network over an archive of features, `evaluation` has the metrics.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import evaluation, inference, layers, ops
    from .inference import load

__version__ = "0.2.0"
__all__ = ["evaluation", "inference", "layers", "load", "ops"]


# Imported on first use: the evaluator and the feature inspector start in a fraction of the time that torch takes.
def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module(".inference", __name__).load
    if name in ("evaluation", "inference", "layers", "ops"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
