"""Look, measures and files that all pictures share. Figures need no display and are written atomically.

Pictures place their axes in inches: matplotlib's layout engines draw a figure several times to find room for its texts.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import InputError
from ..storage.output import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
# A README shows pictures about 830 pixels wide: two thirds of WIDTH x DPI.
WIDTH, DPI = 8.3, 150
TITLE, TEXT, SMALL = 11.5, 8.5, 7.5  # type sizes in points
INK, MUTED, GRID = "#222222", "#666666", "#e6e6e6"
ACCENT = "#1f6fb4"
# Stronger shades stand for larger values; the lightest is visible on white.
_SHADES = ("#a9cde8", "#6aaed6", "#2f80bd", "#0b559f", "#08306b")


def require_picture_name(path: str | os.PathLike) -> None:
    """Raise InputError if the suffix is not that of a supported picture format."""
    if Path(path).suffix.lower().removeprefix(".") not in FORMATS:
        raise InputError(f"{path} has suffix {Path(path).suffix!r}, expected .png, .svg or .pdf")


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Create a white figure (size in inches) with its own canvas, without pyplot state or display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes whose frame lies `left` and `top` inches from the corner, without upper and right spine."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=TEXT, color="#999999", labelcolor=INK)
    axes.set_axisbelow(True)
    return axes


def write(figure: Figure, x: float, y: float, text: str, **style: Any) -> float:
    """Write text from `x` inches on, its baseline `y` inches below the upper edge, and return where it ends."""
    wide, high = figure.get_size_inches()
    style = {"fontsize": TEXT, "color": INK, **style}
    figure.text(x / wide, 1 - y / high, text, va="baseline", parse_math=False, **style)
    return x + text_width(figure, text, style["fontsize"], style.get("fontweight", "normal"))


def text_width(figure: Figure, text: str, size: float, weight: str = "normal") -> float:
    """Width in inches."""
    from matplotlib.font_manager import FontProperties

    renderer = cast("FigureCanvasAgg", figure.canvas).get_renderer()
    width, _, _ = renderer.get_text_width_height_descent(text, FontProperties(size=size, weight=weight), False)
    return width / figure.dpi


def shortened(figure: Figure, text: str, width: float, size: float, weight: str = "normal") -> str:
    """The text on one line of at most `width` inches, with an ellipsis in its middle if it is longer."""
    # Undecodable bytes of a file name and control characters have no glyph.
    text = "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode())
    kept = len(text)
    fitting = text
    while kept > 2 and text_width(figure, fitting, size, weight) > width:
        kept -= 1 + kept // 16
        fitting = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return fitting


def shades(values: Any) -> Any:
    """Colours [n, 4] of values from 0 to 1, from light to dark."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", _SHADES)(values)


@contextlib.contextmanager
def missing_glyphs_as_boxes() -> Iterator[None]:
    """Silence the warnings about characters that the font does not have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write the figure in the format of the suffix. InputError: it is another one, or the file cannot be written."""
    require_picture_name(path)
    with atomic_path(path) as temporary, missing_glyphs_as_boxes():
        if temporary.suffix.lower() == ".png":
            # The fastest of zlib's levels: the file grows by a fifth, writing it takes a third of the time.
            cast("FigureCanvasAgg", figure.canvas).print_png(temporary, pil_kwargs={"compress_level": 1})
        else:
            figure.savefig(temporary)
