"""The benchmark of the second stage runs, and reports no time of a form that gives other scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import second_stage
import torch
from support.public_second_stage import drawn_trees, muses_deformable, pgcn_one_by_one, pooled_one_by_one

from bcnet_fast.config import PGCNConfig, SecondStageConfig
from bcnet_fast.errors import BackendError
from bcnet_fast.geometry.proposal_graph import draw_trees, neighbour_slots
from bcnet_fast.networks.engine import REWRITES
from bcnet_fast.networks.engine.pgcn import PGCNEngine
from bcnet_fast.networks.engine.rewrites import IN_CPP
from bcnet_fast.networks.range_maxima import proposal_features
from bcnet_fast.presets import SECOND_STAGE_PRESETS


@pytest.fixture
def few_runs(monkeypatch):
    alternate = second_stage.alternate
    monkeypatch.setattr(
        second_stage, "alternate", lambda calls, **_: alternate(calls, seconds=0.0, least_runs=2, warm_up=False)
    )


@pytest.mark.slow  # networks of the released sizes
def test_every_form_has_a_row(tmp_path, few_runs, monkeypatch, capsys):
    monkeypatch.setattr(second_stage, "peak_apart", lambda *_: 1.0)
    path = tmp_path / "figures.json"
    arguments = ["--proposals", "9", "--rows", "12", "--threads", "1", "--videos", "2", "--json", str(path)]
    assert second_stage.main(arguments) == 0
    figures = json.loads(path.read_text())
    forms = {(row["case"], row["form"]) for row in figures["networks"]}
    for case, system in (("P-GCN, trees", "pgcn"), ("P-GCN, all slots", "pgcn"), ("MUSES-Net", "muses")):
        prefix = {name: "without" if name in IN_CPP else "PyTorch without" for name in REWRITES[system]}
        names = {"all", "PyTorch", "PyTorch without any", "reference"}
        names |= {f"{words} {name}" for name, words in prefix.items()}
        if case == "P-GCN, all slots":
            names -= {*second_stage.SLOW_WITH_SLOTS}
        assert {form for of_case, form in forms if of_case == case} == names
    whole = {(row["case"], row["form"]) for row in figures["whole"]}
    assert whole == {
        *((case, form) for case in ("P-GCN, trees", "MUSES-Net") for form in ("all", second_stage.PUBLIC)),
        ("P-GCN, all slots", "all"),
    }
    assert [row["form"] for row in figures["training"]] == ["all", second_stage.PUBLIC]
    assert "neighbours of all proposals" in capsys.readouterr().out
    assert (figures["proposals"], figures["rows"]) == (9, 12)


@pytest.mark.slow  # networks of the released sizes
def test_the_public_formulation_is_the_definition():
    video = second_stage.make_video(30, 40)
    slots = neighbour_slots(video.segments)
    trees = draw_trees(slots, np.random.RandomState(777))
    assert np.array_equal(drawn_trees(video.segments, np.random.RandomState(777)), trees)
    pooled = pooled_one_by_one(video.rows, video.windows())
    for found, expected in zip(pooled, proposal_features(video.rows, torch.from_numpy(video.windows())), strict=True):
        assert torch.equal(found, expected)
    pgcn = second_stage.loaded("pgcn", backend="reference")
    muses = second_stage.loaded("muses", backend="reference")
    rois = torch.tensor([[0, 90], [8, 300]])
    with torch.no_grad():
        pairs = [
            (pgcn_one_by_one(pgcn.network, *pooled, trees), pgcn(*pooled, trees)),
            (muses_deformable(muses.network, video.rows.T, rois), muses(video.rows.T, rois)),
        ]
    for found, expected in pairs:
        for name, scores in vars(expected).items():
            torch.testing.assert_close(getattr(found, name), scores, atol=1e-5, rtol=1e-4)


@pytest.mark.slow  # networks of the released sizes
def test_the_memory_of_a_form_is_its_own():
    video = second_stage.make_video(64, 40)
    peak = second_stage.peak_of("P-GCN, trees", second_stage.PUBLIC, video)
    assert peak is None or 64 * 21 * 4096 * 4 / 2**20 < peak < 200  # the features of all nodes, and a little more


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
    with pytest.raises(BackendError, match="a case, PyTorch without root_rows: expected the scores of 'reference'"):
        second_stage.measure("pgcn", "a case", inputs, "cpu")
