"""The benchmark of P-GCN's training step runs, and reports no time of a form that computes something else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import second_stage_training as bench
from support.dense_pgcn import DensePGCN

from bcnet_fast.config import PGCNConfig
from bcnet_fast.errors import BackendError
from bcnet_fast.presets import SECOND_STAGE_PRESETS


@pytest.fixture(autouse=True)
def small(monkeypatch):
    config = replace(SECOND_STAGE_PRESETS["pgcn"]["thumos14"], model=PGCNConfig(classes=3, feature_dim=4, hidden=5))
    monkeypatch.setitem(SECOND_STAGE_PRESETS["pgcn"], "thumos14", config)


def test_every_form_has_a_row(tmp_path):
    path = tmp_path / "figures.json"
    assert bench.main(["--videos", "2", "--threads", "1", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert [row["form"] for row in figures["steps"]] == list(bench.FORMS)
    assert figures["nodes"] == 2 * 8 * 21 and all(row["median"] > 0 for row in figures["steps"])


def test_a_form_with_other_gradients_is_not_timed(monkeypatch):
    original = DensePGCN.forward

    def shifted(self, *inputs):
        output = original(self, *inputs)
        return replace(output, activity=2 * output.activity)

    monkeypatch.setattr(DensePGCN, "forward", shifted)
    with pytest.raises(
        BackendError, match=r"one matrix for all trees \(public\): expected the loss and gradients of 'bcnet_fast'"
    ):
        bench.check(bench.Step(2))
