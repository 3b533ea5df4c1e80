"""The networks for training against the references: values, gradients, state dicts, and a few steps of training.

Dropout draws the same numbers in the same order, so one random state gives the same results.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.accuracy import error
from helpers.networks import MANY, MAP_MODELS, SMALL, ablated, objective
from helpers.sweeps import sweep

from bcnet_fast.networks import reference
from bcnet_fast.networks import trainable as models
from bcnet_fast.networks.outputs import Output
from bcnet_fast.networks.reference.layers import shapes_only
from bcnet_fast.networks.trainable.bcnet import anchor_plan
from bcnet_fast.networks.trainable.map_heads import cells_plan, valid_cells
from bcnet_fast.ops.anchor_sampling import _sources
from bcnet_fast.presets import DATA_SETS, PRESETS

CONFIGS = {
    "bcnet": SMALL,
    "bcnet, many anchors": MANY,
    "bcnet, two snippets": dataclasses.replace(SMALL, window=2, max_duration=3),
    "bcnet, odd sizes": dataclasses.replace(SMALL, feature_dim=7, width=9, window=5, max_duration=3),
    "bcnet, no background": dataclasses.replace(SMALL, background_constraint=False),
    **{f"bcnet, {name}": config for name, config in ablated(SMALL).items() if name != "whole"},
    **MAP_MODELS,
}


# One of each system, for tests that need not cover every variant.
FEW = ["bcnet", "bcnet, no background", "bmn, background", "gtad, background"]
few = sweep("case", [*FEW, *(name for name in CONFIGS if name not in FEW)], keep=len(FEW), indirect=True)


@pytest.fixture(params=CONFIGS)
def case(request):
    """Reference and model with the same weights, and features of three windows."""
    config = CONFIGS[request.param]
    expected, found = reference.NETWORKS[config.name](config), models.build(config)
    for parameter in expected.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found.load_state_dict(expected.state_dict())  # strict: the names and shapes are the same
    expected.load_state_dict(found.state_dict())
    return expected, found, torch.randn(3, config.feature_dim, config.window)


def with_gradients(network: torch.nn.Module, features: torch.Tensor) -> tuple[Output, list[torch.Tensor]]:
    """Scores, and the gradients that a sum of all of them with some weights has in the features and parameters."""
    features = features.clone().requires_grad_()
    output = network(features)
    total = sum((s * torch.linspace(-1, 1, s.numel()).view(s.shape).to(s)).sum() for s in output.columns().values())
    leaves = [features, *network.parameters()]
    return output.map(torch.Tensor.detach), list(torch.autograd.grad(total, leaves, materialize_grads=True))


def test_values_and_gradients_are_the_reference_s(case):
    expected, found, features = (x.double() for x in case)
    (wanted, of_wanted), (output, of_output) = (with_gradients(n.eval(), features) for n in (expected, found))
    assert output.columns().keys() == wanted.columns().keys()
    for name, scores in wanted.columns().items():
        assert error(output.columns()[name], scores) < 1e-11, name
    names = ["features", *(name for name, _ in expected.named_parameters())]
    for name, one, other in zip(names, of_output, of_wanted, strict=True):
        assert error(one, other) < 1e-10, name


def test_float32_stays_near_float64(case):
    expected, found, features = case
    output = found.eval()(features).map(torch.Tensor.detach)
    wanted = expected.double().eval()(features.double())
    for name, scores in wanted.columns().items():
        assert output.columns()[name].dtype == torch.float32
        assert error(output.columns()[name], scores.detach()) < 1e-4, name


@few
def test_repeats_give_the_same_bits(case, poisoned):
    """Unwritten memory is NaN, and PyTorch refuses sums without a fixed order."""
    _, found, features = case
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(with_gradients(found.train(), features))
    (one, of_one), (other, of_other) = made
    assert all(torch.equal(scores, other.columns()[name]) for name, scores in one.columns().items())
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(of_one, of_other, strict=True))


@pytest.mark.parametrize("data", DATA_SETS)
@pytest.mark.parametrize("system", PRESETS)
def test_state_dicts_of_the_released_sizes_go_both_ways(system, data):
    with shapes_only():
        networks = [build(PRESETS[system][data].model) for build in (reference.NETWORKS[system], models.build)]
    for one, other in (networks, networks[::-1]):
        one.load_state_dict(other.state_dict())


@pytest.mark.parametrize("name", ["bcnet", "bmn", "gtad"])
def test_first_weights_are_the_reference_s(name):
    states = []
    for build in (reference.NETWORKS[name], models.build):
        torch.manual_seed(7)
        states.append(build(CONFIGS[name]).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("config", ablated(SMALL).values(), ids=ablated(SMALL))
def test_dropout_draws_the_reference_s_numbers(config):
    expected, found = reference.NETWORKS["bcnet"](config).double(), models.build(config).double()
    found.load_state_dict(expected.state_dict())
    features = torch.randn(2, SMALL.feature_dim, SMALL.window).double()
    made = []
    for network in (expected, found):
        torch.manual_seed(5)
        made.append(with_gradients(network.train(), features))
    assert error(made[1][0].regression, made[0][0].regression) < 1e-11
    assert error(made[1][1][0], made[0][1][0]) < 1e-10
    assert not torch.allclose(made[0][0].regression, expected.eval()(features).regression)


@few
def test_autocast_to_bfloat16_stays_near(case):
    _, found, features = case
    found.eval()
    exact = found(features).map(torch.Tensor.detach)
    with torch.autocast("cpu", torch.bfloat16):
        output = found(features)
    total = sum(scores.float().sum() for scores in output.columns().values())
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in found.parameters())
    # Weights of this size make logits of some tens.
    assert float((output.start.detach().float() - exact.start).abs().mean()) < 0.2


CACHES = (anchor_plan, cells_plan, valid_cells, _sources)


@pytest.mark.parametrize("kind", ["trainable", "reference"])
@pytest.mark.parametrize("name", ["bcnet", "bmn, background", "gtad, background"])
def test_inference_before_training_changes_nothing(name, kind):
    """Backward needs the values that the first forward of a process computes once and keeps."""
    build = models.build if kind == "trainable" else reference.NETWORKS[CONFIGS[name].name]
    network = build(CONFIGS[name]).eval()
    features = torch.randn(2, CONFIGS[name].feature_dim, CONFIGS[name].window)
    for cache in CACHES:
        cache.cache_clear()
    with torch.inference_mode():
        network(features)
    _, after = with_gradients(network, features)
    for cache in CACHES:
        cache.cache_clear()
    _, alone = with_gradients(network, features)
    assert all(torch.equal(a, b) for a, b in zip(after, alone, strict=True))


BARE = "bcnet, without frame_level, self_attention, difference_attention"


@sweep("name", ["bcnet", "bmn, background", "gtad, background", BARE, "gtad, points"], keep=3)
def test_a_few_steps_lower_the_loss_and_no_positives_are_no_fault(name):
    config = CONFIGS[name]
    network = models.build(config).train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    features = torch.randn(2, config.feature_dim, config.window)
    for segments in ([[[2, 8]], [[5, 9], [11, 14]]], [[], []]):
        loss, history = objective(config, segments), []
        for _ in range(10):
            torch.manual_seed(0)
            value = loss(network(features))
            optimizer.zero_grad()
            value.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
            optimizer.step()
            history.append(float(value.detach()))
        assert history[-1] < history[0]
