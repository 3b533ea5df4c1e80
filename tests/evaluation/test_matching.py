"""Pairs and cleaned instances beside the plain loops that they replace."""

from __future__ import annotations

import numpy as np
import pytest

from bcnet_fast.data.annotations import Instance, VideoAnnotation
from bcnet_fast.evaluation.ground_truth import without_duplicates
from bcnet_fast.evaluation.matching import first_come_pairs


@pytest.mark.parametrize("alike", [False, True], ids=["random", "all want the same"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 3), (40, 60), (200, 97)])
def test_pairs_are_those_of_the_rule_in_turn(rng, rows, columns, alike):
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
    found = first_come_pairs(row, column)
    assert sorted(zip(row[found].tolist(), column[found].tolist(), strict=True)) == expected


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
