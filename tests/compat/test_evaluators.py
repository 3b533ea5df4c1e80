"""The evaluators of ActionFormer, TriDet and OpenTAD: called as their projects call them, with their tables."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from bcnet_fast import compat
from bcnet_fast.compat import tridet
from bcnet_fast.errors import InputError

DATABASE = {
    "a": {
        "subset": "Validation",
        "annotations": [
            {"segment": [0, 10], "label": "run", "label_id": 7},
            {"segment": [20, 30], "label": "run", "label_id": 7},
            {"segment": [20.0005, 30], "label": "run", "label_id": 7},  # repeats the one before
            {"segment": [40, 40], "label": "jump", "label_id": 3},  # no length
        ],
    },
    "b": {"subset": "Validation", "annotations": [{"segment": [0, 8], "label": "jump", "label_id": 3}]},
    "c": {"subset": "training", "annotations": [{"segment": [0, 9], "label": "throw", "label_id": 9}]},
}
# Video, start, end, label, its number, score. For "run": found at tIoU 1, wrong, found at 0.8; "jump": found at 0.5.
FOUND = [
    ("a", 0, 10, "run", 7, 0.9),
    ("a", 50, 60, "run", 7, 0.8),
    ("a", 20, 28, "run", 7, 0.7),
    ("b", 0, 4, "jump", 3, 0.6),
]
THRESHOLDS = np.array([0.5, 0.75])
# "run" has precision 1 up to half of the recall, then 2 / 3.
RUN = (1 + 2 / 3) / 2


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "thumos14.json"
    path.write_text(json.dumps({"database": DATABASE}))
    return str(path)


@pytest.fixture
def detections():
    videos, start, end, _, label, score = zip(*FOUND, strict=True)
    numbers = {"t-start": start, "t-end": end, "label": label, "score": score}
    return {"video-id": list(videos)} | {name: torch.tensor(values).numpy() for name, values in numbers.items()}


@pytest.fixture
def results():
    entries: dict[str, list] = {}
    for video, start, end, label, _, score in FOUND:
        entries.setdefault(video, []).append({"segment": [start, end], "label": label, "score": score})
    return {"results": entries}


def test_anetdetection_of_actionformer(truth, detections, capsys):
    evaluator = compat.ANETdetection(truth, "validation", tiou_thresholds=THRESHOLDS)
    mean, average, recall = evaluator.evaluate(detections)
    np.testing.assert_allclose(mean, [(RUN + 1) / 2, RUN / 2])
    assert average == pytest.approx(mean.mean())
    # The best two of "run" in its video hold one of its two instances, the best ten both.
    np.testing.assert_allclose(recall, [[(0.5 + 1) / 2, 1], [0.25, 0.5]])
    np.testing.assert_allclose(evaluator.ap, [[1, RUN], [0, RUN]])  # classes by number
    assert capsys.readouterr().out == (
        "[RESULTS] Action detection results on thumos14.\n"
        "\n|tIoU = 0.50: mAP = 91.67 (%) Recall@1x = 75.00 (%) Recall@5x = 100.00 (%) "
        "\n|tIoU = 0.75: mAP = 41.67 (%) Recall@1x = 25.00 (%) Recall@5x = 50.00 (%) \n"
        "Average mAP: 66.67 (%)\n"
    )


def test_anetdetection_takes_lists_tensors_and_files(truth, detections, tmp_path):
    evaluator = compat.ANETdetection(truth, "validation", THRESHOLDS, (1,), "label_id", 0, 8, "name")
    expected = evaluator.evaluate(detections, verbose=False)
    database: dict[str, list] = {}
    for video, start, end, _, label, score in FOUND:
        database.setdefault(video, []).append({"segment": [start, end], "label_id": label, "scores": score})
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"database": database}))
    as_tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in detections.items()}
    as_lists = {k: list(v) for k, v in detections.items()}
    for given in (as_tensors, as_lists, str(path)):
        for a, b in zip(evaluator.evaluate(given, verbose=False), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_anetdetection_names_classes_that_nothing_was_found_for(truth, detections, capsys):
    detections = {name: column[:3] for name, column in detections.items()}
    mean, *_ = compat.ANETdetection(truth, "validation", THRESHOLDS).evaluate(detections, verbose=False)
    np.testing.assert_allclose(mean, [RUN / 2, RUN / 2])
    assert set(capsys.readouterr().out.splitlines()) == {"Warning: No predictions of label '3' were provdied."}


def test_anetdetection_of_tridet(truth, detections, capsys):
    mean, average = tridet.ANETdetection(truth, "validation", THRESHOLDS).evaluate(detections)
    np.testing.assert_allclose(mean, [(RUN + 1) / 2, RUN / 2])
    assert capsys.readouterr().out == (
        "[RESULTS] Action detection results on thumos14.\n"
        "\n|tIoU = 0.50: mAP = 91.67 (%)\n|tIoU = 0.75: mAP = 41.67 (%)\nAvearge mAP: 66.67 (%)\n"
    )
    assert average == pytest.approx(2 / 3)


@pytest.mark.parametrize("as_file", [True, False])
def test_map_of_opentad(truth, results, tmp_path, capsys, as_file):
    if as_file:
        path = tmp_path / "result_detection.json"
        path.write_text(json.dumps(results))
        results = str(path)
    evaluator = compat.mAP(truth, results, "Validation", [0.5, 0.75], top_k=(1, 5), thread=16)
    precision = {"average_mAP": 2 / 3, "mAP@0.5": (RUN + 1) / 2, "mAP@0.75": RUN / 2}
    recall = {"recall@0.5@1": 0.75, "recall@0.5@5": 1.0, "recall@0.75@1": 0.25, "recall@0.75@5": 0.5}
    assert evaluator.evaluate() == pytest.approx(precision | recall)
    evaluator.logging()
    assert capsys.readouterr().out == (
        "Loaded annotations from Validation subset.\n"
        "Number of ground truth instances: 3\n"
        "Number of predictions: 4\n"
        "Fixed threshold for tiou score: [0.5, 0.75]\n"
        "Average-mAP: 66.67 (%)\n"
        "mAP at tIoU 0.50 is 91.67%\n"
        "mAP at tIoU 0.75 is 41.67%\n"
        "Fixed top-kx results: (1, 5)\n"
        "Recall at tIoU 0.50: R1 is 75.00%, R5 is 100.00%\n"
        "Recall at tIoU 0.75: R1 is 25.00%, R5 is 50.00%\n"
    )


def test_recall_of_opentad(truth, results, caplog):
    evaluator = compat.Recall(truth, results, "Validation", [0.5, 0.75], topk=[1, 2, 10], max_avg_nr_proposals=10)
    metrics = evaluator.evaluate()
    # Two videos, four proposals, which is two a video; all are taken in proportion to the video's share.
    # One a video on average: the first of "a" (half of three, rounded down), none of "b".
    np.testing.assert_allclose(evaluator.recall[:, 0], [1 / 3, 1 / 3])
    np.testing.assert_allclose(evaluator.recall[:, 1], [1, 2 / 3])
    assert metrics["AR@1"] == pytest.approx(1 / 3) and metrics["AR@2"] == pytest.approx(5 / 6)
    assert metrics["AR@10"] == pytest.approx(5 / 6)
    assert metrics["AUC"] == pytest.approx((5 / 6 * 8 + (1 / 3 + 5 / 6) / 2) / 10)
    with caplog.at_level(logging.INFO):
        evaluator.logging(logging.getLogger())
    assert caplog.messages[-4:] == ["AUC: 72.50 (%)", "AR@  1 is 33.33%", "AR@  2 is 83.33%", "AR@ 10 is 83.33%"]


def test_a_curve_over_all_proposals_may_end_between_whole_numbers(truth, results):
    results["results"]["b"].append({"segment": [100, 101], "label": "jump", "score": 0.1})
    evaluator = compat.Recall(truth, results, "Validation", [0.5], topk=[1], max_avg_nr_proposals=None)
    metrics = evaluator.evaluate()
    # Five proposals in two videos are 2.5 a video; as in OpenTAD, the last point is the whole number above.
    np.testing.assert_allclose(evaluator.proposals_per_video, [1, 2, 3])
    np.testing.assert_allclose(evaluator.recall, [[1 / 3, 2 / 3, 1]])
    assert metrics["AUC"] == pytest.approx((1 / 2 + 5 / 6) / 3)


def test_blocked_videos_count_nowhere(truth, results, tmp_path):
    blocked = tmp_path / "blocked.json"
    blocked.write_text('["b"]')
    assert compat.mAP(truth, results, "Validation", [0.5], blocked_videos=str(blocked)).evaluate() == pytest.approx(
        {"average_mAP": RUN, "mAP@0.5": RUN}
    )
    recall = compat.Recall(truth, results, "Validation", [0.5], [1], blocked_videos=str(blocked)).evaluate()
    assert recall["AR@1"] == 0.5


def test_labels_that_no_instance_has_are_only_counted(truth, results, capsys):
    results["results"]["c"] = [{"segment": [0, 1], "label": "throw", "score": 1.0}]
    evaluator = compat.mAP(truth, results, "Validation", [0.5])
    assert evaluator.evaluate()["average_mAP"] == pytest.approx((RUN + 1) / 2)
    evaluator.logging()
    assert "Number of predictions: 5\n" in capsys.readouterr().out


def test_nothing_found_is_zero(truth):
    metrics = compat.mAP(truth, {"results": {}}, "Validation", [0.5], (1,)).evaluate()
    assert metrics == {"average_mAP": 0, "mAP@0.5": 0, "recall@0.5@1": 0}
    assert compat.Recall(truth, {"results": {}}, "Validation", [0.5], [1]).evaluate() == {"AUC": 0, "AR@1": 0}
    empty = {name: np.zeros(0) for name in ("video-id", "t-start", "t-end", "label", "score")}
    mean, average, recall = compat.ANETdetection(truth, "validation", THRESHOLDS).evaluate(empty, verbose=False)
    assert not mean.any() and average == 0 and not recall.any()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda path: compat.ANETdetection(path, "Validation"), "no instance, expected at least one"),  # lower case
        (lambda path: compat.mAP(path, {"results": {}}, "validation", [0.5]), "no instance, expected at least one"),
        (lambda path: compat.mAP(path, {"result": {}}, "Validation", [0.5]), "prediction_filename has the keys result"),
        (lambda path: compat.mAP("none.json", {"results": {}}, "Validation", [0.5]), "none.json"),
        (lambda path: compat.ANETdetection(path, None).evaluate({"score": []}), "preds is a dict without 'video-id'"),
        (
            lambda path: compat.mAP(path, {"results": {"a": [{"segment": [1]}]}}, "Validation", [0.5]),
            "video 'a': an entry without a segment of two numbers",
        ),
        (
            lambda path: compat.Recall(path, {"results": {}}, "Validation", [0.5], [200]).evaluate(),
            "topk is .200., expected numbers from 1 to 100",
        ),
    ],
)
def test_refusals_name_file_and_expectation(truth, call, message):
    with pytest.raises(InputError, match=message):
        call(truth)
