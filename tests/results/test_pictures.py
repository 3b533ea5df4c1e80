"""The pictures are whole files of the asked format, and show what they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bcnet_fast.data.annotations import Instance, VideoAnnotation
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import AverageRecall, average_recall, recall_curve
from bcnet_fast.results import timeline as plot

START = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture
def recall() -> AverageRecall:
    truth = {"v": VideoAnnotation(id="v", instances=(Instance(0, 10, "a"), Instance(20, 30, "a")))}
    proposals = {"v": np.array([[0, 9, 0.9], [21, 30, 0.5]])}
    return average_recall(truth, proposals, tiou_thresholds=(0.5, 0.95), max_proposals=10)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures instead of their files."""
    drawn: list = []
    for module in (plot, recall_curve):
        monkeypatch.setattr(module, "save", lambda figure, path: drawn.append(figure))
    return drawn


@pytest.mark.parametrize("suffix", START)
def test_both_pictures_in_each_format(tmp_path: Path, recall: AverageRecall, suffix: str) -> None:
    recall_curve.ar_curve(recall, tmp_path / f"ar{suffix}", title="thumos14")
    plot.timeline(tmp_path / f"new/v{suffix}", video_id="v", duration_s=3.0, proposals=np.array([[0.5, 1.5, 0.7]]))
    for path in (tmp_path / f"ar{suffix}", tmp_path / f"new/v{suffix}"):
        assert path.read_bytes().startswith(START[suffix])
        assert [other.suffix for other in path.parent.iterdir() if other.is_file()] == [suffix]


def test_unknown_format_is_refused(tmp_path: Path, recall: AverageRecall) -> None:
    with pytest.raises(InputError, match=r"ar\.jpeg2 has suffix '\.jpeg2', expected \.png"):
        recall_curve.ar_curve(recall, tmp_path / "ar.jpeg2")
    assert not list(tmp_path.iterdir())


def test_ar_curve_draws_each_threshold_and_the_mean(recall: AverageRecall, figures: list) -> None:
    recall_curve.ar_curve(recall, "unused.png")
    lines = figures[0].axes[0].lines
    np.testing.assert_allclose(lines[-1].get_ydata(), 100 * recall.average_recall)
    np.testing.assert_allclose([line.get_ydata()[-1] for line in lines], [100, 0, 50])


@pytest.mark.parametrize("duration_s", [10.0, 3600.0])
def test_timeline_shows_instances_boundaries_and_ranked_proposals(duration_s: float, figures: list) -> None:
    times = np.arange(0, duration_s, 0.2)
    start = np.zeros_like(times)
    start[len(times) // 3] = 0.9  # one snippet, far narrower than a pixel in an hour
    proposals = np.array([[1.0, 2.0, 0.2], [4.0, 4.0, 0.8]])
    truth = [Instance(1, 2, "b"), Instance(3, 5, "a"), Instance(6, 7, "b")]
    plot.timeline(
        "unused.png",
        video_id="v",
        duration_s=duration_s,
        boundary=(times, start, start),
        proposals=proposals,
        ground_truth=truth,
    )
    figure = figures[0]
    figure.canvas.draw()
    instances, boundary, ranked, bar = figure.axes
    assert [label.get_text() for label in instances.get_yticklabels()] == ["a", "b"]
    assert [bar.get_x() for bar in instances.containers[0]] == [1, 3, 6]
    assert boundary.lines[0].get_ydata().max() == 0.9 and boundary.lines[1].get_ydata().min() == -0.9
    first, second = ranked.containers[0]
    assert (first.get_x(), second.get_x()) == (4, 1) and first.get_width() > 0
    assert first.get_facecolor() != second.get_facecolor() and bar.get_ylabel() == "confidence"
    assert ranked.get_xlim() == (0, duration_s)
    labels = [label.get_text() for label in ranked.get_xticklabels()]
    assert 4 <= len(labels) <= 16 and ("2 s" if duration_s < 60 else "0:10:00") in labels


def test_timeline_of_nothing_found(figures: list) -> None:
    plot.timeline("unused.png", video_id="v", duration_s=5.0, proposals=np.zeros((0, 3)), ground_truth=[])
    figures[0].canvas.draw()
    with pytest.raises(ValueError, match="expected at least one of them"):
        plot.timeline("unused.png", video_id="v", duration_s=5.0)
