"""`evaluate --tiou`: accepted and refused thresholds."""

from __future__ import annotations

import json
import re

import pytest

from bcnet_fast import evaluate
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import METRICS
from bcnet_fast.evaluation.thresholds import parse_tiou, with_own_bits


@pytest.mark.parametrize(
    ("text", "thresholds"),
    [
        ("0.3:0.1:0.7", (0.3, 0.4, 0.5, 0.6, 0.7)),
        ("0.1:0.1:0.9", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        ("0.5:0.05:0.5", (0.5,)),
        ("0.75, 0.5,1", (0.75, 0.5, 1.0)),
        ("5e-1", (0.5,)),
    ],
)
def test_ranges_and_lists(text, thresholds):
    assert parse_tiou(text) == thresholds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--tiou is '', expected FIRST:STEP:LAST or a comma list"),
        ("0.5:0.7", "--tiou is '0.5:0.7', expected FIRST:STEP:LAST"),
        ("0.5,,0.7", "expected FIRST:STEP:LAST"),
        ("half", "--tiou is 'half', expected"),
        ("nan", "--tiou is 'nan', expected"),
        ("0.5:0:0.7", "expected FIRST:STEP:LAST"),
        ("1e999999:1e-999999:1", "expected FIRST:STEP:LAST"),
        ("0.7:0.1:0.3", "ends below its beginning"),
        ("0.3:0.1:0.75", "no whole number of steps leads from 0.3 to 0.75"),
        ("0.1:1e-9:0.9", "more than 100 thresholds"),
        ("0.1:1e-999999:0.9", "more than 100 thresholds"),
        ("1e-100000000:1e-100000000:1", "expected FIRST:STEP:LAST"),
        ("0.5:1e-100000000:1", "more than 100 thresholds"),
        ("1e-400", "has the threshold 1E-400, expected numbers above 0"),
        (f"0.3:0.1:0.7{'1' * 1000}", "no whole number of steps leads from 0.3 to 0.7111"),
        ("0.5,0", "has the threshold 0, expected numbers above 0"),
        ("50", "has the threshold 50, expected"),
        ("0.5,0.50", "has a threshold twice"),
    ],
)
def test_bad_values_are_one_line(text, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        parse_tiou(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_the_usual_ranges_keep_the_bits_of_the_metrics():
    for name, recall, precision in (
        ("thumos14", "0.5:0.05:1", "0.3:0.1:0.7"),
        ("activitynet13", "0.5:0.05:0.95", "0.5:0.05:0.95"),
    ):
        settings = METRICS[name]
        assert with_own_bits(parse_tiou(recall), settings.recall_thresholds) == settings.recall_thresholds
        assert with_own_bits(parse_tiou(precision), settings.map_thresholds) == settings.map_thresholds


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("protocol", ["default", "release", "opentad", "th14"])
def test_the_command_reports_in_the_order_of_the_thresholds(tmp_path, capsys, metric, protocol):
    truth = {"v": {"annotations": [{"segment": [0, 10], "label": "a"}]}}
    (tmp_path / "truth.json").write_text(json.dumps({"database": truth}))
    found = {"v": [{"segment": [0, 6.3], "score": 1, "label": "a"}]}
    (tmp_path / "results.json").write_text(json.dumps({"results": found}))
    files = ["--proposals", str(tmp_path / "results.json"), "--ground-truth", str(tmp_path / "truth.json")]
    flags = ["--metric", metric, "--protocol", protocol, "--json", str(tmp_path / "out.json")]
    assert evaluate.main([*files, *flags, "--tiou", "0.7,0.625,0.1"]) == 0
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["mean_average_precision"]["tiou_thresholds"] == [0.7, 0.625, 0.1]
    assert numbers["mean_average_precision"]["mAP"] == [0.0, 1.0, 1.0]
    recall = numbers["average_recall"]
    assert recall["tiou_thresholds"] == [0.7, 0.625, 0.1] and recall["AR@100" if metric != "thumos14" else "AR@50"] > 0
    assert "0.70 0.6250   0.10" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--tiou is '0\.7:', expected"):
        evaluate.main([*files, *flags, "--tiou", "0.7:"])
