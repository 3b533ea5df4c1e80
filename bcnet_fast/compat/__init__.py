"""Drop-in modules for other toolboxes: what they compile themselves, and evaluators that run on any NumPy.

* `nms_1d_cpu`: the extension of ActionFormer, TriDet, DyFADet and OpenTAD, with the same bits.
* `Align1D`: the CUDA extension of G-TAD and OpenTAD in PyTorch, for CPUs and GPUs.
* `activate`: importing it makes `import nms_1d_cpu` and `import Align1D` find these where no compiled ones are.
* `ANETdetection`: ActionFormer's evaluator. `tridet.ANETdetection` is that of TriDet and DyFADet.
* `mAP`, `Recall`: OpenTAD's evaluators.
* `align1d`, `Align1DLayer`: G-TAD's function and layer.

docs/compat.md shows the line to add to each project.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actionformer import ANETdetection
    from .Align1D import Align1DLayer, align1d
    from .opentad import Recall, mAP

# Imported when first used, so that `nms_1d_cpu` alone does not load the evaluators.
_MODULES = {
    "ANETdetection": "actionformer",
    "mAP": "opentad",
    "Recall": "opentad",
    "align1d": "Align1D",
    "Align1DLayer": "Align1D",
}

__all__ = ["ANETdetection", "Align1DLayer", "Recall", "align1d", "mAP"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
