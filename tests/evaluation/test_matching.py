"""Pairs and cleaned instances beside the plain loops that they replace."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from bcnet_fast.data.annotations import Instance, VideoAnnotation
from bcnet_fast.evaluation import Results, matching, mean_average_precision, toolkit_precision
from bcnet_fast.evaluation.ground_truth import without_duplicates
from bcnet_fast.evaluation.matching import first_come_pairs


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("alike", [False, True], ids=["random", "all want the same"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 3), (40, 60), (200, 97)])
def test_pairs_are_those_of_the_rule_in_turn(rng, rows, columns, alike, calls):
    wanted = [np.arange(columns) if alike else rng.permutation(columns) for _ in range(rows)]
    wanted = [one[: rng.integers(0, columns + 1)] for one in wanted]
    row = np.repeat(np.arange(rows), [len(one) for one in wanted])
    column = np.concatenate(wanted)
    expected, free = [], set(range(columns))
    for one, choices in enumerate(wanted):
        taken = next((choice for choice in choices.tolist() if choice in free), None)
        if taken is not None:
            free.remove(taken)
            expected.append((one, taken))
    left, found = np.ones(columns, dtype=bool), []
    for of_call in np.array_split(np.arange(rows), calls):  # which columns are free passes from call to call
        pairs = np.flatnonzero(np.isin(row, of_call))
        found.append(pairs[first_come_pairs(row[pairs], column[pairs], left)])
    found = np.concatenate(found)
    assert sorted(zip(row[found].tolist(), column[found].tolist(), strict=True)) == expected
    assert set(np.flatnonzero(left).tolist()) == free


@pytest.mark.parametrize("metric", [mean_average_precision, toolkit_precision])
def test_memory_does_not_grow_with_the_pairs_of_a_class_and_video(metric, monkeypatch):
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 1 << 10)
    alike = {"v": VideoAnnotation("v", instances=(Instance(0.0, 10.0, "a"),) * 400)}
    entries = {"v": [{"segment": [0.0, 10.0], "score": number, "label": "a"} for number in range(400)]}
    detections = Results.from_dict(entries)
    tracemalloc.start()
    try:
        assert metric(alike, detections, tiou_thresholds=[0.5, 0.9]).average == pytest.approx(1.0)
        assert tracemalloc.get_traced_memory()[1] < 160_000 * 4  # 160,000 pairs
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("tolerance_s", [0.0, 1e-3, 0.3])
def test_duplicates_are_those_of_the_plain_loop(rng, tolerance_s):
    ends = rng.integers(-3, 6, (300, 2)) * 0.1 + rng.choice([0, 5e-4, 2e-3], (300, 2))
    instances = [Instance(*one, label) for one, label in zip(ends.tolist(), rng.choice(["a", "b"], 300), strict=True)]
    kept: list[Instance] = []
    for one in instances:
        if one.end > one.start and not any(
            other.label == one.label
            and abs(other.start - one.start) <= tolerance_s
            and abs(other.end - one.end) <= tolerance_s
            for other in kept
        ):
            kept.append(one)
    found = without_duplicates({"v": VideoAnnotation("v", instances=tuple(instances))}, tolerance_s)
    assert list(found["v"].instances) == kept
