"""The reference P-GCN and MUSES-Net against the public releases' float64 outputs, inside and out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.second_stage import (
    ANET_ROWS,
    CONFIGS,
    SEED,
    SMALL_MUSES,
    SMALL_PGCN,
    STAGE2,
    columns,
    golden_network,
    listed,
    pooled,
    rows_of,
    small_network,
)
from support import seeded, seeded_second_stage

from bcnet_fast.config import FeatureRows
from bcnet_fast.networks.reference import SECOND_STAGE
from bcnet_fast.networks.reference.muses import BRANCHES, Branch, roi_pool
from bcnet_fast.networks.reference.pgcn import tree_adjacency


def assert_close(found: torch.Tensor, expected: np.ndarray, **tolerance) -> None:
    expected = torch.from_numpy(expected).reshape(found.shape)
    torch.testing.assert_close(found.detach(), expected, **({"atol": 1e-9, "rtol": 0} | tolerance))


def thinned(scores: torch.Tensor, number: str) -> torch.Tensor:
    """Every third proposal of the first video, as the golden files have it."""
    return scores[::3] if number == "01" else scores


@pytest.fixture(scope="module")
def pgcn():
    return golden_network("pgcn")


@pytest.fixture(scope="module")
def muses():
    return golden_network("muses")


def trees(name: str) -> torch.Tensor:
    return torch.from_numpy(np.load(STAGE2 / "pgcn_graph.npz")[name].astype(np.int64))


@pytest.mark.parametrize("system", CONFIGS)
def test_parameters_have_the_public_names_and_shapes(system):
    known = json.loads((STAGE2 / "keys.json").read_text())[system]
    state = SECOND_STAGE[CONFIGS[system].name](CONFIGS[system]).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == known


@pytest.mark.parametrize("number", ["01", "02"])
@torch.no_grad()
def test_pgcn_gives_the_golden_outputs(pgcn, number):
    video, known = listed("thumos_test")[int(number) - 1], np.load(STAGE2 / "pgcn_forward.npz")
    features = [x.double() for x in pooled(video, rows_of(video))]
    for name, scores in columns(pgcn(*features, trees(f"nodes777_{number}"))).items():
        assert_close(thinned(scores, number), known[f"{name}_{number}"])


@pytest.mark.slow
@torch.no_grad()
def test_pgcn_gives_the_golden_outputs_of_all_slots_and_of_negative_cosines(pgcn):
    video, known = listed("thumos_test")[0], np.load(STAGE2 / "pgcn_forward.npz")
    features = [x.double() for x in pooled(video, rows_of(video))]
    for name, scores in columns(pgcn(*features, trees("cand_01"))).items():
        assert_close(thinned(scores, "01"), known[f"own_mean_{name}"])
    signed = [x.double() for x in pooled(video, rows_of(video), signed=True)]
    for name, scores in columns(pgcn(*signed, trees("nodes777_01"))).items():
        assert_close(thinned(scores, "01"), known[f"signed_{name}"])


@torch.no_grad()
def test_pgcn_is_the_release_inside(pgcn):
    video, known = listed("thumos_test")[0], np.load(STAGE2 / "pgcn_forward.npz")
    for prefix, options in (("", {}), ("signed_", {"signed": True})):
        kinds = pooled(video, rows_of(video), **options)
        for kind, features in enumerate(kinds):
            adjacency = tree_adjacency(features.double()[trees("nodes777_01")[:4]])
            for node in range(5):
                row = torch.cat([adjacency[:, node, node, None], adjacency[:, node, 1 + 4 * node : 5 + 4 * node]], 1)
                assert_close(row, known[f"{prefix}adj"][:, kind, node])
            assert adjacency[:, 5:].count_nonzero() == 0
    networks = {"act": pgcn.Act_GCN, "comp": pgcn.Comp_GCN}
    for (name, network), features in zip(networks.items(), pooled(video, rows_of(video)), strict=True):
        expected = known[f"gcn_{name}"]
        x = features.double()[trees("nodes777_01")[: len(expected)]]
        assert_close(network(x, tree_adjacency(x))[:, 0, ::8], expected)


@torch.no_grad()
def test_pgcn_for_200_classes_gives_the_golden_outputs():
    known = np.load(STAGE2 / "pgcn_forward.npz")
    features = [x.double() for x in pooled(listed("anet")[0], 100, ANET_ROWS)]
    for name, scores in columns(golden_network("pgcn_anet")(*features, trees("nodes777_anet0"))).items():
        assert_close(scores[::2], known[f"anet_{name}"])


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda branch: "{}x{}w{}".format(*branch))
def test_a_branch_of_muses_is_the_public_convolution(branch):
    height, width, gap = branch
    known, name = np.load(STAGE2 / "muses_layers.npz"), f"{height}x{width}w{gap}"
    layer = Branch(5, 3, *branch).double()
    assert layer.offsets == known[f"taps_{name}"].tolist()
    for length in (1, 4, 9, 10, 23):
        draw = seeded.generator(SEED, f"ta/{name}/T{length}").standard_normal
        weight, bias, x, upstream = (
            torch.from_numpy(draw(shape)) for shape in (layer.weight.shape, (3,), (2, 5, length), (2, 3, length))
        )
        layer.load_state_dict({"weight": weight, "bias": bias})
        layer.zero_grad()
        y = layer(x.requires_grad_())
        y.backward(upstream)
        assert_close(y, known[f"ta_{name}_T{length}"])
        assert_close(x.grad, known[f"ta_{name}_T{length}_gx"])
        assert_close(layer.weight.grad, known[f"ta_{name}_T{length}_gw"])


def test_pooling_of_regions_is_the_public_one():
    known = np.load(STAGE2 / "muses_layers.npz")
    rois = torch.from_numpy(known["roi_case_rois"].astype(np.int64))
    upstream = torch.from_numpy(seeded.generator(SEED, "roi_cases/grad").standard_normal((43, 3, 8)))
    for video, sequence in enumerate(torch.from_numpy(known["roi_case_x"])):
        of_video = rois[:, 0] == video
        out = roi_pool(sequence.requires_grad_(), rois[of_video, 1:])
        assert np.array_equal(out.detach().numpy(), known["roi_case_out"][of_video.numpy()])
        out.backward(upstream[of_video])
        assert_close(sequence.grad, known["roi_case_gx"][video])


@pytest.mark.parametrize("number", ["01", "02", "13"])
@torch.no_grad()
def test_muses_gives_the_golden_outputs_inside_and_out(muses, number):
    video, known = listed("thumos_test")[int(number) - 1], np.load(STAGE2 / "muses_forward.npz")
    features = torch.from_numpy(seeded_second_stage.features(video.name, rows_of(video), SEED)).double().T
    rois = torch.from_numpy(known[f"rois_{number}"].astype(np.int64))
    for name, scores in columns(muses(features, rois)).items():
        assert_close(thinned(scores, number), known[f"{name}_{number}"])
    if number == "13":
        return
    every = {"01": 16, "02": 4}[number] * 3
    first = muses.backbone.layers[:2](features)
    second = muses.backbone.layers[2:](first)
    assert_close(first[::every], known[f"layer1_{number}"])
    assert_close(second[::every], known[f"layer2_{number}"])
    regions = roi_pool(second, rois)
    assert_close(regions[::8, ::8][:, ::3] if number == "01" else regions[:, ::16], known[f"roi_{number}"])


@torch.no_grad()
def test_a_zero_feature_has_cosine_0_with_every_node():
    network = small_network(SMALL_PGCN)
    activity, completeness = torch.randn(9, 6).double(), torch.randn(9, 18).double()
    graph = torch.randint(9, (9, 21))
    graph[:, 0] = torch.arange(9)
    activity[4] = completeness[4] = 0
    output = network(activity, completeness, graph)
    assert all(scores.isfinite().all() for scores in vars(output).values())
    # All its edges weigh 0, also the one to itself, so that the graph adds the last layer's bias alone.
    expected = network.activity_fc(torch.cat([network.Act_GCN.gc2.bias, activity[4]]))
    torch.testing.assert_close(output.activity[4], expected)


@pytest.mark.parametrize("config", [SMALL_PGCN, SMALL_MUSES], ids=lambda config: config.name)
def test_initial_weights_follow_the_public_code(config):
    torch.manual_seed(0)
    for name, parameter in SECOND_STAGE[config.name](config).named_parameters():
        if "_fc.bias" in name:
            assert parameter.count_nonzero() == 0
        elif "_fc.weight" in name:
            assert 0.0005 < parameter.std() < 0.002
        elif "gc" in name:
            assert parameter.abs().max() <= 1 / parameter.shape[-1] ** 0.5
        elif "branches" in name and "weight" in name:
            assert parameter.abs().max() <= 1 / parameter[0].numel() ** 0.5


def test_complete_golden_outputs(shared):
    folder = shared / "golden" / "stage2"
    video = listed("thumos_test")[0]
    with torch.no_grad():
        known, network = np.load(folder / "pgcn_forward.npz"), golden_network("pgcn")
        features = [x.double() for x in pooled(video, rows_of(video), FeatureRows())]
        for name, scores in columns(network(*features, trees("nodes777_01"))).items():
            assert_close(scores, known[f"{name}_01"])
        known = np.load(folder / "muses_forward.npz")
        features = torch.from_numpy(seeded_second_stage.features(video.name, rows_of(video), SEED)).double().T
        rois = torch.from_numpy(known["rois_01"].astype(np.int64))
        for name, scores in columns(golden_network("muses")(features, rois)).items():
            assert_close(scores, known[f"{name}_01"])
