"""The evaluators' numbers are those of their definitions, on results that hypothesis makes up."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bcnet_fast import compat

TIOU, TOP_K = (0.3, 0.5, 0.75), (1, 2)
LABELS = ("run", "jump")
spans = st.tuples(st.integers(0, 20), st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
# Distinct, because equal instances count once.
instances = st.lists(st.tuples(spans, st.sampled_from(LABELS)), max_size=4, unique=True)
found = st.lists(st.tuples(spans, st.sampled_from((*LABELS, "throw"))), max_size=6)
problems = st.dictionaries(st.sampled_from("abc"), st.tuples(instances, found), min_size=1)
properties = settings(max_examples=50, deadline=None, derandomize=True)


def tiou(a, b):
    inter = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return inter / ((a[1] - a[0]) + (b[1] - b[0]) - inter)


def distinct_overlaps(problem) -> bool:
    """Else the order of sorting decides which of two instances a detection takes."""
    return all(
        len({tiou(span, other) for other, of in truth if of == label}) == sum(of == label for _, of in truth)
        for truth, rows in problem.values()
        for span, label in rows
    )


def average_precision(truth, rows, threshold):
    """Area under the curve of the highest precision at each recall or a higher one. rows: (video, span), best first."""
    taken, hits = set(), []
    for video, span in rows:
        overlaps = [(tiou(span, other), i) for i, (name, other) in enumerate(truth) if name == video and i not in taken]
        best = max(overlaps, default=(0, None))
        hits.append(best[1] is not None and best[0] >= threshold)
        if hits[-1]:
            taken.add(best[1])
    precision = [sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))]
    return sum(max(precision[n:]) for n, hit in enumerate(hits) if hit) / len(truth)


def top_recall(truth, rows, threshold, k):
    count = 0
    for video in {name for name, _ in truth}:
        of_video = [span for name, span in truth if name == video]
        best = [span for name, span in rows if name == video][: k * len(of_video)]
        count += sum(any(tiou(row, span) >= threshold for row in best) for span in of_video)
    return count / len(truth)


def average_recall(problem, results, threshold, n, most):
    """Recall of each video's share of n proposals a video on average, at most `most` of them."""
    videos = {name: [span for span, _ in truth] for name, (truth, _) in problem.items() if truth}
    total = sum(len(rows) for rows in results.values())
    lists = {name: results[name][: min(len(results[name]), int(len(results[name]) * (most * len(videos) / total)))]
             for name in videos}  # fmt: skip
    if not any(lists.values()):  # proposals are of other videos
        return 0.0
    share = n / most * (most * len(videos) / sum(map(len, lists.values())))
    count = sum(
        any(tiou(row["segment"], span) >= threshold for row in lists[name][: min(int(len(lists[name]) * share), 99)])
        for name, spans in videos.items()
        for span in spans
    )
    return count / sum(map(len, videos.values()))


@pytest.fixture(scope="module")
def path():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "truth.json"


@properties
@given(problem=problems, seed=st.integers(0, 5))
def test_numbers_are_those_of_plain_loops(path, problem, seed):
    assume(any(truth for truth, _ in problem.values()) and distinct_overlaps(problem))
    scores = iter(np.random.default_rng(seed).permutation(100) / 100)
    database, results, rows = {}, {}, []
    for name, (truth, of_video) in problem.items():
        entries = [{"segment": s, "label": label, "label_id": len(label)} for s, label in truth]
        database[name] = {"subset": "test", "annotations": entries}
        scored = sorted(zip(of_video, scores, strict=False), key=lambda row: -row[1])  # strict: scores go on
        results[name] = [{"segment": list(s), "label": label, "score": score} for (s, label), score in scored]
        rows += [(score, name, s, label) for (s, label), score in scored]
    path.write_text(json.dumps({"database": database}))
    rows.sort(key=lambda row: -row[0])

    classes = [label for label in LABELS if any(of == label for truth, _ in problem.values() for _, of in truth)]
    per_class = [
        (
            [(name, span) for name, (truth, _) in problem.items() for span, of in truth if of == label],
            [(name, span) for _, name, span, of in rows if of == label],
        )
        for label in classes
    ]
    precision = [np.mean([average_precision(*one, t) for one in per_class]) for t in TIOU]
    recall = [[np.mean([top_recall(*one, t, k) for one in per_class]) for k in TOP_K] for t in TIOU]

    evaluator = compat.mAP(str(path), {"results": results}, "test", TIOU, TOP_K)
    evaluator.evaluate()
    np.testing.assert_allclose(evaluator.mAPs, precision)
    np.testing.assert_allclose(evaluator.mRecall, recall)

    columns = {
        "video-id": [name for _, name, _, _ in rows],
        "t-start": [span[0] for _, _, span, _ in rows],
        "t-end": [span[1] for _, _, span, _ in rows],
        "label": [len(of) + 10 * (of not in classes) for *_, of in rows],
        "score": [score for score, *_ in rows],
    }
    mean, average, of_k = compat.ANETdetection(path, "test", TIOU, TOP_K).evaluate(columns, verbose=False)
    np.testing.assert_allclose(mean, precision)
    np.testing.assert_allclose(of_k, recall)
    assert average == pytest.approx(np.mean(precision))

    if any(results[name] for name, (truth, _) in problem.items() if truth):
        evaluator = compat.Recall(str(path), {"results": results}, "test", TIOU, [1, 3], max_avg_nr_proposals=3)
        metrics = evaluator.evaluate()
        plain = [[average_recall(problem, results, t, n, 3) for n in (1, 2, 3)] for t in TIOU]
        np.testing.assert_allclose(evaluator.recall, plain)
        assert metrics["AR@3"] == pytest.approx(np.mean(plain, axis=0)[2])
