"""The benchmark of the second stage runs, and reports no time of a form that gives other scores."""

from __future__ import annotations

import json

import pytest
import second_stage
import torch

from bcnet_fast.config import PGCNConfig, SecondStageConfig
from bcnet_fast.errors import BackendError
from bcnet_fast.networks.engine import REWRITES
from bcnet_fast.networks.engine.pgcn import PGCNEngine
from bcnet_fast.presets import SECOND_STAGE_PRESETS


@pytest.fixture
def few_runs(monkeypatch):
    alternate = second_stage.alternate
    monkeypatch.setattr(
        second_stage, "alternate", lambda calls, **_: alternate(calls, seconds=0.0, least_runs=2, warm_up=False)
    )


@pytest.mark.slow  # networks of the released sizes
def test_every_form_has_a_row(tmp_path, few_runs, capsys):
    path = tmp_path / "figures.json"
    assert second_stage.main(["--proposals", "9", "--rows", "12", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    forms = {(row["case"], row["form"]) for row in figures["networks"]}
    for case, system in (("P-GCN, trees", "pgcn"), ("P-GCN, all slots", "pgcn"), ("MUSES-Net", "muses")):
        names = {"all", *(f"without {name}" for name in REWRITES[system]), "none", "reference"}
        if case == "P-GCN, all slots":
            names -= {*second_stage.SLOW_WITH_SLOTS}
        assert {form for of_case, form in forms if of_case == case} == names
    assert "neighbours of all proposals" in capsys.readouterr().out
    assert (figures["proposals"], figures["rows"]) == (9, 12)


def test_a_form_with_other_scores_is_not_timed(monkeypatch, few_runs):
    small = SecondStageConfig("thumos14", PGCNConfig(classes=3, feature_dim=4, hidden=5))
    monkeypatch.setitem(SECOND_STAGE_PRESETS["pgcn"], "thumos14", small)
    call = PGCNEngine.__call__

    def shifted(self, *inputs):
        output = call(self, *inputs)
        output.completeness += 0 if self.rewrites.root_rows else 1
        return output

    monkeypatch.setattr(PGCNEngine, "__call__", shifted)
    inputs = [torch.rand(5, 4), torch.rand(5, 12), torch.randint(5, (5, 21))]
    with pytest.raises(BackendError, match="a case, without root_rows: expected the scores of 'reference'"):
        second_stage.measure("pgcn", "a case", inputs, "cpu")
