"""P-GCN and MUSES-Net in PyTorch against their references: every rewrite on its own, and odd sizes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers.second_stage import SMALL_MUSES, SMALL_PGCN, small_network

import bcnet_fast
from bcnet_fast.config import SecondStageConfig
from bcnet_fast.errors import BackendError, InputError
from bcnet_fast.networks.engine import REWRITES, Rewrites
from bcnet_fast.networks.engine.muses import MUSESEngine
from bcnet_fast.networks.engine.pgcn import PGCNEngine
from bcnet_fast.networks.engine.rewrites import IN_CPP

CPU = torch.device("cpu")


def switches(system: str) -> list[Rewrites]:
    names = [name for name in REWRITES[system] if name not in IN_CPP]
    return [Rewrites(**dict(zip(names, values, strict=True))) for values in product((True, False), repeat=len(names))]


def assert_same(found, expected, tolerance: float = 1e-12) -> None:
    for name, scores in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), scores, atol=tolerance, rtol=0)


def proposals(count: int, columns: int) -> list[torch.Tensor]:
    """Inputs of P-GCN in which some features are zero and many neighbours are repeated."""
    completeness = torch.randn(count, 18).double()
    activity = torch.randn(count, 6).double()
    if count > 2:
        activity[1] = completeness[2] = 0
    neighbours = torch.randint(max(count, 1), (count, columns))
    if columns == 21:
        neighbours[:, 0] = torch.arange(count)
    return [activity, completeness, neighbours]


@pytest.mark.parametrize("columns", [21, 10], ids=["trees", "slots"])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
@torch.no_grad()
def test_pgcn_s_rewrites_change_no_score(count, columns):
    network = small_network(SMALL_PGCN)
    inputs = proposals(count, columns)
    expected = network(*inputs)
    for rewrites in switches("pgcn"):
        assert_same(PGCNEngine(SMALL_PGCN, network.state_dict(), CPU, torch.float64, rewrites)(*inputs), expected)


@pytest.mark.parametrize("roots", [1, 5])
@torch.no_grad()
def test_pgcn_scores_some_of_the_proposals_alike(roots):
    network = small_network(SMALL_PGCN)
    activity, completeness, trees = proposals(9, 21)
    engine = PGCNEngine(SMALL_PGCN, network.state_dict(), CPU, torch.float64, Rewrites())
    whole, part = engine(activity, completeness, trees), engine(activity, completeness, trees[:roots])
    assert_same(part, type(whole)(**{name: scores[:roots] for name, scores in vars(whole).items()}))


@torch.no_grad()
def test_pgcn_takes_the_middle_of_the_completeness_feature_once():
    network = small_network(SMALL_PGCN)
    _, completeness, trees = proposals(12, 21)
    activity = completeness[:, 6:12]
    engine = PGCNEngine(SMALL_PGCN, network.state_dict(), CPU, torch.float64, Rewrites())
    assert_same(engine(activity, completeness, trees), network(activity, completeness, trees))


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("length", [1, 5, 33])
@torch.no_grad()
def test_muses_rewrites_change_no_score(length, count):
    network = small_network(SMALL_MUSES)
    rois = torch.randint(0, 300, (count, 2)).sort(dim=1).values + torch.tensor([0, 1])
    features = torch.randn(6, length).double()
    expected = network(features, rois)
    for rewrites in switches("muses"):
        assert_same(
            MUSESEngine(SMALL_MUSES, network.state_dict(), CPU, torch.float64, rewrites)(features, rois), expected
        )


MODELS = {"pgcn": SecondStageConfig("small", SMALL_PGCN), "muses": SecondStageConfig("small", SMALL_MUSES)}


def model_inputs(system: str) -> list[torch.Tensor]:
    if system == "pgcn":
        return proposals(7, 21)
    return [torch.randn(6, 12), torch.tensor([[0, 30], [8, 9], [60, 200]])]


@pytest.mark.parametrize("system", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_a_loaded_model_takes_tensors_and_arrays_of_any_float_type(system, precision):
    model = bcnet_fast.load(MODELS[system], device="cpu", precision=precision)
    inputs = model_inputs(system)
    output = model(*inputs)
    count = len(inputs[-1])
    assert output.activity.shape == (count, 4) and output.completeness.shape == (count, 3)
    assert output.regression.shape == (count, 3, 2)
    assert output.activity.dtype == {"fp32": torch.float32, "fp64": torch.float64}[precision]
    for cast in (torch.Tensor.float, torch.Tensor.numpy):
        again = model(*(cast(x) for x in inputs[:-1]), inputs[-1].to(torch.int32))
        assert_same(again, output, 1e-6)
    assert_same(model(*inputs[:-1], inputs[-1].double()), output, 0)


@pytest.mark.parametrize("system", MODELS)
def test_the_reference_backend_is_the_network_itself(system):
    torch.manual_seed(3)
    reference = bcnet_fast.load(MODELS[system], device="cpu", precision="fp64", backend="reference")
    torch.manual_seed(3)
    engine = bcnet_fast.load(MODELS[system], device="cpu", precision="fp64")
    inputs = model_inputs(system)
    assert_same(engine(*inputs), reference(*inputs))
    assert isinstance(reference.network, torch.nn.Module)
    with pytest.raises(AttributeError, match="the engine is no nn"):
        _ = engine.network
    assert repr(engine) == f"SecondStageModel({system}, preset small, cpu, fp64)"


def test_the_reference_backend_scores_all_slots_of_many_proposals():
    torch.manual_seed(3)
    reference = bcnet_fast.load(MODELS["pgcn"], device="cpu", precision="fp64", backend="reference")
    torch.manual_seed(3)
    engine = bcnet_fast.load(MODELS["pgcn"], device="cpu", precision="fp64")
    inputs = proposals(70, 10)
    assert_same(engine(*inputs), reference(*inputs))


def test_a_preset_gives_random_weights_of_the_released_sizes():
    model = bcnet_fast.load("muses", model="muses", device="cpu")
    assert model.config.model.classes == 25 and model.config.detections.top == 500
    assert bcnet_fast.load("activitynet13", model="pgcn", device="cpu").config.rows.rescaled == 100


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        (
            "pgcn",
            lambda a, c, n: (a, c),
            "inputs has length 2, expected activity features, completeness features and neighbours",
        ),
        ("pgcn", lambda a, c, n: (a[:, :5], c, n), r"activity has shape \[7, 5\], expected \[N, 6\]"),
        ("pgcn", lambda a, c, n: (a, c[:6], n), r"completeness has shape \[6, 18\], expected \[7, 18\]"),
        ("pgcn", lambda a, c, n: (a, c, n[:, :20]), r"neighbours has shape \[7, 20\], expected \[R, 21\] or \[7, 10\]"),
        (
            "pgcn",
            lambda a, c, n: (a, c, n[:6, :10]),
            r"neighbours has shape \[6, 10\], expected \[R, 21\] or \[7, 10\]",
        ),
        ("pgcn", lambda a, c, n: (a, c, n + 1), "neighbours has values 1 to 7, expected 0 to 6"),
        ("pgcn", lambda a, c, n: (a, c, n + 0.5), "neighbours has numbers with a fraction, expected whole ones"),
        ("muses", lambda x, r: (x,), "inputs has length 1, expected features and rois"),
        ("muses", lambda x, r: (x.T, r), r"features has shape \[12, 6\], expected \[6, T\], T >= 1"),
        ("muses", lambda x, r: (x[:, :0], r), r"features has shape \[6, 0\], expected \[6, T\], T >= 1"),
        ("muses", lambda x, r: (x, r[:, :1]), r"rois has shape \[3, 1\], expected \[N, 2\]"),
    ],
)
def test_inputs_of_another_shape_are_refused(system, change, message):
    model = bcnet_fast.load(MODELS[system], device="cpu")
    with pytest.raises(ValueError, match=message):
        model(*change(*model_inputs(system)))


def test_what_the_second_stage_lacks_is_refused():
    with pytest.raises(InputError, match="precision is 'bf16', expected fp32, fp64 or tf32 for pgcn"):
        bcnet_fast.load(MODELS["pgcn"], device="cpu", precision="bf16")
    with pytest.raises(BackendError, match="backend is 'triton', expected auto, native or reference for muses"):
        bcnet_fast.load(MODELS["muses"], device="cpu", backend="triton")
    with pytest.raises(InputError, match="model is 'pgn', expected bcnet, bmn, gtad, pgcn or muses; did you mean pgcn"):
        bcnet_fast.load("thumos14", model="pgn")
