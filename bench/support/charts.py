"""The charts of the benchmarks, drawn from the rows of a result file with the figures that the tables show.

This package has one colour, everything else is grey, and each chart has one scale. Titles of groups stand where no line
is.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

from benchmarks_page import NAMES, OURS, matched_anchors, number, times

from bcnet_fast.results.figure import (
    ACCENT,
    INK,
    MUTED,
    TEXT,
    TITLE,
    WIDTH,
    add_axes,
    new_figure,
    save,
    text_width,
    write,
)

_OTHER, _GUIDE = "#b3b3b3", "#dddddd"
_TOP, _BOTTOM = 0.62, 0.48
_STEPS = {"network": "network of one window", "window": "one window", "video": "a video of five windows"}
# Kinds of alternatives to an operator: the mark of a row's variant, and its name in the legend.
_MARKS = {
    "reference": ("o", "#6b6b6b", "reference"),
    "torch.compile": ("s", "#a6a6a6", "torch.compile"),
    "loop": ("^", "#6b6b6b", "loop in Python or C++"),
    "other": ("D", "white", "other PyTorch"),
}


def latency(rows: Sequence[dict[str, Any]], facts: dict[str, Any], path: str | os.PathLike) -> None:
    """Draw the times of each system: those of a window and a video where all variants have them, else the network's.

    BCNet's are those of the first boundary threshold.
    """
    cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        case = cases.setdefault((row["system"], row["data"]), [])
        if not case or row["boundary_threshold"] == case[0]["boundary_threshold"]:
            case.append(row)
    groups = []
    for (system, data), case in cases.items():
        steps = [step for step in ("window", "video") if all(step in row["times_ms"] for row in case)]
        name = f"{system}, {data}{matched_anchors(case[0])}"
        groups += [(f"{name}: {_STEPS[step]}", step, case) for step in steps or ["network"]]

    pitch, title, left, right = 0.205, 0.3, 1.3, 1.05
    height = sum(title + pitch * len(case) for *_, case in groups)
    figure = new_figure(_TOP + height + _BOTTOM)
    _heading(figure, "Time of inference", f"milliseconds, less is better; {_machine(facts)}")
    axes = add_axes(figure, left, _TOP, WIDTH - left - right, height)
    y = 0.0
    for name, step, case in groups:
        axes.text(0, y + title - 0.09, name, va="baseline", fontsize=TEXT, fontweight="bold", color=INK)
        y += title
        for row in case:
            ours, median = row["variant"].startswith(OURS), row["times_ms"][step]["median"]
            ratio = f" ({times(case[0]['times_ms'][step]['median'] / median)})" if ours else ""
            style = {"color": ACCENT if ours else INK, "fontweight": "bold" if ours else "normal"}
            axes.barh(y + pitch / 2, median, 0.74 * pitch, color=ACCENT if ours else _OTHER)
            axes.annotate(
                f"{number(median)}{ratio}",
                (median, y + pitch / 2),
                (4, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=TEXT,
                **style,
            )
            axes.annotate(
                NAMES[row["variant"]].strip("*"),
                (0, y + pitch / 2),
                (-6, 0),
                textcoords="offset points",
                ha="right",
                va="center_baseline",
                fontsize=TEXT,
                **style,
            )
            y += pitch
    axes.set_ylim(height, 0)
    axes.set_xlim(0, max(row["times_ms"][step]["median"] for _, step, case in groups for row in case))
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("time (ms)", fontsize=TEXT, color=MUTED)
    save(figure, path)


def operators(rows: Sequence[dict[str, Any]], facts: dict[str, Any], path: str | os.PathLike) -> None:
    """Draw how many times as long as each operator its alternatives take, and name the fastest one of each case."""
    cases = [
        (key, list(case))
        for key, case in itertools.groupby(rows, lambda row: (row["operator"], row["mode"], row["shape"]))
    ]
    names = list(dict.fromkeys(operator for (operator, *_), _ in cases))
    pitch, left, right, top = 0.208, 2.75, 2.1, 0.86
    height = pitch * (len(cases) + len(names))
    figure = new_figure(top + height + _BOTTOM)
    _heading(figure, "Operators", f"float32, less is better; {_machine(facts)}")
    axes = add_axes(figure, left, top, WIDTH - left - right, height)
    axes.set(xscale="log", ylim=(height, 0))
    axes.axvline(1, color=ACCENT, lw=1.6)
    y, operator = 0.0, ""
    for (name, mode, shape), case in cases:
        if name != operator:
            operator = name
            write(figure, 0.1, top + y + pitch * 0.72, name, fontweight="bold")
            y += pitch
        middle = y + pitch / 2
        with_backward = ", with backward" if "backward" in mode else ""
        write(figure, 0.25, top + middle + 0.04, f"{shape}{with_backward}")
        own = next(row["median_ms"] for row in case if row["variant"] == OURS)
        rivals = {row["variant"]: row["median_ms"] / own for row in case if not row["variant"].startswith(OURS)}
        axes.plot([min(1, *rivals.values()), max(rivals.values())], [middle] * 2, color=_GUIDE, lw=1.2, zorder=1)
        for rival, ratio in rivals.items():
            marker, fill, _ = _MARKS[_kind(rival)]
            axes.plot(ratio, middle, marker=marker, ms=5, mfc=fill, mec="#6b6b6b", mew=0.8, zorder=3)
        axes.plot(1, middle, marker="o", ms=5.5, color=ACCENT, zorder=4)
        fastest = min(rivals, key=rivals.__getitem__)
        ratio = times(rivals[fastest])
        end = WIDTH - right + 0.42
        write(figure, end - text_width(figure, ratio, TEXT), top + middle + 0.04, ratio)
        write(figure, end + 0.1, top + middle + 0.04, fastest)
        y += pitch
    write(figure, WIDTH - right + 0.12, top - 0.1, "fastest alternative", color=MUTED)
    x = 0.1
    for marker, fill, meaning in [("o", ACCENT, OURS), *_MARKS.values()]:
        edge = ACCENT if fill == ACCENT else "#6b6b6b"
        axes.plot(
            *((x + 0.05) / WIDTH, 1 - (top - 0.14) / figure.get_figheight()),
            transform=figure.transFigure,
            clip_on=False,
            **{"marker": marker, "ms": 5, "mfc": fill, "mec": edge, "mew": 0.8},
        )
        x = write(figure, x + 0.16, top - 0.1, meaning, color=MUTED) + 0.2
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.grid(axis="x", color="#eeeeee", lw=0.7)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"times as long as {OURS} takes (logarithmic)", fontsize=TEXT, color=MUTED)
    save(figure, path)


def _kind(variant: str) -> str:
    if variant in _MARKS:
        return variant
    return "loop" if "loop" in variant or "C++" in variant else "other"


def _heading(figure: Any, title: str, note: str) -> None:
    write(figure, 0.1, 0.24, title, fontsize=TITLE, fontweight="bold")
    write(figure, 0.1, 0.46, note, color=MUTED)


def _machine(facts: dict[str, Any]) -> str:
    return f"{facts['device']}, {facts['threads']} threads, PyTorch {facts['torch']}"
