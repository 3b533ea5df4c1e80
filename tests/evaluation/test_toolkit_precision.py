"""The metric of the THUMOS'14 toolkit: by hand, against plain loops, and through the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support.plain_evaluation import plain_toolkit_precision

from bcnet_fast import evaluate
from bcnet_fast.data.annotations import Instance, VideoAnnotation, read_annotations
from bcnet_fast.evaluation import matching, toolkit_precision

THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
ANNOTATIONS = """video,type,type_idx,start,end,startFrame,endFrame
a,Diving,26,0,10,0,300
a,Ambiguous,0,20,30,600,900
a,Diving,26,40,50,1200,1500
b,LongJump,51,5,6,150,180
c,Ambiguous,0,1,2,30,60
"""


def truth_of(**videos: tuple[list[tuple[float, float, str]], list[tuple[float, float]]]) -> dict[str, VideoAnnotation]:
    return {
        name: VideoAnnotation(id=name, instances=tuple(Instance(*one) for one in instances), ambiguous=tuple(ambiguous))
        for name, (instances, ambiguous) in videos.items()
    }


def entry(start: float, end: float, score: float, label: str = "a") -> dict:
    return {"segment": [start, end], "score": score, "label": label}


def precision(truth: dict, threshold: float = 0.5, **results: list[dict]) -> float:
    found = toolkit_precision(truth, results, tiou_thresholds=[threshold])
    return float(found.average_precision[0, 0])


def test_instances_choose_the_largest_overlap_in_file_order():
    truth = truth_of(v=([(0, 10, "a"), (1, 9, "a")], []))
    # The first instance takes the second detection, whose score is lower, and leaves the first one to the other.
    assert precision(truth, v=[entry(0, 8, 0.9), entry(0, 10, 0.5)]) == 1.0
    # One detection: the first instance takes it, although the second fits better.
    assert precision(truth, v=[entry(1, 9, 0.9)]) == 0.5


def test_of_equal_overlaps_the_higher_score_is_taken():
    truth = truth_of(v=([(0, 10, "a")], []))
    assert precision(truth, v=[entry(0, 8, 0.5), entry(2, 10, 0.9)]) == 1.0
    assert precision(truth, v=[entry(2, 10, 0.9), entry(0, 8, 0.5)]) == 1.0


def test_an_overlap_equal_to_the_threshold_is_a_miss():
    truth = truth_of(v=([(0, 10, "a")], []))
    assert precision(truth, 0.5, v=[entry(0, 5, 1.0)]) == 0.0
    assert precision(truth, 0.49, v=[entry(0, 5, 1.0)]) == 1.0


def test_free_detections_in_ambiguous_intervals_are_left_out():
    truth = truth_of(v=([(0, 10, "a"), (0, 1, "b")], [(20, 30)]))
    one = entry(0, 10, 0.5)
    assert precision(truth, v=[entry(29.9, 60, 0.9), one]) == 1.0
    assert precision(truth, v=[entry(30, 60, 0.9), one]) == 0.5  # it only touches
    assert precision(truth, v=[one], w=[entry(20, 30, 0.9)]) == 0.5  # of another video
    # A detection taken by an instance counts, wherever it lies.
    assert precision(truth_of(v=([(0, 10, "a")], [(0, 20)])), v=[one]) == 1.0


def test_average_precision_is_not_interpolated_and_right_ones_come_first_in_ties():
    truth = truth_of(v=([(0, 10, "a"), (20, 30, "a")], []))
    found = [entry(50, 60, 0.9), entry(0, 10, 0.8), entry(20, 30, 0.7)]
    assert precision(truth, v=found) == pytest.approx((1 / 2 + 2 / 3) / 2)
    tied = [entry(50, 60, 0.8), entry(0, 10, 0.8), entry(60, 70, 0.8), entry(20, 30, 0.8)]
    assert precision(truth, v=tied) == 1.0


def random_problem(seed: int) -> tuple[dict[str, VideoAnnotation], dict[str, list[dict]]]:
    """Videos with ties of scores and of overlaps, ambiguous intervals, empty classes, strangers, single detections."""
    rng = np.random.default_rng(seed)
    truth, results = {}, {}

    def interval() -> tuple[float, float]:
        start = float(rng.integers(0, 60)) if seed % 2 else rng.uniform(0, 60)
        return start, start + (float(rng.integers(1, 8)) if seed % 2 else rng.uniform(0.1, 8))

    for video in range(rng.integers(2, 9)):
        instances = [(*interval(), "abc"[rng.integers(3)]) for _ in range(rng.integers(0, 12))]
        ambiguous = [interval() for _ in range(rng.integers(0, 3))]
        truth |= truth_of(**{f"v{video}": (instances, ambiguous)})
        near = [entry(*sorted((s + rng.normal(), e + rng.normal())), 0.0, label) for s, e, label in instances * 2]
        entries = near + [entry(*interval(), 0.0, "abd"[rng.integers(3)]) for _ in range(rng.integers(0, 30))]
        for one in entries:
            one["score"] = float(rng.integers(0, 5)) if rng.random() < 0.5 else rng.random() * 5
        if rng.random() < 0.9:
            results[f"v{video}"] = [entries[index] for index in rng.permutation(len(entries))][
                : 1 if video == 1 else 99
            ]
    truth |= truth_of(one=([(0, 1, "a"), (0, 2, "e")], []))
    results["stranger"] = [entry(0, 1, 2.0)]
    return truth, results


@pytest.mark.parametrize("seed", range(12))
def test_the_fast_form_equals_plain_loops(seed, monkeypatch):
    truth, results = random_problem(seed)
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 40)  # the parts must fit together
    found = toolkit_precision(truth, results, tiou_thresholds=THRESHOLDS)
    expected = plain_toolkit_precision(truth, results, THRESHOLDS)
    assert sorted(found.labels) == list(expected)
    for label, values in zip(found.labels, found.average_precision, strict=True):
        np.testing.assert_allclose(values, expected[label], rtol=0, atol=1e-12)
    assert found.average_precision[found.labels.index("e")].tolist() == [0.0] * len(THRESHOLDS)


def test_no_detection_is_no_precision():
    truth = truth_of(v=([(0, 10, "a")], [(1, 2)]))
    assert toolkit_precision(truth, {"v": []}, tiou_thresholds=THRESHOLDS).mean.tolist() == [0.0] * len(THRESHOLDS)


def test_both_csv_layouts_have_the_same_ambiguous_intervals(shared):
    folder = shared / "data/annotations"
    by_type = read_annotations(folder / "thumos_test_Annotation.csv")
    by_index = read_annotations(folder / "thumos14_test_groundtruth.csv")
    assert sum(len(video.ambiguous) for video in by_type.values()) == 99
    for name, video in by_type.items():
        assert dataclasses.astuple(by_index[name])[-2:] == dataclasses.astuple(video)[-2:]


def evaluated(tmp_path: Path, *flags: str) -> dict:
    output = tmp_path / "numbers.json"
    files = ["--proposals", str(tmp_path / "results.json"), "--ground-truth", str(tmp_path / "truth.csv")]
    assert evaluate.main([*files, "--metric", "thumos14", "--json", str(output), *flags]) == 0
    return json.loads(output.read_text())


def test_the_command_computes_it(tmp_path, capsys):
    (tmp_path / "truth.csv").write_text(ANNOTATIONS)
    found = {"a": [entry(25, 29, 0.9, "Diving"), entry(0, 10, 0.5, "Diving")], "c": [entry(1, 2, 0.8, "Diving")]}
    (tmp_path / "results.json").write_text(json.dumps({"results": found}))
    numbers = evaluated(tmp_path, "--protocol", "th14")
    # Both others of Diving lie in ambiguous intervals, one of them in a video without instances.
    assert numbers["mean_average_precision"]["AP_per_class"]["Diving"] == [0.5] * 5
    assert numbers["mean_average_precision"]["mAP"] == [0.25] * 5
    assert "mAP of the THUMOS'14 toolkit" in capsys.readouterr().out
    assert evaluated(tmp_path)["mean_average_precision"]["AP_per_class"]["Diving"] == [pytest.approx(1 / 6)] * 5
    (tmp_path / "truth.csv").write_text("\n".join(ANNOTATIONS.splitlines()[i] for i in (0, 1, 3)))
    evaluated(tmp_path, "--protocol", "th14")
    assert "has no Ambiguous interval" in capsys.readouterr().err
    labelled = {"a": {"annotations": [{"segment": [0, 1], "label": "x"}, {"segment": [4, 5], "label": "Ambiguous"}]}}
    (tmp_path / "truth.csv").write_text(json.dumps({"database": labelled}))
    (tmp_path / "results.json").write_text(
        json.dumps({"results": {"a": [entry(4, 5, 0.9, "x"), entry(0, 1, 0.5, "x")]}})
    )
    numbers = evaluated(tmp_path, "--protocol", "th14")["mean_average_precision"]
    assert numbers["AP_per_class"] == {"x": [1.0] * 5} and numbers["instances"] == 1
