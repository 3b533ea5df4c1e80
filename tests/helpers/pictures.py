"""Content of a figure: texts, their places, and bars."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from bcnet_fast.results.figure import missing_glyphs_as_boxes


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in _visible(figure)]


def bars(axes: Axes, label: str, filled: bool | None = None) -> list[np.ndarray]:
    """Left and right end of the bars named `label`; with `filled`, only of those filled with a colour or white."""
    ends = []
    for collection in axes.collections:
        if collection.get_label() != label:
            continue
        white = bool((collection.get_facecolors() == 1).all())
        if filled is None or filled != white:
            ends += [path.get_extents().intervalx for path in collection.get_paths()]
    return ends


def overlapping(figure: Figure) -> list[Any]:
    """Pairs of texts that lie on one another, and texts that do not lie wholly inside the figure."""
    with missing_glyphs_as_boxes():
        figure.canvas.draw()
        boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in _visible(figure)]
    width, height = figure.get_size_inches() * figure.dpi
    outside = [name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    pairs = [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]
    return outside + pairs


def _visible(figure: Figure) -> list[Text]:
    """Texts of a figure that are drawn, without those of hidden axes and of ticks outside the limits."""
    figure.draw_without_rendering()
    of_axis, drawn = set(), set()
    for axes in figure.axes:
        for axis, limits, coordinate in ((axes.xaxis, axes.get_xlim(), 0), (axes.yaxis, axes.get_ylim(), 1)):
            of_axis.update(axis.findobj(Text))
            if axis.get_visible():
                drawn.add(axis.label)
                drawn.update(
                    label
                    for label in axis.get_ticklabels(which="both")
                    if min(limits) <= label.get_position()[coordinate] <= max(limits)
                )
    return [text for text in figure.findobj(Text) if text.get_text().strip() and (text not in of_axis or text in drawn)]
