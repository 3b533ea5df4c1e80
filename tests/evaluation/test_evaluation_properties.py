"""Properties of average recall and average precision that hold for any results, on inputs from hypothesis."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bcnet_fast.data.annotations import Instance, VideoAnnotation
from bcnet_fast.evaluation import Results, average_recall, mean_average_precision

TIOU = (0.3, 0.5, 0.75)
spans = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda pair: (pair[0] / 2, (pair[0] + pair[1]) / 2))
labels = st.sampled_from(["run", "jump", "throw"])
instances = st.lists(st.tuples(spans, labels), max_size=5)
entries = st.lists(st.tuples(spans, labels, st.integers(0, 16).map(lambda n: n / 16)), max_size=8)
problems = st.dictionaries(st.sampled_from("abcd"), st.tuples(instances, entries), min_size=1)
properties = settings(max_examples=60, deadline=None, derandomize=True)


def read(problem: dict) -> tuple[dict[str, VideoAnnotation], dict[str, list[dict]]]:
    truth = {
        name: VideoAnnotation(name, instances=tuple(Instance(*span, label) for span, label in of_video))
        for name, (of_video, _) in problem.items()
    }
    results = {
        name: [{"segment": list(span), "label": label, "score": score} for span, label, score in of_video]
        for name, (_, of_video) in problem.items()
    }
    assume(any(video.instances for video in truth.values()))
    return truth, results


@properties
@given(problems)
def test_recall_rises_with_the_number_of_proposals_and_falls_with_the_threshold(problem):
    found = average_recall(*read(problem), tiou_thresholds=TIOU, max_proposals=10)
    assert ((found.recall >= 0) & (found.recall <= 1)).all()
    assert (np.diff(found.recall, axis=1) >= 0).all() and (np.diff(found.recall, axis=0) <= 0).all()
    assert 0 <= found.auc <= 100


@properties
@given(problems)
def test_the_truth_itself_is_found_and_precise(problem):
    truth, _ = read(problem)
    results = {
        name: [{"segment": [i.start, i.end], "label": i.label, "score": 1.0} for i in video.instances]
        for name, video in truth.items()
    }
    assert average_recall(truth, results, tiou_thresholds=TIOU, max_proposals=100).at(100) == 1
    assert (mean_average_precision(truth, results, tiou_thresholds=TIOU).average_precision == 1).all()


@properties
@given(problems)
def test_the_order_of_videos_does_not_matter(problem):
    truth, results = read(problem)
    assume(all(len({e["score"] for e in rows}) == len(rows) for rows in results.values()))  # ties go by place
    scores = [entry["score"] for rows in results.values() for entry in rows]
    assume(len(set(scores)) == len(scores))
    turned = dict(reversed(truth.items())), dict(reversed(results.items()))
    for metric, options in ((average_recall, {"max_proposals": 10}), (mean_average_precision, {})):
        one, other = (metric(*given, tiou_thresholds=TIOU, **options) for given in ((truth, results), turned))
        if metric is average_recall:
            np.testing.assert_array_equal(one.recall, other.recall)
        else:
            order = [other.labels.index(label) for label in one.labels]
            np.testing.assert_array_equal(one.average_precision, other.average_precision[order])


@properties
@given(problems)
def test_results_go_to_entries_and_back(problem):
    _, entries_of = read(problem)
    results = Results.from_dict(entries_of)
    again = Results.from_dict(results.to_dict())
    for field in dataclasses.fields(Results):
        np.testing.assert_array_equal(getattr(results, field.name), getattr(again, field.name))
