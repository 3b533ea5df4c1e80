"""Loss and validation recall of a training by epoch, as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ..results.figure import MUTED, clear_frame, new_figure, save
from .validation import SHOWN_AN


def learning_curve(rows: Sequence[Mapping[str, float]], path: str | os.PathLike) -> None:
    """Draw the rows of log.csv: the loss on the left, AR@AN and AUC on the right. ImportError: without matplotlib."""
    figure = new_figure(9.0, 3.6)
    losses, recalls = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    losses.plot(epochs, [row["total"] for row in rows], color="#333333", marker=".")
    for place, an in enumerate(SHOWN_AN):
        shade = str(0.75 - 0.2 * place)
        recalls.plot(epochs, [row[f"AR@{an}"] for row in rows], color=shade, marker=".", label=f"AR@{an}")
    recalls.plot(epochs, [row["AUC"] for row in rows], color="#c44e00", lw=2.2, marker=".", label="AUC")
    best = max(rows, key=lambda row: row["AUC"])
    label = f"best: epoch {best['epoch']:g}, AUC {best['AUC']:.2f}"
    recalls.plot(best["epoch"], best["AUC"], "o", ms=9, mfc="none", color="#c44e00", label=label)
    for axes, title, unit in ((losses, "training loss", ""), (recalls, "validation recall", "%")):
        axes.set_title(title, loc="left", fontsize=10, color=MUTED)
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_ylabel(unit, fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="0.92", lw=0.8)
        axes.set_axisbelow(True)
        clear_frame(axes)
    losses.set_ylim(bottom=0)
    recalls.set_ylim(0, 100)
    recalls.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    save(figure, path)
