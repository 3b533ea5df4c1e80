"""Timeline picture of one video: instances, boundary probabilities and best proposals.

The suffix of the file chooses .png, .svg or .pdf. matplotlib is imported on the first call, because commands that draw
nothing should not wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..data.annotations import Instance
from ..text import shown
from .figure import MUTED, clear_frame, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_START, _END, _INSTANCE = "#1b7f5c", "#c2452d", "#35507a"
# A longer curve is reduced to this many maxima, so that no peak falls between two pixels.
_COLUMNS = 1000
_LONGEST = 120  # characters of a name in a picture


def timeline(
    path: str | os.PathLike,
    *,
    video_id: str,
    duration_s: float,
    boundary: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    proposals: np.ndarray | None = None,
    ground_truth: Sequence[Instance] | None = None,
) -> None:
    """Draw one video from 0 to `duration_s` seconds. An argument that is None has no panel.

    boundary: times in seconds, start and end probabilities, each [n].
    proposals: start and end in seconds and confidence, [n, 3] in any order; one row each, the best at the top.
    """
    ranked = None if proposals is None else proposals[np.argsort(-proposals[:, 2], kind="stable")]
    labels = sorted({instance.label for instance in ground_truth or ()})
    panels: list[tuple[str, float]] = []  # name and height in inches
    if ground_truth is not None:
        panels.append(("instances", 0.16 + 0.22 * max(len(labels), 1)))
    if boundary is not None:
        panels.append(("boundary", 1.5))
    if ranked is not None:
        panels.append(("proposals", 0.2 + min(max(0.2 * len(ranked), 0.5), 5.0)))
    if not panels:
        raise ValueError("boundary, proposals and ground_truth are None, expected at least one of them")

    heights = [height for _, height in panels]
    figure = new_figure(10.0, sum(heights) + 0.35 * len(panels) + 0.6)
    grid = figure.add_gridspec(len(panels), 2, height_ratios=heights, width_ratios=(1, 0.014), wspace=0.02)
    first: Axes | None = None
    for row, (name, _) in enumerate(panels):
        axes = first = figure.add_subplot(grid[row, 0], sharex=first)
        if name == "instances" and ground_truth is not None:
            _draw_instances(axes, ground_truth, labels)
        elif name == "boundary" and boundary is not None:
            _draw_boundary(axes, *boundary)
        elif ranked is not None:
            _draw_proposals(figure, axes, figure.add_subplot(grid[row, 1]), ranked, duration_s)
        if name != "instances":
            for instance in ground_truth or ():
                axes.axvspan(instance.start, instance.end, color=_INSTANCE, alpha=0.10, lw=0, zorder=0)
        axes.grid(axis="x", color="0.92", lw=0.8)
        axes.set_axisbelow(True)
        clear_frame(axes)
        axes.tick_params(labelbottom=row == len(panels) - 1)
    axes.set_xlim(0, duration_s)
    axes.set_xlabel("time in the video", fontsize=9)
    _label_time(axes, duration_s)
    # A dollar sign in a name must not start a formula.
    figure.suptitle(shown(video_id)[:_LONGEST], x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    save(figure, path)


def _draw_instances(axes: Axes, instances: Sequence[Instance], labels: list[str]) -> None:
    axes.barh(
        [labels.index(instance.label) for instance in instances],
        [instance.end - instance.start for instance in instances],
        left=[instance.start for instance in instances],
        height=0.76,
        color=_INSTANCE,
        edgecolor="white",
        lw=0.5,
    )
    axes.set_ylim(max(len(labels), 1) - 0.4, -0.6)
    axes.set_yticks(range(len(labels)), [shown(label)[:_LONGEST] for label in labels], parse_math=False)
    _title(axes, f"ground truth ({len(instances)})")


def _draw_boundary(axes: Axes, times: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
    # The end curve points down, so that neither curve hides the other.
    for values, sign, colour, name in ((start, 1, _START, "start"), (end, -1, _END, "end")):
        x, y = _maxima(np.asarray(times), np.asarray(values))
        axes.plot(x, sign * y, color=colour, lw=0.9, label=name)
        axes.fill_between(x, sign * y, color=colour, alpha=0.25, lw=0)
    axes.axhline(0, color="0.3", lw=0.8)
    axes.set_ylim(-1.03, 1.03)
    axes.set_yticks([-1, -0.5, 0, 0.5, 1], ["1", "0.5", "0", "0.5", "1"])
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, frameon=False, fontsize=8, borderpad=0)
    _title(axes, "boundary probability: start up, end down")


def _maxima(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximum y, with its x, of each of at most _COLUMNS equal intervals."""
    stretches = np.array_split(np.arange(len(y)), min(_COLUMNS, max(len(y), 1)))
    peaks = [stretch[np.argmax(y[stretch])] for stretch in stretches if len(stretch)]
    return x[peaks], y[peaks]


def _draw_proposals(figure: Figure, axes: Axes, bar: Axes, ranked: np.ndarray, duration_s: float) -> None:
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    best = float(ranked[:, 2].max(initial=0.0))
    scale, colours = Normalize(0.0, best if best > 0 else 1.0), matplotlib.colormaps["plasma_r"]
    axes.barh(
        np.arange(1, len(ranked) + 1),
        # At least two pixels wide, so that a short proposal in a long video stays visible.
        np.maximum(ranked[:, 1] - ranked[:, 0], duration_s / 500),
        left=ranked[:, 0],
        height=0.78,
        color=colours(scale(ranked[:, 2])),
        edgecolor="0.25",
        lw=0.4,
    )
    axes.set_ylim(max(len(ranked), 1) + 0.6, 0.4)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_ylabel("rank", fontsize=8)
    figure.colorbar(ScalarMappable(scale, colours), cax=bar).set_label("confidence", fontsize=8)
    bar.tick_params(labelsize=7)
    _title(axes, f"best proposals ({len(ranked)})")


def _label_time(axes: Axes, duration_s: float) -> None:
    """Put ticks at round times, in seconds below two minutes, else as m:ss or h:mm:ss."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
    step = next((step for step in steps if duration_s / step <= 12), duration_s / 10)

    def text(seconds: float, _: int) -> str:
        if duration_s < 120:
            return f"{seconds:g} s"
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if duration_s >= 3600 else f"{minutes}:{rest:02d}"

    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(text))


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=8.5, color=MUTED, pad=4)
