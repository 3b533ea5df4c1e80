"""The charts of bench/latency.py: bars for a window, a video and the networks, and growth on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bcnet_fast.storage.files import atomic_path

from . import growth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = (
    ("network", "network", "#2f6f9f"),
    ("candidates", "proposals", "#c9a227"),
    ("soft_nms", "Soft-NMS", "#c2452d"),
)
LINES = {"reference": ("#8c8c8c", "o"), "bcnet_fast fp32": ("#2f6f9f", "s")}


def draw(
    rows: Sequence[dict[str, Any]], growth_rows: Sequence[dict[str, Any]], facts: dict[str, Any], path: str
) -> None:
    """Write the charts of those parts that were measured; BCNet's bars are those of the first boundary threshold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        case = cases.setdefault((row["system"], row["data"]), [])
        if not case or row["boundary_threshold"] == case[0]["boundary_threshold"]:
            case.append(row)
    # Panels, two in a row of the figure: a function, and what it takes after the axes.
    panels: list[tuple[Any, ...]] = []
    for case in cases.values():
        if case[0]["boundary_threshold"] is None:
            panels.append((_network_bars, case))
        else:
            panels += [(_window_bars, case), (_video_bars, case)]
    if len(panels) % 2:
        panels.append((_nothing,))
    if growth_rows:
        panels.append((_growth, growth_rows, "T", "snippets T (anchors by the rule)"))
        panels.append((_growth, growth_rows, "P", f"anchors P (T = {growth.ANCHORS_AT})"))
    heights = [3.4 if draws is _growth else 0.9 + 0.34 * len(of[0]) for draws, *of in panels[::2]]
    figure, grid = pyplot.subplots(
        len(heights), 2, figsize=(11, sum(heights) + 0.6), layout="constrained", height_ratios=heights, squeeze=False
    )
    for axes, (draws, *of) in zip(grid.flat, panels, strict=True):
        draws(axes, *of)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle(f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _nothing(axes: Axes) -> None:
    axes.set_axis_off()


def _network_bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        median = row["times_ms"]["network"]["median"]
        axes.barh(place, median, color=STAGES[0][2])
        _annotate(axes, place, median, row, "network")
    _finish(axes, rows, f"{rows[0]['system']}, {rows[0]['data']}, network of one window: ms")


def _window_bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        left = 0.0
        for stage, label, colour in STAGES:
            width = row["soft_nms_ms"] if stage == "soft_nms" else row["times_ms"][stage]["median"]
            axes.barh(place, width, left=left, color=colour, label=label if place == 0 else None)
            left += width
        _annotate(axes, place, left, row, "window")
    # Below the axes, where no bar is.
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0.0, -0.12), borderaxespad=0)
    _finish(
        axes, rows, f"{rows[0]['system']}, one window, {rows[0]['matched_percent']:.0f} % of the anchors matched: ms"
    )


def _video_bars(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        median = row["times_ms"]["video"]["median"]
        axes.barh(place, median, color="#35507a")
        _annotate(axes, place, median, row, "video")
    _finish(axes, rows, f"{rows[0]['system']}, a video of 5 windows: ms")


def _annotate(axes: Axes, place: int, end: float, row: dict[str, Any], stage: str) -> None:
    median, faster = row["times_ms"][stage]["median"], row["times_reference"][stage]
    axes.annotate(f" {median:,.0f} ms, {faster:.3g}x", (end, place), va="center", fontsize=8)


def _finish(axes: Axes, rows: Sequence[dict[str, Any]], title: str) -> None:
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    # Room for the text behind the longest bar.
    axes.set_xlim(0, 1.25 * axes.get_xlim()[1])
    axes.set_title(title, loc="left", fontsize=9)


def _growth(axes: Axes, rows: Sequence[dict[str, Any]], axis: str, label: str) -> None:
    from matplotlib.ticker import LogLocator

    for variant, (sizes, times) in growth.series(rows, axis).items():
        colour, marker = LINES[variant]
        name = f"{variant}, exponent {growth.exponent(sizes, times):.2f}"
        axes.plot(sizes, times, color=colour, marker=marker, markersize=4, label=name)
    ticks = sorted({row["size"] for row in rows if row["axis"] == axis})
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel(label, fontsize=8)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("network, all anchors: ms", loc="left", fontsize=9)
