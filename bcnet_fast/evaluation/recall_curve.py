"""Average recall against the number of proposals, as a picture."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from ..results.figure import MUTED, clear_frame, new_figure, save
from ..text import count
from .average_recall import AverageRecall

if TYPE_CHECKING:
    pass


def ar_curve(result: AverageRecall, path: str | os.PathLike, *, title: str = "") -> None:
    """Draw the recall at each tIoU threshold and their mean against the average number of proposals."""
    import matplotlib

    figure = new_figure(7.0, 4.6)
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(result.tiou_thresholds)))
    for threshold, recall, colour in zip(result.tiou_thresholds, result.recall, colours, strict=True):
        axes.plot(result.proposals_per_video, 100 * recall, color=colour, lw=1.0, label=f"tIoU {threshold:.2f}")
    axes.plot(result.proposals_per_video, 100 * result.average_recall, color="black", lw=2.4, label="mean (AR)")
    axes.set_xlabel("average number of proposals a video (AN)", fontsize=9)
    axes.set_ylabel("recall in %", fontsize=9)
    axes.set_xlim(0, result.proposals_per_video[-1])
    axes.set_ylim(0, 100)
    axes.grid(color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    clear_frame(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    sizes = (result.videos, "video"), (result.instances, "instance"), (result.proposals, "proposal")
    counts = ", ".join(count(number, noun) for number, noun in sizes)
    figure.suptitle(f"Average recall, AUC {result.auc:.2f} %", x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes.set_title(f"{title}\n{counts}".strip(), loc="left", fontsize=8, color=MUTED)
    save(figure, path)
