"""Timeline picture of one video: instances, boundary probabilities and best proposals.

The suffix of the file chooses .png, .svg or .pdf. matplotlib is imported on the first call, because commands that draw
nothing should not wait for it. Bars and rulings are few artists with many parts, and text positions are
measured: otherwise, artists and layout would take most of the time of a picture.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.annotations import Instance
from ..geometry.tiou import pairwise_tiou
from ..text import count
from .figure import (
    DPI,
    GRID,
    INK,
    MUTED,
    SMALL,
    TEXT,
    TITLE,
    WIDTH,
    add_axes,
    missing_glyphs_as_boxes,
    new_figure,
    require_picture_name,
    save,
    shades,
    shortened,
    text_width,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The lowest tIoU at which a proposal counts as a hit.
HIT_TIOU = 0.5
# Told apart with any colour vision; without the blues, which stand for confidence. More classes repeat them: each has a
# name beside its row.
CLASS_COLOURS = ("#d55e00", "#117733", "#cc79a7", "#e69f00", "#44aa99", "#882255", "#999933", "#7a5c3e")
_CURVE, _BAND, _BAND_EDGE = "#4a5568", "#f1f2f4", "#d8dbe0"
_HIT = {"mfc": "#222222", "mec": "#222222", "mew": 0.8}
_MISS = {"mec": "#777777", "mew": 1.2}
# Rows that are too low for marks have a strip of these beside them.
_STRIP_HIT, _STRIP_MISS = "#222222", "#d4d4d4"
# A longer curve is reduced to this many maxima, so that no peak falls between two pixels.
_COLUMNS = 1000
# Inches: of the frame, of headings and of rows.
_TOP, _BOTTOM, _RIGHT, _GAP, _HEADING = 0.36, 0.46, 0.72, 0.16, 0.22
_ROW, _TIGHT_ROW, _LONGEST_NAME = 0.19, 0.155, 1.5
# Beyond this many rows, names are left out and rows shrink to fit.
_NAMED_ROWS = 100


def best_count(instances: int, best: int | None = None) -> int:
    """Proposals to show: `best`, or by default as many as there are true actions, from 10 to 30."""
    return min(max(instances, 10), 30) if best is None else best


def timeline(
    path: str | os.PathLike | None = None,
    *,
    video_id: str,
    duration_s: float,
    boundary: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    proposals: np.ndarray | None = None,
    labels: Sequence[str] | np.ndarray | None = None,
    ground_truth: Sequence[Instance] | None = None,
    best: int | None = None,
) -> Figure:
    """Draw one video from 0 to `duration_s` seconds. An argument that is None has no panel.

    path: file to write (.png, .svg or .pdf); None writes none. The figure is returned in both cases.
    boundary: times in seconds, start and end probabilities, each [n].
    proposals: start and end in seconds and confidence, [n, 3] in any order; one row each, the best at the top.
    labels: n names of classes, for detections; a hit must have the class of the instance.
    best: how many proposals to draw, see `best_count`.

    InputError: `path` has another suffix or cannot be written. ValueError: there is no panel.
    """
    if path is not None:
        require_picture_name(path)
    if boundary is None and proposals is None and ground_truth is None:
        raise ValueError("boundary, proposals and ground_truth are None, expected at least one of them")
    names: list[str] | None = None
    if proposals is not None:
        ranks = np.argsort(-proposals[:, 2], kind="stable")[: best_count(len(ground_truth or ()), best)]
        names = None if labels is None else [str(labels[rank]) for rank in ranks]
        proposals = proposals[ranks]
    with missing_glyphs_as_boxes():
        picture = _Picture(video_id, duration_s, proposals, names, ground_truth, boundary is not None)
        if ground_truth is not None:
            picture.draw_instances(ground_truth)
        if boundary is not None:
            picture.draw_boundary(*boundary)
        if proposals is not None:
            picture.draw_proposals(proposals, names)
        picture.label_time()
        if path is not None:
            save(picture.figure, path)
    return picture.figure


class _Picture:
    """A figure that is filled with panels from the top down."""

    def __init__(
        self,
        video_id: str,
        duration_s: float,
        proposals: np.ndarray | None,
        labels: list[str] | None,
        instances: Sequence[Instance] | None,
        boundary: bool,
    ) -> None:
        self.duration_s = duration_s
        self.instances = sorted(instances or (), key=lambda instance: (instance.start, instance.end))
        classes = sorted({instance.label for instance in self.instances})
        self.classes, self.hidden = classes[:_NAMED_ROWS], len(classes[_NAMED_ROWS:])
        known = [*self.classes, *sorted(set(labels or ()) - set(self.classes))]
        self.colours = {name: CLASS_COLOURS[place % len(CLASS_COLOURS)] for place, name in enumerate(known)}
        self.tiou = None if proposals is None or instances is None else _tiou(proposals, labels, self.instances)

        rows = 0 if proposals is None else max(len(proposals), 1)
        self.row = _ROW if rows <= 15 else _TIGHT_ROW * min(1.0, _NAMED_ROWS / rows)
        bodies = [_ROW * max(len(self.classes), 1)] if instances is not None else []
        bodies += [1.35] if boundary else []
        bodies += [self.row * rows] if rows else []
        height = _TOP + sum(_HEADING + body for body in bodies) + _GAP * (len(bodies) - 1) + _BOTTOM
        self.figure = new_figure(height)
        self.size = np.array([WIDTH, height])
        self.top = _TOP

        shown = self.classes + (labels or [] if self.named(rows) else [])
        self.names = {name: shortened(self.figure, name, _LONGEST_NAME, TEXT) for name in dict.fromkeys(shown)}
        widest = max((text_width(self.figure, name, TEXT) for name in self.names.values()), default=0.0)
        # The ranks of labelled proposals stand between name and axis.
        self.beside = 0.3 if labels else 0.08
        self.left = max(widest + self.beside + 0.08, 0.46)
        self.width = WIDTH - self.left - _RIGHT
        self.figure.text(
            self.left / WIDTH,
            1 - 0.24 / height,
            shortened(self.figure, video_id, self.width, TITLE, "bold"),
            fontsize=TITLE,
            fontweight="bold",
            color=INK,
            va="baseline",
            parse_math=False,
        )

    @staticmethod
    def named(rows: int) -> bool:
        return rows <= _NAMED_ROWS

    def _panel(self, height: float, bands: bool = True) -> Axes:
        """Axes below the panels before, with the instances as bands behind the data."""
        from matplotlib.collections import LineCollection, PolyCollection

        axes = add_axes(self.figure, self.left, self.top + _HEADING, self.width, height)
        self.axes, self.height, self.top = axes, height, self.top + _HEADING + height + _GAP
        axes.set_xlim(0, self.duration_s)
        axes.set_ylim(0, 1)
        # Ticks are matplotlib's slowest artists.
        axes.xaxis.set_visible(False)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        across = axes.get_xaxis_transform()
        if bands and self.instances:
            corners = [[(i.start, 0), (i.start, 1), (i.end, 1), (i.end, 0)] for i in self.instances]
            axes.add_collection(
                PolyCollection(
                    corners, facecolors=_BAND, edgecolors=_BAND_EDGE, linewidths=0.6, transform=across, zorder=0
                ),
                autolim=False,
            )
        rulings = [[(time, 0), (time, 1)] for time in _ticks(self.duration_s)]
        axes.add_collection(
            LineCollection(rulings, colors=GRID, linewidths=0.7, transform=across, zorder=0.5), autolim=False
        )
        return axes

    def _heading(self, text: str, *marks: tuple[str, dict[str, Any], str]) -> float:
        """Write the heading of the next panel: text, then marks, each with style and meaning. Return where it ends."""
        from matplotlib.lines import Line2D

        baseline = self.top + _HEADING - 0.07
        x = write(self.figure, self.left, baseline, text, color=MUTED)
        for marker, style, meaning in marks:
            place = (x + 0.24) / WIDTH, 1 - (baseline - 0.04) / self.size[1]
            self.figure.add_artist(Line2D(place[:1], place[1:], ls="", marker=marker, **{"ms": 4.2, **style}))
            x = write(self.figure, x + 0.34, baseline, meaning, color=MUTED)
        return x

    def draw_instances(self, instances: Sequence[Instance]) -> None:
        heading = count(len(instances), "true action") if instances else "no true action"
        found = None if self.tiou is None else np.any(self.tiou >= HIT_TIOU, axis=0)
        marks = []
        if found is not None and len(instances):
            style = {"mec": MUTED, "ms": 6.5, "mew": 1.0}
            marks.append(("s", {"mfc": MUTED, **style}, f"{found.sum()} found by the proposals below"))
            marks.append(("s", {"mfc": "white", **style}, f"{(~found).sum()} missed"))
        more = f"; {count(self.hidden, 'class')} not drawn" if self.hidden else ""
        self._heading(heading + more, *marks)
        axes = self._panel(_ROW * max(len(self.classes), 1), bands=False)
        axes.set_ylim(max(len(self.classes), 1), 0)
        for place, name in enumerate(self.classes):
            self._row_text(axes, place, self.names[name], self.beside)
            members = [row for row, instance in enumerate(self.instances) if instance.label == name]
            lanes, lane = _lanes([self.instances[row] for row in members])
            segments = np.array([(self.instances[row].start, self.instances[row].end) for row in members])
            tops = place + 0.12 + 0.76 / lanes * lane
            filled = np.full(len(members), True) if found is None else found[members]
            # White outlines separate touching instances; a missed one is drawn as an outline only.
            for chosen, style in (
                (filled, {"facecolors": self.colours[name], "edgecolors": "white", "linewidths": 0.6}),
                (~filled, {"facecolors": "white", "edgecolors": self.colours[name], "linewidths": 1.1}),
            ):
                self._bars(axes, segments[chosen], tops[chosen], 0.76 / lanes, label=name, **style)

    def draw_boundary(self, times: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
        self._heading("boundary probability")
        axes = self._panel(1.35)
        axes.set_ylim(-1.04, 1.04)
        # The end curve points down, so that neither curve hides the other.
        for values, sign, name in ((start, 1, "start"), (end, -1, "end")):
            x, y = _maxima(np.asarray(times), np.asarray(values))
            axes.fill_between(x, sign * y, color=_CURVE, alpha=0.22, lw=0)
            axes.plot(x, sign * y, color=_CURVE, lw=0.8, label=name)
            arrow = "↑" if sign > 0 else "↓"
            axes.text(
                *(1.008, 0.5 + 0.25 * sign, f"{arrow} {name}"),
                transform=axes.transAxes,
                va="center",
                fontsize=TEXT,
                color=INK,
            )
        axes.axhline(0, color="#999999", lw=0.8)
        axes.spines["left"].set_visible(True)
        for value in (-1, -0.5, 0, 0.5, 1):
            self._left_text(axes, value, f"{abs(value):g}")

    def draw_proposals(self, ranked: np.ndarray, labels: list[str] | None) -> None:
        rows = len(ranked)
        marks = []
        hits = None if self.tiou is None else np.any(self.tiou >= HIT_TIOU, axis=1)
        if hits is not None and rows and self.instances:
            rule = f"(tIoU ≥ {HIT_TIOU:g}{'' if labels is None else ', same class'})"
            hit, miss = ("o", _HIT), ("x", _MISS)
            if not self.named(rows):
                hit, miss = (("s", {"mfc": colour, "mew": 0}) for colour in (_STRIP_HIT, _STRIP_MISS))
            marks.append((*hit, f"{count(int(hits.sum()), 'hit')} {rule}"))
            marks.append((*miss, count(int((~hits).sum()), "miss")))
        end = self._heading(count(rows, "best proposal") if rows else "no proposal", *marks)
        axes = self._panel(self.row * max(rows, 1))
        axes.set_ylim(max(rows, 1), 0)
        if not rows:
            return
        low, high = float(ranked[:, 2].min()), float(ranked[:, 2].max())
        if labels is None or not self.named(rows):
            self._confidence_scale(low, high, end)
            colours = shades((ranked[:, 2] - low) / (high - low) if high > low else np.ones(rows))
        else:
            colours = [self.colours[name] for name in labels]
        self._bars(
            axes, ranked[:, :2], np.arange(rows) + 0.11, 0.78, label="proposals", facecolors=colours, linewidths=0
        )
        if marks and hits is not None:
            self._mark(axes, hits)
        if not self.named(rows):
            step = 10 if rows <= 5 * _NAMED_ROWS else 10 ** len(str(rows // 50))
            for place in (0, *range(step - 1, rows, step)):
                self._row_text(axes, place, str(place + 1))
            return
        beside = axes.get_yaxis_transform()
        for place in range(rows):
            self._row_text(axes, place, str(place + 1))
            if labels is not None:
                self._row_text(axes, place, self.names[labels[place]], self.beside)
            number = f"{ranked[place, 2]:.2f}" if high >= 0.01 else f"{ranked[place, 2]:.0e}"
            axes.text(
                *(1 + 0.62 / self.width, place + 0.5, number),
                transform=beside,
                ha="right",
                va="center_baseline",
                fontsize=SMALL,
                color=INK,
            )

    def _mark(self, axes: Axes, hits: np.ndarray) -> None:
        """Mark each row as hit or miss at the right of the axes."""
        from matplotlib.collections import PolyCollection

        beside = axes.get_yaxis_transform()
        if not self.named(len(hits)):
            left, right = 1 + 0.08 / self.width, 1 + 0.2 / self.width
            corners = [[(left, row), (left, row + 1), (right, row + 1), (right, row)] for row in range(len(hits))]
            colours = np.where(hits, _STRIP_HIT, _STRIP_MISS).tolist()
            strip = PolyCollection(corners, facecolors=colours, linewidths=0, transform=beside, label="hits")
            axes.add_collection(strip, autolim=False)
            strip.set_clip_on(False)
            return
        for chosen, marker, style in ((hits, "o", _HIT), (~hits, "x", _MISS)):
            y = np.flatnonzero(chosen) + 0.5
            x = np.full(len(y), 1 + 0.14 / self.width)
            name = "hits" if marker == "o" else "misses"
            axes.plot(x, y, ls="", marker=marker, transform=beside, clip_on=False, ms=4.2, label=name, **style)

    def _confidence_scale(self, low: float, high: float, after: float) -> None:
        """Draw the colours of the shown range at the right of the heading that was just written up to `after`."""
        from matplotlib.collections import PolyCollection

        texts = [f"{value:.2f}" if high >= 0.01 else f"{value:.0e}" for value in (low, high)]
        baseline = self.top - _GAP - self.height - 0.07
        widths = [text_width(self.figure, text, TEXT) for text in texts]
        bar = 0.7
        x = self.left + self.width + 0.62 - widths[1] - 0.06 - bar
        write(self.figure, x - 0.06 - widths[0], baseline, texts[0], color=MUTED)
        write(self.figure, x + bar + 0.06, baseline, texts[1], color=MUTED)
        name = "confidence"
        place = x - 0.06 - widths[0] - 0.1 - text_width(self.figure, name, TEXT)
        if place > after + 0.1:
            write(self.figure, place, baseline, name, color=MUTED)
        edges = x + np.linspace(0, bar, 41)
        low_y, high_y = baseline, baseline - 0.085
        strips = [[(a, low_y), (a, high_y), (b, high_y), (b, low_y)] for a, b in itertools.pairwise(edges)]
        corners = [[(a / WIDTH, 1 - b / self.size[1]) for a, b in strip] for strip in strips]
        colours = shades(np.linspace(0, 1, 40) if high > low else np.ones(40))
        self.figure.add_artist(
            PolyCollection(
                corners, facecolors=colours, edgecolors=colours, linewidths=0.3, transform=self.figure.transFigure
            )
        )

    def _bars(
        self, axes: Axes, segments: np.ndarray, tops: np.ndarray, height: float, label: str, **style: Any
    ) -> None:
        from matplotlib.collections import PolyCollection

        if not len(segments):
            return
        # A few pixels wide, so that a short one in a long video stays visible.
        least = 3 * self.duration_s / (self.width * DPI)
        segments = np.column_stack([segments[:, 0], np.maximum(segments[:, 1], segments[:, 0] + least)])
        corners = [
            [(start, top), (start, top + height), (end, top + height), (end, top)]
            for (start, end), top in zip(segments, tops, strict=True)
        ]
        axes.add_collection(PolyCollection(corners, label=label, zorder=2, **style), autolim=False)

    def _row_text(self, axes: Axes, place: int, text: str, distance: float = 0.08) -> None:
        self._left_text(axes, place + 0.5, text, distance)

    def _left_text(self, axes: Axes, y: float, text: str, distance: float = 0.08) -> None:
        """Write `text` at height `y`, `distance` inches left of the axes."""
        axes.text(
            *(-distance / self.width, y, text),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center_baseline",
            fontsize=TEXT,
            color=INK,
            parse_math=False,
        )

    def label_time(self) -> None:
        """Label the axis of the last panel in seconds below two minutes, else as min:s or h:min:s."""
        if self.duration_s < 120:
            unit, texts = "s", [f"{time:g}" for time in _ticks(self.duration_s)]
        else:
            unit, texts = ("h:min:s" if self.duration_s >= 3600 else "min:s"), []
            for time in _ticks(self.duration_s):
                minutes, rest = divmod(round(time), 60)
                hours = f"{minutes // 60}:{minutes % 60:02d}" if self.duration_s >= 3600 else str(minutes)
                texts.append(f"{hours}:{rest:02d}")
        below = self.axes.get_xaxis_transform()
        inch = 1 / self.height
        for time, text in zip(_ticks(self.duration_s), texts, strict=True):
            self.axes.text(
                *(time, -0.17 * inch, text), transform=below, ha="center", va="baseline", fontsize=TEXT, color=INK
            )
        self.axes.text(
            *(0.5, -0.36 * inch, f"time in the video ({unit})"),
            transform=self.axes.transAxes,
            ha="center",
            va="baseline",
            fontsize=TEXT,
            color=MUTED,
        )


def _tiou(proposals: np.ndarray, labels: list[str] | None, instances: Sequence[Instance]) -> np.ndarray:
    """tIoU [proposals, instances]; 0 between different classes."""
    segments = np.array([(instance.start, instance.end) for instance in instances]).reshape(-1, 2)
    rows, columns = np.indices((len(proposals), len(segments))).reshape(2, -1)
    tiou = pairwise_tiou(proposals[rows, :2], segments[columns]).reshape(len(proposals), len(segments))
    if labels is not None:
        tiou[np.array(labels)[:, None] != np.array([instance.label for instance in instances])[None]] = 0.0
    return tiou


def _lanes(instances: Sequence[Instance]) -> tuple[int, np.ndarray]:
    """Number of lanes that keep overlapping instances, sorted by start, apart, and the lane of each."""
    ends: list[float] = []
    lanes = []
    for instance in instances:
        lane = next((lane for lane, end in enumerate(ends) if end <= instance.start), len(ends))
        ends[lane : lane + 1] = [instance.end]
        lanes.append(lane)
    return len(ends), np.array(lanes)


def _maxima(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximum y, with its x, of each of at most _COLUMNS equal intervals."""
    stretches = np.array_split(np.arange(len(y)), min(_COLUMNS, max(len(y), 1)))
    peaks = [stretch[np.argmax(y[stretch])] for stretch in stretches if len(stretch)]
    return x[peaks], y[peaks]


def _ticks(duration_s: float) -> np.ndarray:
    """Round times in seconds, at most 13."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
    step = next((step for step in steps if duration_s / step <= 12), duration_s / 10)
    return step * np.arange(int(duration_s / step + 1e-9) + 1)
