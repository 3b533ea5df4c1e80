"""Average recall against the number of proposals, as a picture."""

from __future__ import annotations

import os

import numpy as np

from ..results.figure import (
    GRID,
    INK,
    MUTED,
    TEXT,
    TITLE,
    WIDTH,
    add_axes,
    new_figure,
    require_picture_name,
    save,
    shades,
    shortened,
    write,
)
from ..text import count
from .average_recall import AverageRecall

_HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 4.6, 0.62, 0.9, 0.98, 0.5
_LINE = 0.155  # inches from one label to the next
_MEAN = "mean (AR)"


def ar_curve(result: AverageRecall, path: str | os.PathLike, *, title: str = "") -> None:
    """Draw the recall at each tIoU threshold and their mean against the average number of proposals.

    Darker lines stand for higher thresholds. Each has its name at its end; the mean of one threshold has no line.
    InputError: `path` has another suffix than .png, .svg or .pdf, or cannot be written.
    """
    require_picture_name(path)
    thresholds = zip(result.tiou_thresholds, result.recall, strict=True)
    lines = [(100 * recall, f"tIoU {tiou:.2f}") for tiou, recall in thresholds]
    # The lightest shade is skipped: it is too pale for a thin line.
    colours = [*shades(np.linspace(1, 0.2, len(lines))[::-1]), "black"]
    if len(lines) > 1:
        lines.append((100 * result.average_recall, _MEAN))
    width, height = WIDTH - _LEFT - _RIGHT, max(_HEIGHT - _TOP - _BOTTOM, _LINE * (len(lines) - 1))

    figure = new_figure(_TOP + height + _BOTTOM)
    write(figure, _LEFT, 0.24, f"Average recall, AUC {result.auc:.2f} %", fontsize=TITLE, fontweight="bold")
    counts = (count(result.videos, "video"), count(result.instances, "instance"), count(result.proposals, "proposal"))
    for baseline, text in zip((0.46, 0.64), filter(None, (title, ", ".join(counts))), strict=False):
        write(figure, _LEFT, baseline, shortened(figure, text, WIDTH - _LEFT - 0.1, TEXT), color=MUTED)
    axes = add_axes(figure, _LEFT, _TOP, width, height)
    axes.set_xlim(0, result.proposals_per_video[-1])
    axes.set_ylim(0, 100)
    axes.set_xlabel("average number of proposals per video (AN)", fontsize=TEXT, color=MUTED)
    axes.set_ylabel("recall (%)", fontsize=TEXT, color=MUTED)
    axes.grid(color=GRID, lw=0.7)

    x = result.proposals_per_video
    places = _spread([recall[-1] for recall, _ in lines], 100 * _LINE / height, 100.0)
    for (recall, name), colour, place in zip(lines, colours, places, strict=False):
        mean = name == _MEAN
        axes.plot(x, recall, color=colour, lw=2.4 if mean else 1.3, label=name, clip_on=False)
        # A label that had to move is tied to its line.
        axes.plot(
            [1, 1 + 0.1 / width],
            [recall[-1], place],
            transform=axes.get_yaxis_transform(),
            color=colour,
            lw=0.8,
            clip_on=False,
            label="_tie",
        )
        axes.text(
            *(1 + 0.14 / width, place, name),
            transform=axes.get_yaxis_transform(),
            va="center_baseline",
            fontsize=TEXT,
            fontweight="bold" if mean else "normal",
            color="black" if mean else INK,
        )
    save(figure, path)


def _spread(values: list[float], distance: float, highest: float) -> list[float]:
    """The values, moved to lie at least `distance` apart between 0 and `highest`; the first of equal ones is on top."""
    order = np.lexsort((-np.arange(len(values)), np.array(values)))
    # From the lowest up. Values that are too close form a group, centred on the mean of its members.
    groups: list[list[float]] = []
    for row in order:
        group = [values[row]]
        while groups and _lowest(group, distance) < _lowest(groups[-1], distance) + distance * len(groups[-1]):
            group = groups.pop() + group
        groups.append(group)
    ranks = np.arange(len(values))
    spread = [_lowest(group, distance) + distance * rank for group in groups for rank in range(len(group))]
    placed = np.empty(len(values))
    placed[order] = np.clip(spread, distance * ranks, highest - distance * ranks[::-1])
    return placed.tolist()


def _lowest(group: list[float], distance: float) -> float:
    """Place of the first member of a group."""
    return sum(group) / len(group) - distance * (len(group) - 1) / 2
