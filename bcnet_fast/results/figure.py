"""Figures without a display, written atomically."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..storage.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MUTED = "#666666"


def require_picture_name(path: str | os.PathLike) -> None:
    """Raise InputError if the suffix is not that of a supported picture format."""
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"{path} has suffix {Path(path).suffix!r}, expected .png, .svg or .pdf")


def clear_frame(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)


def new_figure(width: float, height: float) -> Figure:
    """Create a figure (size in inches) with its own canvas, without pyplot state or display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | os.PathLike) -> None:
    require_picture_name(path)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # such characters are drawn as boxes
        figure.savefig(temporary, dpi=130)
