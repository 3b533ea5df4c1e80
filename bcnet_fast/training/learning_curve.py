"""Loss and validation recall of a training by epoch, as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ..results.figure import ACCENT, GRID, INK, MUTED, TEXT, TITLE, add_axes, new_figure, save, shades, write
from .validation import SHOWN_AN

# Inches.
_HEIGHT, _TOP, _LEFT, _BETWEEN, _PLOT_HEIGHT = 3.4, 0.5, 0.45, 0.5, 2.35
_PLOT_WIDTH = 2.5


def learning_curve(rows: Sequence[Mapping[str, float]], path: str | os.PathLike) -> None:
    """Draw the rows of log.csv: the loss on the left, AR@AN and AUC on the right. ImportError: without matplotlib."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(_HEIGHT)
    second = _LEFT + _PLOT_WIDTH + _BETWEEN
    losses, recalls = (add_axes(figure, left, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT) for left in (_LEFT, second))
    for left, title in ((_LEFT, "Training loss"), (second, "Validation recall (%)")):
        write(figure, left, 0.3, title, fontsize=TITLE, fontweight="bold")
    epochs = [row["epoch"] for row in rows]
    losses.plot(epochs, [row["total"] for row in rows], color=INK, marker=".")
    for an, shade in zip(SHOWN_AN, shades([0.1, 0.4, 0.7]), strict=True):
        recalls.plot(epochs, [row[f"AR@{an}"] for row in rows], color=shade, marker=".", label=f"AR@{an}")
    recalls.plot(epochs, [row["AUC"] for row in rows], color="black", lw=2.2, marker=".", label="AUC")
    best = max(rows, key=lambda row: row["AUC"])
    label = f"best: epoch {best['epoch']:g}, AUC {best['AUC']:.2f}"
    recalls.plot(best["epoch"], best["AUC"], "o", ms=9, mfc="none", color=ACCENT, label=label)
    for axes in (losses, recalls):
        axes.set_xlabel("epoch", fontsize=TEXT, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=GRID, lw=0.7)
    losses.set_ylim(bottom=0)
    recalls.set_ylim(0, 100)
    recalls.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=TEXT)
    save(figure, path)
