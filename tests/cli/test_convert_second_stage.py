"""Checkpoints of P-GCN and MUSES-Net as their public codes write them: kept content, and refused files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.second_stage import (
    SEED,
    SMALL_MUSES,
    SMALL_PGCN,
    STAGE2,
    columns,
    listed,
    pooled,
    rows_of,
)
from support import seeded_second_stage

import bcnet_fast
from bcnet_fast import convert
from bcnet_fast.config import SecondStageConfig
from bcnet_fast.errors import InputError
from bcnet_fast.networks.reference import SECOND_STAGE
from bcnet_fast.presets import SECOND_STAGE_PRESETS
from bcnet_fast.storage.checkpoint import read_any_config, read_config, save_checkpoint

STATS = np.array([[0.01234567890123, -0.02], [0.31, 0.29]])
SMALL = {"pgcn": SMALL_PGCN, "muses": SMALL_MUSES}


def state_of(model) -> dict[str, torch.Tensor]:
    return SECOND_STAGE[model.name](model).state_dict()


def converted(tmp_path, system: str, state: dict[str, torch.Tensor], *flags: str, prefix: str = "module."):
    source = seeded_second_stage.release_file(tmp_path / "best.pth.tar", state, STATS, prefix)
    output = tmp_path / "converted.safetensors"
    assert convert.main([f"--{system}", str(source), *flags, "--output", str(output)]) == 0
    return output


def refused(tmp_path, content, capsys, *flags: str) -> str:
    """The one line that says why a file is not converted."""
    torch.save(content, tmp_path / "best.pth.tar")
    with pytest.raises(InputError) as error:
        convert.main(
            [flags[0], str(tmp_path / "best.pth.tar"), *flags[1:], "--output", str(tmp_path / "o.safetensors")]
        )
    assert not (tmp_path / "o.safetensors").exists()
    return str(error.value)


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("system", SMALL)
def test_weights_and_reg_stats_are_kept(tmp_path, system, prefix):
    state = state_of(SMALL[system])
    path = converted(tmp_path, system, state, "--preset", "thumos14", prefix=prefix)
    config = read_any_config(path)
    assert config == replace(
        SECOND_STAGE_PRESETS[system]["thumos14"], model=SMALL[system], regression=config.regression
    )
    assert [list(config.regression.mean), list(config.regression.std)] == STATS.tolist()
    model = bcnet_fast.load(path, device="cpu", backend="reference")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.network.state_dict().items())


# Tolerances for the reference and the engine. float32: the public codes' own is 2e-5 off.
RUNS = (("fp64", "auto", 1e-9), ("fp32", "auto", 1e-4), ("fp32", "reference", 1e-4))


def test_the_release_of_pgcn_gives_the_golden_outputs(tmp_path, capsys):
    path = converted(tmp_path, "pgcn", seeded_second_stage.state(STAGE2 / "keys.json", "pgcn", SEED))
    assert "14 tensors, 4.6 M values, pgcn for thumos14, C = 1024, K = 20" in capsys.readouterr().out
    video, known = listed("thumos_test")[0], np.load(STAGE2 / "pgcn_forward.npz")
    graph = np.load(STAGE2 / "pgcn_graph.npz")
    for precision, backend, tolerance in RUNS:
        model = bcnet_fast.load(path, device="cpu", precision=precision, backend=backend)
        for name, prefix, suffix in (("nodes777_01", "", "_01"), ("cand_01", "own_mean_", "")):
            if backend == "reference" and suffix == "":
                continue
            output = model(*pooled(video, rows_of(video)), graph[name])
            for score, found in columns(output).items():
                expected = known[f"{prefix}{score}{suffix}"]
                np.testing.assert_allclose(found[::3].numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.slow  # of the released size
def test_the_release_of_muses_gives_the_golden_outputs(tmp_path, capsys):
    path = converted(tmp_path, "muses", seeded_second_stage.state(STAGE2 / "keys.json", "muses", SEED))
    assert "26 tensors, 20.1 M values, muses for thumos14, C = 1024, K = 20" in capsys.readouterr().out
    known = np.load(STAGE2 / "muses_forward.npz")
    for number in (1, 2, 13):
        video = listed("thumos_test")[number - 1]
        features = seeded_second_stage.features(video.name, rows_of(video), SEED).T
        for precision, backend, tolerance in RUNS[:2]:
            model = bcnet_fast.load(path, device="cpu", precision=precision, backend=backend)
            for score, found in columns(model(features, known[f"rois_{number:02d}"])).items():
                found = found[::3] if number == 1 else found
                np.testing.assert_allclose(found.numpy(), known[f"{score}_{number:02d}"], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("system", "classes", "preset"),
    [("pgcn", 20, "thumos14"), ("pgcn", 200, "activitynet13"), ("muses", 20, "thumos14"), ("muses", 25, "muses")],
)
def test_the_number_of_classes_tells_the_preset(tmp_path, system, classes, preset):
    model = replace(SMALL[system], classes=classes)
    config = read_any_config(converted(tmp_path, system, state_of(model)))
    assert config.preset == preset and config.model == model
    assert config.detections == SECOND_STAGE_PRESETS[system][preset].detections


def test_what_is_no_such_checkpoint_is_refused(tmp_path, capsys):
    pgcn, muses = state_of(SMALL_PGCN), state_of(SMALL_MUSES)
    assert "has weights of MUSES-Net, expected those of P-GCN; give it to --muses" in refused(
        tmp_path, {"state_dict": muses}, capsys, "--pgcn"
    )
    assert "has weights of P-GCN, expected those of BMN; give it to --pgcn" in refused(
        tmp_path, {"state_dict": pgcn}, capsys, "--bmn", "--preset", "thumos14"
    )
    assert "scores 3 classes, expected --preset with thumos14 or activitynet13" in refused(
        tmp_path, {"state_dict": pgcn}, capsys, "--pgcn"
    )
    assert "--preset is muses, expected thumos14 or activitynet13 for pgcn" in refused(
        tmp_path, {"state_dict": pgcn}, capsys, "--pgcn", "--preset", "muses"
    )
    assert "--preset is muses, expected thumos14 or activitynet13 for bmn" in refused(
        tmp_path, {"state_dict": pgcn}, capsys, "--bmn", "--preset", "muses"
    )
    flags = "--pgcn", "--preset", "thumos14"
    assert "missing: Act_GCN.gc2.bias" in refused(
        tmp_path, {"state_dict": {k: v for k, v in pgcn.items() if k != "Act_GCN.gc2.bias"}}, capsys, *flags
    )
    assert "reg_stats is a tensor [4], expected finite means and deviations [2, 2]" in refused(
        tmp_path, {"state_dict": pgcn, "reg_stats": torch.zeros(4)}, capsys, *flags
    )


@pytest.mark.parametrize(
    "stats",
    [torch.zeros(2, 2, device="meta"), torch.zeros(2, 2).to_sparse(), torch.zeros(2, 2) * 1j, [[0, 1], [0, 1]]],
    ids=["meta", "sparse", "complex", "list"],
)
def test_reg_stats_that_are_no_plain_tensor_are_one_line(tmp_path, capsys, stats):
    content = {"state_dict": state_of(SMALL_PGCN), "reg_stats": stats}
    message = refused(tmp_path, content, capsys, "--pgcn", "--preset", "thumos14")
    assert "reg_stats is no plain tensor of real numbers" in message and "expected finite means" in message


def test_a_checkpoint_without_reg_stats_is_converted_and_says_so(tmp_path, capsys):
    torch.save({"state_dict": state_of(SMALL_PGCN)}, tmp_path / "best.pth.tar")
    output = tmp_path / "pgcn.safetensors"
    flags = ["--pgcn", str(tmp_path / "best.pth.tar"), "--preset", "thumos14", "--output", str(output)]
    assert convert.main(flags) == 0
    assert read_any_config(output).regression is None
    assert "has no reg_stats, so its regression cannot be applied" in capsys.readouterr().err


def test_both_kinds_of_networks_are_told_apart(tmp_path):
    path = converted(tmp_path, "pgcn", state_of(SMALL_PGCN), "--preset", "thumos14")
    with pytest.raises(
        InputError, match="weights of pgcn, which scores proposals of another network; expected a network"
    ):
        read_config(path)
    with pytest.raises(InputError, match="model is 'bcnet', expected 'pgcn', the system of these weights"):
        bcnet_fast.load(path, model="bcnet")


@pytest.mark.parametrize("system", SECOND_STAGE_PRESETS)
def test_a_configuration_survives_its_file(tmp_path, system):
    for config in SECOND_STAGE_PRESETS[system].values():
        assert SecondStageConfig.from_dict(config.to_dict()) == config
    config = replace(SECOND_STAGE_PRESETS[system]["thumos14"], model=SMALL[system])
    save_checkpoint(tmp_path / "x.safetensors", state_of(SMALL[system]), config)
    assert read_any_config(tmp_path / "x.safetensors") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"preset": "x", "model": {"name": "pgcn", "classes": 0}},
            "model.classes is 0, expected a whole number from 1",
        ),
        ({"preset": "a\nb", "model": {"name": "pgcn"}}, r"preset is 'a\\nb', expected a short name"),
        ({"preset": "x", "model": {"name": "pgcn", "hidden": 2**31 - 1}}, "hidden is 2147483647, expected a whole num"),
        (
            {"preset": "x", "model": {"name": "pgcn", "hidden": 16_384, "feature_dim": 65_536}},
            "model.feature_dim is 65536, expected fewer beside 16384 channels",
        ),
        (
            {"preset": "x", "rows": {"rescaled": 2**31 - 1}},
            "rows.rescaled is 2147483647, expected a whole number from 0",
        ),
        ({"preset": "x", "pools": {"passes": 2 * 10**8}}, "pools.passes is 200000000, expected a whole number from 1"),
        ({"preset": "x", "model": {"name": "bmn"}}, "model.name is 'bmn', expected pgcn or muses"),
        (
            {"preset": "x", "detections": {"nms_threshold": -0.1}},
            "nms_threshold is -0.1, expected a number of at least 0",
        ),
        ({"model": {"name": "pgcn"}}, "has the keys .*, expected preset, model"),
        ({"preset": "x", "regression": {"mean": [0.0]}}, "regression.mean is .*, expected 2 numbers"),
    ],
)
def test_an_impossible_configuration_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        SecondStageConfig.from_dict(values, "file")
