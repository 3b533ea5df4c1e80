"""Checkpoints of BMN and G-TAD as other projects write them: how they are recognised, and which are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.sweeps import sweep
from support import seeded

import bcnet_fast
from bcnet_fast import convert
from bcnet_fast.config import BMNConfig, Config, GTADConfig
from bcnet_fast.errors import InputError
from bcnet_fast.networks import releases
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.checkpoint import read_config

SEED = 101
SMALL_BMN = BMNConfig(
    feature_dim=8, window=14, max_duration=14, base_channels=8, sampled_channels=12, map_channels=6, bins=4
)
SMALL_GTAD = GTADConfig(
    feature_dim=8, window=14, max_duration=9, base_channels=8, block_channels=8, block_groups=4, sampled_channels=12,
    map_channels=6,
)  # fmt: skip


def small(model) -> Config:
    return replace(PRESETS[model.name]["activitynet13"], preset="small", model=model)


def state_of(model) -> dict[str, torch.Tensor]:
    return NETWORKS[model.name](model).state_dict()


def converted(tmp_path, flag: str, state: dict[str, torch.Tensor], preset: str):
    """The checkpoint that the command makes of a file with these weights."""
    source = seeded.map_release(tmp_path / "best.pth.tar", state)
    output = tmp_path / "converted.safetensors"
    assert convert.main([flag, str(source), "--preset", preset, "--output", str(output)]) == 0
    return output


# Tolerances for the engine; the reference has tests of its own. float32: the public codes' own is 7e-7 to 1e-6 off.
RUNS = (("fp64", 1e-9), ("fp32", 5e-6))


def assert_golden(path, golden, name: str, case: str = "") -> None:
    known = np.load(golden / "bmn_gtad" / f"{name}_forward{case}.npz")
    for precision, tolerance in RUNS:
        model = bcnet_fast.load(path, device="cpu", precision=precision)
        config = model.config.model
        given = seeded.map_input(seeded.MAP_INPUTS[name + case], config.feature_dim, config.window, SEED)
        output = model(torch.from_numpy(given))
        for found, stored in zip((output.confidence, output.start, output.end), known.files, strict=True):
            torch.testing.assert_close(found[0].double(), torch.from_numpy(known[stored]), atol=tolerance, rtol=0)


@pytest.mark.slow  # tests/networks/test_reference_maps.py has the reference's
def test_the_release_of_bmn_gives_the_golden_outputs(tmp_path, golden, capsys):
    state = seeded.map_state(golden / "bmn_gtad" / "bmn_keys.json", SEED)
    path = converted(tmp_path, "--bmn", {"sample_mask": seeded.bmn_mask(100, "start_end"), **state}, "activitynet13")
    assert read_config(path) == PRESETS["bmn"]["activitynet13"]
    assert "24 tensors, 5.0 M values, bmn for activitynet13, C = 400, T = 100, map start_end" in capsys.readouterr().out
    assert_golden(path, golden, "bmn")


@sweep(
    ("name", "preset", "cases", "changes"),
    [
        ("gtad_anet", "activitynet13", ("",), {}),
        ("gtad_thumos", "thumos14", ("", "_winB"), {}),
        ("gtad_t100", "activitynet13", ("",), {"inner_bins": 16, "context_bins": 16, "map_kernel": 3}),
    ],
    ids=["anet", "thumos", "t100"],
)
def test_the_releases_of_gtad_give_the_golden_outputs(tmp_path, golden, name, preset, cases, changes):
    state = seeded.map_state(golden / "bmn_gtad" / f"{name}_keys.json", SEED, g8=True)
    path = converted(tmp_path, "--gtad", state, preset)
    known = PRESETS["gtad"][preset]
    assert read_config(path) == replace(known, model=replace(known.model, **changes))
    for case in cases:
        assert_golden(path, golden, name, case)


@pytest.mark.parametrize("layout", ["start_end", "duration_start"])
@pytest.mark.parametrize("stated", ["start_end", "duration_start"])
def test_the_mask_says_which_map_a_bmn_has(tmp_path, layout, stated):
    state = {"sample_mask": seeded.bmn_mask(14, layout, bins=4), **state_of(SMALL_BMN)}
    path = seeded.map_release(tmp_path / "bmn.pth.tar", state)
    kept, config = releases.convert_bmn(path, small(replace(SMALL_BMN, max_duration=9, map_layout=stated)))
    assert config == small(replace(SMALL_BMN, map_layout=layout))
    assert kept.keys() == state.keys() - {"sample_mask"}
    assert all(torch.equal(kept[name], state[name]) for name in kept)


def test_a_mask_of_shorter_proposals_gives_the_longest_duration(tmp_path):
    mask = seeded.bmn_mask(14, "duration_start", bins=4).unflatten(1, (4, 14, 14))[:, :, :9].flatten(1)
    path = seeded.map_release(tmp_path / "bmn.pth.tar", {"sample_mask": mask, **state_of(SMALL_BMN)})
    _, config = releases.convert_bmn(path, small(SMALL_BMN))
    assert config == small(replace(SMALL_BMN, max_duration=9, map_layout="duration_start"))


def test_mmaction2_has_neither_a_prefix_nor_an_epoch(tmp_path):
    path = tmp_path / "bmn_mmaction2.pth"
    mask = torch.nn.Parameter(seeded.bmn_mask(14, "duration_start", bins=4), requires_grad=False)
    content = {"meta": {"version": "0.24.0"}, "state_dict": {**state_of(SMALL_BMN), "sample_mask": mask.data}}
    torch.save(content, path)
    _, config = releases.convert_bmn(path, small(SMALL_BMN))
    assert config.model.map_layout == "duration_start"


def test_without_a_mask_the_map_is_that_of_the_preset(tmp_path):
    path = seeded.map_release(tmp_path / "bmn.pth.tar", state_of(SMALL_BMN))
    expected = small(replace(SMALL_BMN, map_layout="duration_start", max_duration=5))
    assert releases.convert_bmn(path, expected)[1] == expected


@pytest.mark.parametrize("preset", ["thumos14", "activitynet13"])
def test_channels_are_those_of_the_file(tmp_path, preset):
    for function, model in ((releases.convert_bmn, SMALL_BMN), (releases.convert_gtad, SMALL_GTAD)):
        path = seeded.map_release(tmp_path / "best.pth.tar", state_of(model))
        known = PRESETS[model.name][preset]
        _, config = function(path, known)
        sizes = {name: getattr(known.model, name) for name in ("window", "max_duration")}
        if model.name == "bmn":
            sizes["map_layout"] = known.model.map_layout
        assert config == replace(known, model=replace(model, **sizes))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            seeded.bmn_mask(13, "start_end", bins=4),
            r"has shape \[13, 676\], expected \[T, 4 D T\] with T = 14 of preset small",
        ),
        (torch.zeros(14, 4 * 14 * 14 + 1), r"has shape \[14, 785\], .*; see --preset"),
        (torch.zeros(14, 0), r"has shape \[14, 0\]"),
        (torch.tensor(1.0), r"has shape \[\]"),
        (
            torch.zeros(14, 4 * 14 * 14),
            r"\(start, end\) of the BMN release or \(duration, start\) of mmaction2",
        ),
        (torch.full((14, 4 * 14 * 14), torch.nan), "has other values"),
        (seeded.bmn_mask(14, "start_end", bins=4, points=2), "3 points per bin and margins of half a proposal"),
    ],
    ids=["other T", "broken D", "empty", "number", "zeros", "NaN", "other points"],
)
def test_a_mask_that_fits_neither_map_is_refused(tmp_path, mask, message):
    path = seeded.map_release(tmp_path / "bmn.pth.tar", {"sample_mask": mask, **state_of(SMALL_BMN)})
    with pytest.raises(InputError, match=rf"bmn\.pth\.tar: sample_mask .*{message}"):
        releases.convert_bmn(path, small(SMALL_BMN))


def opentad() -> dict[str, torch.Tensor]:
    names = ("projection.convs.0.conv.weight", "rpn_head.head.0.conv.weight")
    names += ("roi_head.proposal_roi_extractor.conv2d.0.weight", "roi_head.proposal_head.head.0.0.weight")
    return {name: torch.zeros(2) for name in names}


BPM, ABI = {"bpm_base.0.weight": torch.zeros(1)}, {"frame_model.base_module.0.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("function", "state", "message"),
    [
        (
            releases.convert_bmn,
            state_of(SMALL_GTAD),
            "has weights of G-TAD, expected those of BMN; give it to --gtad",
        ),
        (
            releases.convert_gtad,
            state_of(SMALL_BMN),
            "has weights of BMN, expected those of G-TAD; give it to --bmn",
        ),
        (releases.convert_bmn, BPM, r"has weights of BCNet \(BPM\), expected those of BMN; give it to --bpm"),
        (releases.convert_gtad, ABI, r"has weights of BCNet \(ABI\), expected those of G-TAD; give it to --abi"),
        (releases.convert_bmn, opentad(), "has weights of OpenTAD, expected those of BMN; OpenTAD is not supported: "),
        (
            releases.convert_gtad,
            opentad(),
            "has weights of OpenTAD, expected those of G-TAD; OpenTAD is not supported: ",
        ),
    ],
    ids=["G-TAD for BMN", "BMN for G-TAD", "BPM", "ABI", "OpenTAD for BMN", "OpenTAD for G-TAD"],
)
def test_weights_of_another_network_are_named(tmp_path, function, state, message):
    path = seeded.map_release(tmp_path / "best.pth.tar", state)
    config = small(SMALL_BMN if function is releases.convert_bmn else SMALL_GTAD)
    with pytest.raises(InputError, match=rf"best\.pth\.tar {message}") as error:
        function(path, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "model", "name", "wrong"),
    [
        (releases.convert_bmn, SMALL_BMN, "x_1d_s.2.bias", (3,)),
        (releases.convert_bmn, SMALL_BMN, "x_1d_b.0.weight", ()),
        (releases.convert_bmn, SMALL_BMN, "x_3d_p.0.weight", (12, 0, 4, 1, 1)),
        (releases.convert_gtad, SMALL_GTAD, "regu_e.1.weight", (1, 8)),
        (releases.convert_gtad, SMALL_GTAD, "localization.0.weight", (12, 8 * 20, 1, 1)),
        (releases.convert_gtad, SMALL_GTAD, "localization.4.weight", (6, 6, 5, 5)),
        (releases.convert_gtad, SMALL_GTAD, "backbone1.2.tconvs.2.weight", (8, 0, 3)),
    ],
)
def test_every_key_that_does_not_fit_is_listed(tmp_path, function, model, name, wrong):
    state = state_of(model)
    gone = next(iter(key for key in state if key.endswith("8.bias") or key.endswith("6.bias")))
    del state[gone]
    state["extra"] = torch.zeros(1)
    state[name] = torch.zeros(wrong)
    path = seeded.map_release(tmp_path / "best.pth.tar", state)
    shape = str(list(wrong)).replace("[", r"\[").replace("]", r"\]")
    expected = f"missing: {gone}; unknown: extra; misshaped: {name} .*has {shape}, expected"
    with pytest.raises(InputError, match=rf"best\.pth\.tar: weights do not fit the network; {expected}"):
        function(path, small(model))


def test_a_damaged_file_is_one_clear_line(tmp_path):
    path = seeded.map_release(tmp_path / "best.pth.tar", state_of(SMALL_BMN))
    path.write_bytes(path.read_bytes()[:1000])
    for function, model in ((releases.convert_bmn, SMALL_BMN), (releases.convert_gtad, SMALL_GTAD)):
        with pytest.raises(InputError, match=r"best\.pth\.tar cannot be read \(.*\), expected a PyTorch file"):
            function(path, small(model))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((), "none"),
        (("--bpm",), "--bpm"),
        (("--abi",), "--abi"),
        (("--bmn", "--gtad"), "--bmn, --gtad"),
        (("--bpm", "--abi", "--bmn"), "--bpm, --abi, --bmn"),
    ],
)
def test_one_network_is_converted_at_a_time(tmp_path, sources, message):
    arguments = [part for flag in sources for part in (flag, str(tmp_path / "x.pth.tar"))]
    expected = "expected --bpm and --abi, or --bmn, --gtad, --pgcn or --muses"
    with pytest.raises(InputError, match=f"flags of weights: {message}; {expected}; see --help"):
        convert.main([*arguments, "--output", str(tmp_path / "x.safetensors")])


def test_the_output_is_safetensors_and_a_failure_leaves_none(tmp_path):
    source = seeded.map_release(tmp_path / "best.pth.tar", state_of(SMALL_BMN))
    with pytest.raises(InputError, match=r"--output is .*x\.pth, expected a name ending in \.safetensors"):
        convert.main(["--bmn", str(source), "--preset", "thumos14", "--output", str(tmp_path / "x.pth")])
    with pytest.raises(InputError, match="has weights of BMN"):
        convert.main(["--gtad", str(source), "--preset", "thumos14", "--output", str(tmp_path / "x.safetensors")])
    assert list(tmp_path.iterdir()) == [source]


def test_the_wrong_preset_is_named(tmp_path):
    mask = torch.zeros(100, 4 * 100 * 100)
    source = seeded.map_release(tmp_path / "best.pth.tar", {"sample_mask": mask, **state_of(SMALL_BMN)})
    with pytest.raises(InputError, match=r"has shape \[100, 40000\], .* T = 256 of preset thumos14; see --preset"):
        convert.main(["--bmn", str(source), "--preset", "thumos14", "--output", str(tmp_path / "x.safetensors")])


def test_maps_need_a_preset(tmp_path):
    with pytest.raises(InputError, match="--preset is required with --bmn: thumos14 or activitynet13"):
        convert.main(["--bmn", str(tmp_path / "best.pth.tar"), "--output", str(tmp_path / "made.safetensors")])
