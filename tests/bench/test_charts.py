"""The charts of the benchmarks show the figures of the tables, readable at the width of a README."""

from __future__ import annotations

import re

import benchmarks_page
import pytest
from helpers.pictures import overlapping, texts
from support import charts

from bcnet_fast.results.figure import ACCENT, DPI

README_WIDTH = 830  # pixels


@pytest.fixture(params=["latency", "latency_maps", "ops"])
def drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    figures: list = []
    monkeypatch.setattr(charts, "save", lambda figure, path: figures.append(figure))
    found = benchmarks_page.results(request.param)[0]
    chart = charts.operators if request.param == "ops" else charts.latency
    chart(found["rows"], found["environment"], "unused.png")
    return request.param, found, figures[0]


def test_texts_are_apart_and_readable(drawn) -> None:
    _, _, figure = drawn
    assert not overlapping(figure)
    width, height = figure.get_size_inches() * DPI
    scale = README_WIDTH / width
    assert height * scale <= 900
    sizes = {text.get_fontsize() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_fontsize"))}
    assert min(sizes) * DPI / 72 * scale > 9  # pixels


def test_the_figures_are_those_of_the_tables_and_no_others(drawn) -> None:
    name, found, figure = drawn
    table = benchmarks_page.operators(found) if name == "ops" else benchmarks_page.latency(found)
    if name == "ops":
        ratios = [text for text in texts(figure) if re.fullmatch(r"[\d.]+x", text) and text not in _ticks(figure)]
        cases = {(row["operator"], row["mode"], row["shape"]) for row in found["rows"]}
        assert len(ratios) == len(cases) and all(f"({ratio})" in table for ratio in ratios)
        return
    figures = [text for text in texts(figure) if re.fullmatch(r"[\d.]+( \([\d.]+x\))?", text)]
    figures = [text for text in figures if text not in _ticks(figure)]
    cells = {cell.strip().replace("\u00a0", " ") for line in table.splitlines() for cell in line.split("|")}
    assert len(figures) >= 14 and set(figures) <= cells


def test_one_colour_for_this_package_and_greys_for_the_others(drawn) -> None:
    name, _, figure = drawn
    if name == "ops":
        return
    (axes,) = figure.axes
    colours = {patch.get_facecolor()[:3] for patch in axes.patches}
    coloured = {colour for colour in colours if len(set(colour)) > 1}
    (own,) = coloured
    assert "#" + "".join(f"{round(255 * part):02x}" for part in own) == ACCENT
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0


def _ticks(figure) -> set[str]:
    return {label.get_text() for axes in figure.axes for label in axes.get_xticklabels()}
