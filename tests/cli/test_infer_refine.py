"""`infer --refine FILE`: the detections of `infer` and then `refine`, in one run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.infer import flags
from helpers.infer import run as infer
from helpers.refine import LABELS, checkpoint, results_of, run
from helpers.view import data_of

from bcnet_fast.config import MUSESConfig, PGCNConfig
from bcnet_fast.errors import InputError
from bcnet_fast.infer import main

MODELS = {
    "pgcn": PGCNConfig(classes=3, feature_dim=10, hidden=5),
    "muses": MUSESConfig(classes=3, feature_dim=10, channels=(5, 7), head_width=4),
}


@pytest.mark.parametrize("system", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_one_run_equals_two(tmp_path, checkpoint_of_proposals, features, system):
    second = checkpoint(tmp_path / "second.safetensors", system, model=MODELS[system])
    code, proposals = infer(checkpoint_of_proposals, features, output=tmp_path / "proposals.json")
    assert code == 0
    assert run(proposals, features, second, tmp_path / "two.json", "--fps", 25) == 0
    code, output = infer(checkpoint_of_proposals, features, "--refine", second, output=tmp_path / "one.json")
    assert code == 0
    expected = results_of(tmp_path / "two.json")
    assert results_of(output) == expected and {e["label"] for e in expected["a"]} <= set(LABELS)
    assert results_of(tmp_path / "one.proposals.json") == results_of(proposals)
    before = output.read_bytes()
    assert infer(checkpoint_of_proposals, features, "--refine", second, "--resume", output=output)[0] == 0
    assert output.read_bytes() == before
    # A video that came later is proposed for and refined.
    np.save(features / "later.npy", np.load(features / "a.npy")[:40])
    assert infer(checkpoint_of_proposals, features, "--refine", second, "--resume", output=output)[0] == 0
    assert sorted(results_of(output)) == sorted([*expected, "later"])


def test_the_page_has_the_detections_and_the_curves_of_the_first_stage(tmp_path, checkpoint_of_proposals, features):
    second = checkpoint(tmp_path / "second.safetensors", model=MODELS["pgcn"])
    page = tmp_path / "page.html"
    code, output = infer(checkpoint_of_proposals, features, "--refine", second, "--page", page)
    assert code == 0
    data = data_of(page)
    assert {video["id"]: video["count"] for video in data["videos"]} == {
        name: len(entries) for name, entries in results_of(output).items()
    }
    assert set(data["labels"]) <= set(LABELS) and all(video["boundaries"] for video in data["videos"])
    page.unlink()
    again = tmp_path / "again.json"
    assert run(tmp_path / "out.proposals.json", features, second, again, "--fps", 25, "--page", page) == 0
    assert data_of(page)["title"] == "again.json" and data_of(page)["label"].tolist() == data["label"].tolist()


def test_a_second_stage_that_cannot_be_used_is_an_error_before_the_first_runs(
    tmp_path, checkpoint_of_proposals, features
):
    with pytest.raises(InputError, match="has weights of bcnet, expected a network of pgcn or muses"):
        infer(checkpoint_of_proposals, features, "--refine", checkpoint_of_proposals)
    assert not list(tmp_path.glob("out*"))
    (tmp_path / "out.proposals.json").write_text(json.dumps("mine"))
    second = checkpoint(tmp_path / "second.safetensors", model=MODELS["pgcn"])
    with pytest.raises(InputError, match=r"out.proposals.json exists; replace it with --overwrite"):
        main(flags(checkpoint_of_proposals, features, "--refine", second))
