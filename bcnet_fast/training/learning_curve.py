"""Loss and validation recall of a training by epoch, as a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..results.figure import ACCENT, GRID, INK, MUTED, TEXT, TITLE, add_axes, new_figure, save, shades, write

# Inches.
_HEIGHT, _TOP, _LEFT, _BETWEEN, _PLOT_HEIGHT = 3.4, 0.5, 0.45, 0.5, 2.35
_PLOT_WIDTH = 2.5


def learning_curve(rows: Sequence[Mapping[str, float]], path: str | os.PathLike) -> None:
    """Draw the rows of log.csv: the loss on the left, AR@AN and AUC, or mAP, on the right.

    ImportError: without matplotlib.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(_HEIGHT)
    second = _LEFT + _PLOT_WIDTH + _BETWEEN
    losses, recalls = (add_axes(figure, left, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT) for left in (_LEFT, second))
    figure_name, kind = ("AUC", "recall") if "AUC" in rows[0] else ("mAP", "precision")
    curves = [name for name in rows[0] if "@" in name]
    for left, title in ((_LEFT, "Training loss"), (second, f"Validation {kind} (%)")):
        write(figure, left, 0.3, title, fontsize=TITLE, fontweight="bold")
    epochs = [row["epoch"] for row in rows]
    losses.plot(epochs, [row["total"] for row in rows], color=INK, marker=".")
    for name, shade in zip(curves, shades([0.1 + 0.6 * n / len(curves) for n in range(len(curves))]), strict=True):
        recalls.plot(epochs, [row[name] for row in rows], color=shade, marker=".", label=name)
    of_all = [row[figure_name] for row in rows]
    recalls.plot(epochs, of_all, color="black", lw=2.2, marker=".", label=figure_name)
    best = max(rows, key=lambda row: row[figure_name])
    label = f"best: epoch {best['epoch']:g}, {figure_name} {best[figure_name]:.2f}"
    recalls.plot(best["epoch"], best[figure_name], "o", ms=9, mfc="none", color=ACCENT, label=label)
    for axes in (losses, recalls):
        axes.set_xlabel("epoch", fontsize=TEXT, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=GRID, lw=0.7)
    losses.set_ylim(bottom=0)
    recalls.set_ylim(0, 100)
    recalls.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=TEXT)
    save(figure, path)


def draw_curve(rows: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write `learning_curve.png` of a training, or a note that says what it needs."""
    try:
        learning_curve(rows, folder / "learning_curve.png")
    except ImportError:
        print(
            "note: no learning_curve.png, which needs: pip install matplotlib; log.csv has its numbers", file=sys.stderr
        )
