"""Average recall, mAP and class fusion against the public evaluators' numbers and against plain loops."""

from __future__ import annotations

import gzip
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers.sweeps import sweep
from support.plain_evaluation import plain_precision, plain_recall

from bcnet_fast import evaluate, evaluation
from bcnet_fast.cli.parser import run
from bcnet_fast.data.annotations import Instance, VideoAnnotation, read_annotations
from bcnet_fast.data.class_scores import ClassScores, read_class_scores
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import (
    METRICS,
    Results,
    average_recall,
    matching,
    mean_average_precision,
    read_results,
    without_duplicates,
)
from bcnet_fast.results import fusion
from bcnet_fast.results.fusion import fuse
from bcnet_fast.results.ordering import descending

EXACT = {"rtol": 0, "atol": 1e-9}
THUMOS, ACTIVITYNET = METRICS["thumos14"], METRICS["activitynet13"]
CASES = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden/evaluation_edge_cases.json.gz").read_bytes()))
RECALL_CASES = [case for case in CASES if case["kind"] == "AR"]
PRECISION_CASES = [case for case in CASES if case["kind"] == "mAP"]


def _truth(videos: dict[str, list[tuple[float, float, str]]]) -> dict[str, VideoAnnotation]:
    return {
        name: VideoAnnotation(id=name, instances=tuple(Instance(*instance) for instance in instances))
        for name, instances in videos.items()
    }


def _case_truth(case: dict) -> dict[str, VideoAnnotation]:
    database = case["ground_truth"]["database"]
    return _truth({n: [(*a["segment"], a["label"]) for a in v["annotations"]] for n, v in database.items()})


def _case_recall(case: dict, truth: dict[str, VideoAnnotation]) -> evaluation.AverageRecall:
    return average_recall(
        truth,
        case["result"]["results"],
        tiou_thresholds=case["tiou_thresholds"],
        max_proposals=case["max_avg_nr_proposals"],
        points=case["n_curve_points"],
    )


def _protocol_recall(truth: dict, proposals: object, protocol: evaluation.MetricSettings) -> evaluation.AverageRecall:
    return average_recall(
        truth, proposals, tiou_thresholds=protocol.recall_thresholds, max_proposals=protocol.max_proposals
    )


@pytest.mark.parametrize("case", RECALL_CASES, ids=lambda case: case["name"])
def test_recall_edge_case(case: dict) -> None:
    result = _case_recall(case, _case_truth(case))
    public = case["official"]
    if "raises" in public:
        # The public code stops here; OpenTAD counts the video's instances as missed, and so do we.
        assert result.auc == pytest.approx(100 * case["opentad"]["AUC"], abs=1e-9)
        assert result.videos_without_proposals
        return
    assert result.auc == pytest.approx(public["AUC_percent"], abs=1e-9)
    for point, value in public["AR"].items():
        assert result.average_recall[int(point) - 1] == pytest.approx(value, abs=1e-9)
    if public["avg_recall_curve"] is not None:
        np.testing.assert_allclose(result.average_recall, public["avg_recall_curve"], **EXACT)
    np.testing.assert_allclose(result.recall[:, -1], public["recall_per_threshold_at_last"], **EXACT)
    np.testing.assert_allclose(result.proposals_per_video[[0, -1]], public["proposals_per_video_first_last"], **EXACT)


# OpenTAD stops on the two cases with fewer curve points than AN = 100.
@pytest.mark.parametrize(
    "case", [case for case in RECALL_CASES if "raises" not in case["opentad"]], ids=lambda case: case["name"]
)
def test_recall_edge_case_of_opentad(case: dict) -> None:
    result = _case_recall(case, without_duplicates(_case_truth(case)))
    assert result.auc == pytest.approx(100 * case["opentad"]["AUC"], abs=1e-9)
    for key, value in case["opentad"].items():
        if key.startswith("AR@"):
            assert result.at(int(key[3:])) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("case", PRECISION_CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("whose", ["official", "opentad"])
def test_precision_edge_case(case: dict, whose: str) -> None:
    truth, expected = _case_truth(case), case[whose]
    if "raises" in expected:
        expected = case["opentad"]
    if whose == "opentad":
        truth = without_duplicates(truth)
    result = mean_average_precision(truth, case["result"]["results"], tiou_thresholds=case["tiou_thresholds"])
    assert result.average == pytest.approx(expected["average_mAP"], abs=1e-9)
    assert result.instances == expected["n_gt"]
    for label, values in expected.get("AP_per_class", {}).items():
        np.testing.assert_allclose(result.average_precision[result.labels.index(label)], values, **EXACT)


def _random_problem(seed: int) -> tuple[dict[str, VideoAnnotation], dict[str, list[dict]]]:
    """Videos with none to many instances of three classes, proposals near them, some videos on one side only."""
    rng = np.random.default_rng(seed)
    truth, results = {}, {}
    for video in range(rng.integers(2, 12)):
        starts = rng.uniform(0, 90, rng.integers(0, 30 if seed % 2 else 4))
        truth[f"v{video}"] = [(s, s + rng.uniform(0.5, 10), "abc"[rng.integers(3)]) for s in starts]
        entries = [
            {"segment": [s + rng.normal() * 0.5, e + 2 + rng.normal() * 0.5], "score": rng.random(), "label": label}
            for s, e, label in truth[f"v{video}"] * 3
        ]
        for start in rng.uniform(0, 90, rng.integers(0, 40)):
            label = "abcd"[rng.integers(4)]
            entries.append({"segment": [start, start + rng.uniform(0, 20)], "score": rng.random(), "label": label})
        if rng.random() < 0.8:
            results[f"v{video}"] = [entries[index] for index in rng.permutation(len(entries))]
    truth["v0"].append((1.0, 2.0, "a"))
    results["stranger"] = [{"segment": [0.0, 1.0], "score": 0.5, "label": "a"}]
    return _truth(truth), results


@pytest.mark.parametrize("seed", range(8))
def test_recall_equals_plain_loops(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, results = _random_problem(seed)
    thresholds, an, points = ACTIVITYNET.recall_thresholds, 5 + 10 * seed, 40
    # Few pairs at a time: the parts must fit together.
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 50)
    result = average_recall(truth, results, tiou_thresholds=thresholds, max_proposals=an, points=points)
    np.testing.assert_allclose(result.average_recall, plain_recall(truth, results, thresholds, an, points), **EXACT)
    assert result.videos_without_ground_truth[-1] == "stranger"


@pytest.mark.parametrize("seed", range(8))
def test_precision_equals_plain_loops(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, results = _random_problem(seed)
    thresholds = (0.1, 0.5, 0.75)
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 50)
    result = mean_average_precision(truth, results, tiou_thresholds=thresholds)
    expected = plain_precision(truth, results, thresholds)
    assert list(expected) == sorted(result.labels)
    for label, precision in zip(result.labels, result.average_precision, strict=True):
        np.testing.assert_allclose(precision, expected[label], **EXACT)
    assert result.unknown_labels == {"d": sum(e["label"] == "d" for es in results.values() for e in es)}


def test_equal_values_keep_the_public_order() -> None:
    assert descending(np.array([0.5, 0.9, 0.5, 0.1])).tolist() == [1, 2, 0, 3]
    # More than 16 values: the order that introsort with its median of three leaves.
    order = descending(np.zeros(20))
    assert sorted(order) == list(range(20)) and order.tolist() != list(range(19, -1, -1))


def test_no_proposals_is_no_recall() -> None:
    result = _protocol_recall(_truth({"v": [(0, 1, "a")]}), {"v": []}, ACTIVITYNET)
    assert result.auc == 0 and result.proposals_per_video[-1] == pytest.approx(100)


def _compare_recall(result: evaluation.AverageRecall, expected: dict) -> None:
    np.testing.assert_allclose(result.average_recall, expected["avg_recall_curve"], **EXACT)
    assert result.auc == pytest.approx(expected["AUC_percent"], abs=1e-9)
    for an, values in expected["recall_at"].items():
        np.testing.assert_allclose(result.recall[:, int(an) - 1], values, **EXACT)
    counts = (result.instances, result.videos, result.proposals)
    assert counts == (expected["n_gt"], expected["n_gt_videos"], expected["n_proposals"])


def _compare_precision(result: evaluation.MeanAveragePrecision, expected: dict) -> None:
    np.testing.assert_allclose(result.mean, list(expected["mAP"].values()), **EXACT)
    for label, values in expected["AP_per_class"].items():
        np.testing.assert_allclose(result.average_precision[result.labels.index(label)], values, **EXACT)
    assert (result.instances, result.detections) == (expected["n_gt"], expected["n_predictions"])


@pytest.fixture(scope="module")
def public(shared: Path) -> dict:
    return json.loads((shared / "golden/evaluation/golden.json").read_text())


def test_public_recall_on_thumos14(shared: Path, public: dict) -> None:
    truth = read_annotations(shared / "data/annotations/thumos_anno_eval.json", "test")
    proposals = read_results(shared / "golden/evaluation/results/thumos_101.json.gz")
    _compare_recall(_protocol_recall(truth, proposals, THUMOS), public["AR_thumos"])


def test_public_recall_and_precision_on_part_of_activitynet(shared: Path, public: dict) -> None:
    folder = shared / "golden/evaluation/results"
    truth = read_annotations(folder / "anet_gt_sub200_101.json.gz")
    recall = _protocol_recall(truth, read_results(folder / "anet_sub200_101.json.gz"), ACTIVITYNET)
    _compare_recall(recall, public["AR_anet_sub200"])
    detections = read_results(folder / "anet_det_sub200_101.json.gz")
    precision = mean_average_precision(truth, detections, tiou_thresholds=ACTIVITYNET.map_thresholds)
    _compare_precision(precision, public["mAP_anet_sub200"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["thumos_dense", "anet", "anet_uneven"])
def test_public_recall_on_generated_proposals(shared: Path, public: dict, kind: str) -> None:
    """Also mAP of the whole ActivityNet validation set, and OpenTAD's recall."""
    annotations = shared / "data/annotations"
    generator = runpy.run_path(str(shared / "golden/evaluation/gen_synth.py"))
    seed = public["meta"]["seed"]
    made = generator["make"](kind, seed, str(annotations))
    is_thumos = kind.startswith("thumos")
    protocol = THUMOS if is_thumos else ACTIVITYNET
    file = "thumos_anno_eval.json" if is_thumos else "anet13_val_gt.json"
    truth = read_annotations(annotations / file, protocol.subset)
    proposals = Results.from_dict(made["results"])
    _compare_recall(_protocol_recall(truth, proposals, protocol), public[f"AR_{kind}"])
    if f"AR_{kind}_OpenTAD" in public:
        expected = public[f"AR_{kind}_OpenTAD"]
        result = _protocol_recall(without_duplicates(truth), proposals, protocol)
        assert result.auc == pytest.approx(100 * expected["AUC"], abs=1e-9)
        assert result.instances == expected["n_gt"]
    if kind == "anet":
        labelled = generator["anet_detections"](made, generator["anet_labels"](seed, str(annotations)))
        result = mean_average_precision(truth, labelled["results"], tiou_thresholds=protocol.map_thresholds)
        _compare_precision(result, public["mAP_anet"])


@sweep(
    ("rule", "key", "file", "thresholds"),
    [
        ("bcnet", "mAP_thumos_bcnet_rule", "thumos_anno_eval.json", THUMOS.map_thresholds),
        ("bcnet", "mAP_thumos_bcnet_rule_9thr", "thumos_anno_eval.json", np.linspace(0.1, 0.9, 9)),
        ("gtad", "mAP_thumos_gtad_rule", "gtad_thumos_gt.json", THUMOS.map_thresholds),
    ],
)
def test_public_fusion_rules(shared: Path, public: dict, rule: str, key: str, file: str, thresholds: tuple) -> None:
    annotations, folder = shared / "data/annotations", shared / "golden/evaluation/results"
    detections = fuse(
        read_results(folder / "thumos_101.json.gz"),
        read_class_scores(annotations / "uNet_test.npy"),
        rule,
        videos=read_annotations(annotations / "thumos14_test_groundtruth.csv"),
    )
    expected = json.loads(gzip.decompress((folder / f"thumos_det_{rule}_101.json.gz").read_bytes()))["results"]
    assert detections.to_dict() == expected
    truth = read_annotations(annotations / file, "test")
    _compare_precision(mean_average_precision(truth, detections, tiou_thresholds=thresholds), public[key])


def test_published_precision(shared: Path) -> None:
    folder = shared / "data/published"
    published = json.loads((folder / "published.json").read_text())["files"][0]
    truth = read_annotations(folder / "stpn/gt.json", "test")
    thresholds = np.linspace(0.1, 0.9, 9)
    result = mean_average_precision(truth, read_results(folder / "stpn/results.json"), tiou_thresholds=thresholds)
    np.testing.assert_allclose(result.mean, list(published["computed"].values()), **EXACT)
    percent = [published["published_percent"][f"{threshold:.1f}"] for threshold in thresholds]
    # 4.988 was published as 4.9, the others are rounded.
    np.testing.assert_allclose(100 * result.mean, percent, atol=0.1)


PROPOSALS = Results.from_dict(
    {"v": [{"segment": [0.04, 9.0], "score": 0.5}, {"segment": [1, 2], "score": 0.2}], "w": []}
)
SCORES = ClassScores(("v",), ("a", "b", "c"), np.array([[0.25, -np.inf, 0.5]]))


def test_fusion_by_product_and_square_root() -> None:
    product = fuse(PROPOSALS, SCORES, "product", top_k=1)
    assert product.to_dict() == {
        "v": [
            {"score": 0.25, "segment": [0.04, 9.0], "label": "c"},
            {"score": 0.1, "segment": [1.0, 2.0], "label": "c"},
        ],
        "w": [],
    }
    # Three classes are asked for and two have a score.
    root = fuse(PROPOSALS, SCORES, "sqrt", top_k=3)
    assert [root.label_names[label] for label in root.label] == ["c", "a", "c", "a"]
    np.testing.assert_allclose(root.scores, np.sqrt([0.25, 0.125, 0.1, 0.05]))


def test_more_detections_of_a_video_than_its_memory_allows_are_refused(monkeypatch) -> None:
    # Of the three classes that are asked for, two have a score.
    monkeypatch.setattr(fusion, "MOST_DETECTIONS", 4)
    assert len(fuse(PROPOSALS, SCORES, top_k=3).scores) == 4
    monkeypatch.setattr(fusion, "MOST_DETECTIONS", 3)
    with pytest.raises(ValueError, match="'v' has 2 proposals with 2 classes each, expected at most 3 det"):
        fuse(PROPOSALS, SCORES, top_k=3)
    monkeypatch.setattr(fusion, "MOST_DETECTIONS", 1)
    assert len(fuse(PROPOSALS, SCORES, top_k=1).scores) == 2  # no more than there are proposals


def test_gtad_rule_cuts_to_the_video() -> None:
    videos = {"v": VideoAnnotation(id="v", duration=5.0)}
    assert fuse(PROPOSALS, SCORES, "gtad", videos=videos).segments[0].tolist() == [0.0, 5.0]
    assert fuse(PROPOSALS, SCORES, "gtad").segments[0].tolist() == [0.0, 9.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"results": {}}', "has no video"),
        ('{"results": {"v": []}}', "no proposal in 1 video"),
        (
            '{"results": {"v": [{"segment": [0, 1], "score": NaN}]}}',
            "video 'v' has the entry {'segment': [0, 1], 'score': nan}, expected a finite score",
        ),
        ('{"results": {"v": [{"segment": [0], "score": 1}]}}', "segment [start, end] of finite numbers"),
        ('{"results": {"v": [{"segment": [2, 1], "score": 1}]}}', "with start <= end"),
        ('{"results": {"v": [{"segment": [0, 1]}]}}', "expected a finite score"),
        ('{"results": {"v": {"segment": [0, 1]}}}', "expected a list of proposals"),
        ('{"results": {"v": [{"segment": [0, 1], "score": 1}], "v": []}}', "'v' occurs twice"),
        (
            '{"results": {"v": [{"segment": [0, 1], "score": 1}, {"segment": [0, 1], "score": 1, "label": "a"}]}}',
            "label",
        ),
        (
            '{"results": {"x": [{"segment": [0, 1], "score": 1}]}}',
            r"proposals for 'x' and others, expected some of the videos in",
        ),
        ('{"results": {"v": [', "invalid JSON at line 1"),
        (
            f'{{"results": {{"v": [{{"segment": [0, 1], "score": {10**400}}}]}}}}',
            "video 'v' has the entry",
        ),
        (
            f'{{"results": {{"v": [{{"segment": [0, {10**400}], "score": 1}}]}}}}',
            "video 'v' has the entry",
        ),
        pytest.param('{"results": ' + "1" * 5000 + "}", "a number has too many digits", id="digits"),
        pytest.param('{"results": ' + "[" * 200_000, "JSON is nested too deeply", id="nested"),
        ("[1]", "has list, expected"),
        (None, "does not exist"),
    ],
)
def test_evaluate_names_unusable_proposals(tmp_path: Path, content: str | None, message: str, capsys) -> None:
    proposals, truth = tmp_path / "proposals.json", tmp_path / "truth.json"
    truth.write_text('{"database": {"v": {"annotations": [{"segment": [0, 1], "label": "a"}]}}}')
    if content is not None:
        proposals.write_text(content)
    argv = ["--proposals", str(proposals), "--ground-truth", str(truth), "--preset", "thumos14"]
    with pytest.raises(SystemExit) as stop:
        run(lambda: evaluate.main(argv))
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in printed and "proposals.json" in printed and printed.count("\n") == 1


@pytest.fixture
def small_files(tmp_path: Path) -> list[str]:
    """Three annotated videos, one without proposals; a fourth has proposals only. Returns the arguments."""
    database = {
        "v": {"subset": "Validation", "annotations": [{"segment": [0, 10], "label": "a"}]},
        "w": {"subset": "validation", "annotations": [{"segment": [0, 10], "label": "b"}]},
        "u": {"subset": "validation", "annotations": [{"segment": [0, 10], "label": "a"}] * 2},
        "other": {"subset": "training", "annotations": [{"segment": [0, 10], "label": "c"}]},
    }
    results = {
        "v_v": [{"segment": [0, 10], "score": 0.5}, {"segment": [4, 9], "score": 0.5}],
        "w": [{"segment": [0, 9], "score": 0.9}],
        "x": [{"segment": [0, 9], "score": 0.8}],
    }
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    (tmp_path / "proposals.json.gz").write_bytes(gzip.compress(json.dumps({"results": results}).encode()))
    (tmp_path / "scores.csv").write_text("video,label,score\nv_v,a,0.7\nv_v,z,0.6\nw,b,0.3\n")
    files = ["--proposals", str(tmp_path / "proposals.json.gz"), "--ground-truth", str(tmp_path / "truth.json")]
    return [*files, "--preset", "activitynet13"]


def test_evaluate_prints_numbers_with_their_protocol(small_files: list[str], tmp_path: Path, capsys) -> None:
    written = ["--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "ar.png")]
    scores = ["--class-scores", str(tmp_path / "scores.csv"), "--top-k", "2"]
    assert evaluate.main([*small_files, *scores, *written]) == 0
    printed = capsys.readouterr()
    assert "activitynet13, protocol default: ground truth unchanged, 3 videos, 4 instances" in printed.out
    assert "note: 1.3 proposals per video: AR does not rise beyond that AN" in printed.out
    assert "AR@100" in printed.out and "AUC" in printed.out and "by the rule product, top 2" in printed.out
    for warning in (
        "(u) without proposals",
        "(x) with proposals but without ground truth",
        "2 of 4 proposals have the same score",
    ):
        assert warning in printed.err
    assert "2 detections ignored: 1 label (z)" in printed.err and "(x) without class scores" in printed.err

    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["average_recall"]["tiou_thresholds"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    truth = read_annotations(tmp_path / "truth.json", "validation")
    results = read_results(tmp_path / "proposals.json.gz").to_dict()
    results["v"] = results.pop("v_v")
    recall = _protocol_recall(truth, results, ACTIVITYNET)
    assert numbers["average_recall"]["AUC_percent"] == recall.auc
    # Class a: 3 instances and the second of v's two proposals is listed first; class b: all found up to tIoU 0.9.
    assert numbers["mean_average_precision"]["mAP"][0] == pytest.approx((1 / 3 * 1 / 1 * 1 + 1) / 2)
    assert (tmp_path / "ar.png").read_bytes().startswith(b"\x89PNG")
    assert evaluate.main([*small_files, "--plot", str(tmp_path / "shown"), "--plot-format", "svg"]) == 0
    assert (tmp_path / "shown" / "average_recall.svg").read_bytes().startswith(b"<?xml")


def test_evaluate_by_opentad_counts_duplicates_once(small_files: list[str], capsys) -> None:
    assert evaluate.main([*small_files, "--protocol", "opentad"]) == 0
    printed = capsys.readouterr().out
    assert "without duplicates and instances of zero length, 3 videos, 3 instances" in printed
    assert "Mean average precision" not in printed


def test_evaluate_takes_the_only_subset_of_a_file(small_files: list[str], tmp_path: Path, capsys) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(truth.read_text().replace("training", "Validation"))
    assert evaluate.main([*small_files, "--preset", "thumos14"]) == 0
    assert "truth.json: Validation, 4 videos" in capsys.readouterr().out
    truth.write_text(truth.read_text().replace('"u": {"subset": "validation"', '"u": {"subset": "mine"'))
    with pytest.raises(InputError, match=r"the subsets .*, expected 'test'; choose one with --subset"):
        evaluate.main([*small_files, "--preset", "thumos14"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--subset", "testing"], "the subsets Validation, training, validation, expected 'testing'"),
        (["--class-scores", "SCORES", "--top-k", "0"], "--top-k is 0, expected at least 1"),
        (
            ["--class-scores", "SCORES", "--fusion", "gtad", "--top-k", "1"],
            "--top-k is 1, expected no value, because --fusion gtad",
        ),
        (["--class-scores", "nowhere.npy"], "nowhere.npy does not exist, expected class scores"),
        (["--plot", "picture.txt", "--proposals", "not read"], "picture.txt has suffix '.txt', expected .png"),
        (["--plot-format", "pdf", "--proposals", "not read"], "--plot-format is pdf, expected --plot with it"),
        (["--plot", "ar.png", "--plot-format", "pdf", "--proposals", "not read"], "expected no value, because --plot"),
        (
            ["--fusion", "sqrt", "--class-scores", "SCORES", "--proposals", "NEGATIVE"],
            "negative.json with .* a negative value",
        ),
        (["--json", "TRUTH/deeper.json"], "is not writable"),
    ],
)
def test_evaluate_names_unusable_options(
    small_files: list[str], tmp_path: Path, extra: list[str], message: str
) -> None:
    places = {"SCORES": tmp_path / "scores.csv", "TRUTH/deeper.json": tmp_path / "truth.json/deeper.json"}
    places["NEGATIVE"] = tmp_path / "negative.json"
    places["NEGATIVE"].write_text('{"results": {"w": [{"segment": [0, 9], "score": -0.9}]}}')
    with pytest.raises(InputError, match=message):
        evaluate.main([*small_files, *(str(places.get(part, part)) for part in extra)])
