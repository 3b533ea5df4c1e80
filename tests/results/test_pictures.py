"""The pictures are whole files of the asked format, and show what they are given."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import bars, overlapping, texts
from helpers.sweeps import sweep

from bcnet_fast.data.annotations import Instance, VideoAnnotation
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import AverageRecall, average_recall, recall_curve
from bcnet_fast.results import pictures
from bcnet_fast.results.timeline import best_count, timeline

START = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
TRUTH = [Instance(1, 2, "b"), Instance(3, 5, "a"), Instance(6, 7, "b")]


def recall_of(thresholds: tuple[float, ...]) -> AverageRecall:
    truth = {"v": VideoAnnotation(id="v", instances=(Instance(0, 10, "a"), Instance(20, 30, "a")))}
    proposals = {"v": np.array([[0, 9, 0.9], [21, 30, 0.5]])}
    return average_recall(truth, proposals, tiou_thresholds=thresholds, max_proposals=10)


@pytest.fixture
def recall() -> AverageRecall:
    return recall_of((0.5, 0.95))


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures of recall curves instead of their files."""
    drawn: list = []
    monkeypatch.setattr(recall_curve, "save", lambda figure, path: drawn.append(figure))
    return drawn


def spread_proposals(n: int, duration_s: float) -> np.ndarray:
    starts = np.linspace(0, 0.9, n) * duration_s
    return np.column_stack([starts, starts + 0.05 * duration_s, np.linspace(0.9, 0.1, n)])


@pytest.mark.parametrize("suffix", START)
def test_both_pictures_in_each_format(tmp_path: Path, recall: AverageRecall, suffix: str) -> None:
    recall_curve.ar_curve(recall, tmp_path / f"ar{suffix}", title="thumos14")
    timeline(tmp_path / f"new/v{suffix}", video_id="v", duration_s=3.0, proposals=np.array([[0.5, 1.5, 0.7]]))
    for path in (tmp_path / f"ar{suffix}", tmp_path / f"new/v{suffix}"):
        assert path.read_bytes().startswith(START[suffix])
        assert [other.suffix for other in path.parent.iterdir() if other.is_file()] == [suffix]


def test_unknown_format_is_refused(tmp_path: Path, recall: AverageRecall) -> None:
    with pytest.raises(InputError, match=r"ar\.jpeg2 has suffix '\.jpeg2', expected \.png"):
        recall_curve.ar_curve(recall, tmp_path / "ar.jpeg2")
    with pytest.raises(InputError, match=r"v\.gif has suffix '\.gif', expected \.png"):
        timeline(tmp_path / "v.gif", video_id="v", duration_s=3.0, ground_truth=TRUTH)
    assert not list(tmp_path.iterdir())


def test_ar_curve_draws_each_threshold_and_the_mean(recall: AverageRecall, curves: list) -> None:
    recall_curve.ar_curve(recall, "unused.png")
    lines = {line.get_label(): line for line in curves[0].axes[0].lines}
    np.testing.assert_allclose(lines["mean (AR)"].get_ydata(), 100 * recall.average_recall)
    last = [lines[name].get_ydata()[-1] for name in ("tIoU 0.50", "tIoU 0.95", "mean (AR)")]
    np.testing.assert_allclose(last, [100, 0, 50])


@pytest.mark.parametrize("ends", ["equal", "close", "middle", "far"])
@sweep("count", [2, 10, 40], keep=2)
def test_labels_of_a_recall_curve_are_beside_their_lines_and_apart(count: int, ends: str, curves: list) -> None:
    """Lines may end in the same point: all labels are inside the figure, in the order of the lines and apart."""
    result = recall_of(tuple(np.linspace(0.5, 0.89, count)))
    highest, lowest = {"equal": (1.0, 1.0), "close": (1.0, 0.9), "middle": (0.5, 0.48), "far": (1.0, 0.0)}[ends]
    recalls = result.recall * np.linspace(highest, lowest, count)[:, None]
    result = dataclasses.replace(result, recall=recalls, average_recall=recalls.mean(axis=0))
    recall_curve.ar_curve(result, "unused.png", title="long " * 60)
    assert not overlapping(curves[0])
    names = [text.get_text() for text in curves[0].axes[0].texts]
    assert len(names) == count + 1 and names[-1] == "mean (AR)"
    heights = [text.get_position()[1] for text in curves[0].axes[0].texts]
    assert heights[:-1] == sorted(heights[:-1], reverse=True)
    if count == 2 and ends == "far":
        np.testing.assert_allclose(heights, [100, 0, 50])  # at the lines themselves
    # From light to dark.
    shades = [sum(line.get_color()[:3]) for line in curves[0].axes[0].lines if line.get_label().startswith("tIoU")]
    assert shades == sorted(shades, reverse=True) and len(set(shades)) == count


def test_one_threshold_needs_no_mean(curves: list) -> None:
    recall_curve.ar_curve(recall_of((0.5,)), "unused.png")
    assert [text.get_text() for text in curves[0].axes[0].texts] == ["tIoU 0.50"]


@pytest.mark.parametrize("duration_s", [10.0, 3600.0])
def test_timeline_shows_instances_boundaries_and_ranked_proposals(duration_s: float) -> None:
    times = np.arange(0, duration_s, 0.2)
    start = np.zeros_like(times)
    start[len(times) // 3] = 0.9  # one snippet, far narrower than a pixel in an hour
    proposals = np.array([[1.0, 2.0, 0.2], [4.0, 4.0, 0.8]])
    figure = timeline(
        video_id="v", duration_s=duration_s, boundary=(times, start, start), proposals=proposals, ground_truth=TRUTH
    )
    instances, boundary, ranked = figure.axes
    assert [bar[0] for bar in bars(instances, "b")] == [6, 1] or sorted(bar[0] for bar in bars(instances, "b")) == [
        1,
        6,
    ]
    assert [bar[0] for bar in bars(instances, "a")] == [3]
    curves = {line.get_label(): line.get_ydata() for line in boundary.lines}
    assert curves["start"].max() == 0.9 and curves["end"].min() == -0.9
    first, second = bars(ranked, "proposals")
    assert (first[0], second[0]) == (4, 1) and first[1] > first[0]
    (collection,) = (found for found in ranked.collections if found.get_label() == "proposals")
    # The colours span the shown confidences, from dark to light.
    dark, light = collection.get_facecolors()[:, :3].sum(axis=1)
    assert dark < light
    assert {"confidence", "0.20", "0.80"} <= set(texts(figure)) and ranked.get_xlim() == (0, duration_s)
    assert {"a", "b", "1", "2"} <= set(texts(figure))
    assert ("2" if duration_s < 60 else "0:10:00") in texts(figure)
    assert not overlapping(figure)


def test_hits_and_misses_are_those_of_the_evaluation() -> None:
    proposals = np.array([[1, 2, 0.9], [3, 4, 0.8], [3, 3.9, 0.7], [8, 9, 0.6]])

    def marked(labels: list[str] | None) -> list[int]:
        ranked = timeline(video_id="v", duration_s=10, proposals=proposals, labels=labels, ground_truth=TRUTH).axes[-1]
        (hits,) = (line for line in ranked.lines if line.get_label() == "hits")
        return np.floor(hits.get_ydata()).astype(int).tolist()

    assert marked(None) == [0, 1]  # tIoU 1, 0.5, 0.45, 0
    assert marked(["b", "b", "a", "a"]) == [0]
    figure = timeline(video_id="v", duration_s=10, proposals=proposals, ground_truth=TRUTH)
    assert {"2 hits (tIoU ≥ 0.5)", "2 misses", "2 found by the proposals below", "1 missed"} <= set(texts(figure))
    filled = {tuple(bar[:2]) for name in "ab" for bar in bars(figure.axes[0], name, filled=True)}
    assert filled == {(1, 2), (3, 5)}
    plain = timeline(video_id="v", duration_s=10, proposals=proposals)
    assert not any("hit" in text or "miss" in text for text in texts(plain)) and not plain.axes[-1].lines


def test_labelled_proposals_have_the_name_and_colour_of_their_class() -> None:
    proposals = spread_proposals(3, 10.0)
    figure = timeline(video_id="v", duration_s=10, proposals=proposals, labels=["b", "a", "b"], ground_truth=TRUTH)
    instances, ranked = figure.axes
    (colours,) = (found.get_facecolors() for found in ranked.collections if found.get_label() == "proposals")
    assert (colours[0] == colours[2]).all() and (colours[0] != colours[1]).any()
    outline = next(found for found in instances.collections if found.get_label() == "b")
    assert (outline.get_edgecolors()[0] == colours[0]).all()
    assert texts(figure).count("b") == 3 and texts(figure).count("a") == 2  # with those of the instances
    assert "confidence" not in texts(figure) and "0.90" in texts(figure)


@pytest.mark.parametrize(("instances", "shown"), [(0, 10), (1, 10), (12, 12), (40, 30)])
def test_as_many_proposals_as_true_actions(instances: int, shown: int) -> None:
    truth = [Instance(2 * i, 2 * i + 1, "a") for i in range(instances)]
    proposals = spread_proposals(100, 100.0)
    ranked = timeline(video_id="v", duration_s=100, proposals=proposals, ground_truth=truth).axes[-1]
    assert len(bars(ranked, "proposals")) == shown == best_count(instances)
    ranked = timeline(video_id="v", duration_s=100, proposals=proposals, ground_truth=truth, best=3).axes[-1]
    assert len(bars(ranked, "proposals")) == 3


@sweep(("rows", "labelled"), [(1, True), (10, False), (700, True), (30, True), (100, True)], keep=3)
@sweep("duration_s", [75.0, 0.8, 5400.0])
def test_no_text_lies_on_another_or_outside(rows: int, labelled: bool, duration_s: float) -> None:
    # Names without glyphs are drawn as boxes.
    names = ["a name of a class that is far too long for its row", "b", "$x_{y", "タイトル"]
    edges = np.linspace(0, duration_s, 41)
    truth = [Instance(float(a), float(b), names[i % 4]) for i, (a, b) in enumerate(itertools.pairwise(edges))]
    figure = timeline(
        video_id="$video_{\n" + "long " * 40,
        duration_s=duration_s,
        boundary=(edges, edges / duration_s, edges / duration_s),
        proposals=spread_proposals(rows, duration_s),
        labels=[names[i % 4] for i in range(rows)] if labelled else None,
        ground_truth=truth,
        best=rows,
    )
    assert not overlapping(figure)
    ranks = {str(rank + 1) for rank in range(rows)}
    assert rows > 100 or ranks <= set(texts(figure))
    assert figure.get_figheight() < 22


def test_timeline_of_nothing_found() -> None:
    figure = timeline(video_id="v", duration_s=5.0, proposals=np.zeros((0, 3)), ground_truth=[])
    assert {"no proposal", "no true action"} <= set(texts(figure))
    with pytest.raises(ValueError, match="expected at least one of them"):
        timeline(video_id="v", duration_s=5.0)


def test_where_pictures_go() -> None:
    assert pictures.picture_path("shown", None, "a") == Path("shown/a.png")
    assert pictures.picture_path("shown.v2", "pdf", "a") == Path("shown.v2/a.pdf")
    assert pictures.picture_path("./a.SVG", None, "b") == Path("a.SVG")
    with pytest.raises(InputError, match=r"--plot-format is svg, expected no value, because --plot a\.png is one pic"):
        pictures.picture_path("a.png", "svg", "b")
    with pytest.raises(InputError, match=r"--plot a\.jpg has suffix '\.jpg', expected \.png, \.svg, \.pdf or a folder"):
        pictures.picture_path("a.jpg", None, "b")
    with pytest.raises(InputError, match="--plot-format is svg, expected --plot with it"):
        pictures.optional_picture_path(None, "svg", "b")


@pytest.mark.parametrize("plot", ["one.png", "./one.png"])
def test_one_picture_holds_one_video(plot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is one picture, expected a folder for 2 videos"):
        pictures.PictureWriter(plot, None, ["a", "b"], ground_truth={})
    assert not list(tmp_path.iterdir())
    writer = pictures.PictureWriter(plot, None, ["a"], ground_truth={})
    times = np.arange(3.0)
    writer.add("a", 3.0, (times, times / 3, times / 3), np.array([[0.0, 1.0]]), np.array([0.5]), None)
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"] and writer.seconds > 0


def test_a_timeline_of_very_many_classes_draws_some_and_says_how_many_are_left() -> None:
    truth = [Instance(place, place + 1, f"class {place:04d}") for place in range(101)]
    figure = timeline(video_id="v", duration_s=101, ground_truth=truth)
    assert any("1 class not drawn" in text for text in texts(figure)) and "class 0099" in texts(figure)
    assert "class 0100" not in texts(figure)


def test_names_of_files_differ_where_ids_do() -> None:
    names = ["a_b", "a/b", "a\nb", "caf\udce9", "\ud800", "x" * 300, "x" * 301]
    files = [pictures.file_name(name) for name in names]
    assert len(set(files)) == len(names) and files[0] == "a_b"
    assert all(name.isprintable() and "/" not in name and len(name) < 230 for name in files)
