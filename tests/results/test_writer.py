"""Result files: proposals go in as columns, and come out as the JSON that every reader of submissions knows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bcnet_fast.data.class_scores import ClassScores
from bcnet_fast.results.fusion import fuse, fuse_video
from bcnet_fast.results.reader import Results, read_results
from bcnet_fast.results.writer import ResultWriter

SEGMENTS = np.array([[1.0, 2.5], [0.125, 0.3]])
SCORES = np.array([0.9, 0.1])


def test_the_bytes_of_the_partial_and_of_the_final_file(tmp_path):
    writer = ResultWriter(tmp_path / "out.json", {"fps": 25})
    writer.add("b", SEGMENTS, SCORES, np.array(["run", "jump"], dtype=object))
    writer.add("a", SEGMENTS[:1], SCORES[:1])
    assert writer.partial.read_text() == (
        '{"settings": {"fps": 25}}\n'
        '{"video": "b", "proposals": [{"score": 0.9, "segment": [1.0, 2.5], "label": "run"}, '
        '{"score": 0.1, "segment": [0.125, 0.3], "label": "jump"}]}\n'
        '{"video": "a", "proposals": [{"score": 0.9, "segment": [1.0, 2.5]}]}\n'
    )
    assert writer.finish("VERSION 1.3", "how") == 3
    assert (tmp_path / "out.json").read_text() == (
        '{"version": "VERSION 1.3", "results": {\n'
        '"a": [{"score": 0.9, "segment": [1.0, 2.5]}],\n'
        '"b": [{"score": 0.9, "segment": [1.0, 2.5], "label": "run"}, '
        '{"score": 0.1, "segment": [0.125, 0.3], "label": "jump"}]\n'
        '}, "external_data": {"used": true, "details": "how", "settings": {"fps": 25}}}\n'
    )


def test_a_column_of_another_length_is_refused(tmp_path):
    writer = ResultWriter(tmp_path / "out.json", {})
    with pytest.raises(ValueError, match="scores has length 1, expected 2 as segments"):
        writer.add("a", SEGMENTS, SCORES[:1])
    with pytest.raises(ValueError, match="labels has length 3, expected 2 as segments"):
        writer.add("a", SEGMENTS, SCORES, ["run", "jump", "sit"])
    assert not writer.done
    writer.close()


def test_what_is_written_is_read_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    segments, scores = np.sort(rng.uniform(0, 100, (50, 2)), axis=1), rng.random(50)
    writer = ResultWriter(tmp_path / "out.json", {})
    writer.add("a", segments, scores)
    writer.finish("VERSION 1.3", "")
    found = read_results(tmp_path / "out.json")
    assert np.array_equal(found.segments, segments) and np.array_equal(found.scores, scores)


@pytest.mark.parametrize("rule", ["product", "sqrt"])
def test_the_detections_of_one_video_are_those_of_many_best_first(rule):
    rng = np.random.default_rng(0)
    segments, scores = np.sort(rng.uniform(0, 100, (40, 2)), axis=1), rng.random(40).round(1)  # many equal scores
    classes = ClassScores(("a", "b"), ("x", "y", "z"), rng.random((2, 3)))
    videos = {name: np.column_stack([segments, scores]) for name in "ab"}
    listed = fuse(Results.from_dict(videos), classes, rule, top_k=2).to_dict()["b"]
    expected = sorted(listed, key=lambda entry: -entry["score"])  # equal scores keep their order
    columns = fuse_video("b", segments, scores, classes, rule, top_k=2)
    found = [dict(zip(("segment", "score", "label"), row, strict=True)) for row in zip(*columns, strict=True)]
    assert [{**entry, "segment": entry["segment"].tolist()} for entry in found] == expected


def test_a_video_without_proposals_has_no_detections(tmp_path):
    classes = ClassScores(("a",), ("x",), np.ones((1, 1)))
    columns = fuse_video("a", np.empty((0, 2)), np.empty(0), classes, "product", top_k=1)
    writer = ResultWriter(tmp_path / "out.json", {})
    writer.add("a", *columns)
    writer.finish("VERSION 1.3", "")
    assert json.loads((tmp_path / "out.json").read_text())["results"] == {"a": []}
