"""P-GCN for training against its reference: values, gradients, and dropout."""

from __future__ import annotations

import pytest
import torch
from helpers.second_stage import SMALL_PGCN, small_network

from bcnet_fast.networks.trainable import SECOND_STAGE


def pgcn_inputs(columns: int) -> list[torch.Tensor]:
    activity, completeness = torch.randn(30, 6).double(), torch.randn(30, 18).double()
    activity[3] = completeness[4] = 0
    if columns == 10:
        return [activity, completeness, torch.randint(30, (30, 10))]
    return [activity, completeness, torch.randint(12, (5, 21))]  # a sample, which leaves most of the pool out


@pytest.mark.parametrize("training", [False, True], ids=["eval", "dropout"])
@pytest.mark.parametrize("columns", [21, 10], ids=["trees", "slots"])
def test_values_and_gradients_are_those_of_the_reference(columns, training):
    reference = small_network(SMALL_PGCN).train(training)
    network = SECOND_STAGE["pgcn"](SMALL_PGCN).double().train(training)
    network.load_state_dict(reference.state_dict())
    features, *rest = pgcn_inputs(columns)
    runs = []
    for one in (reference, network):
        torch.manual_seed(5)
        given = features.clone().requires_grad_()
        output = one(given, *rest)
        sum(scores.square().sum() for scores in vars(output).values()).backward()
        gradients = {name: parameter.grad for name, parameter in one.named_parameters()}
        runs.append((vars(output), gradients | {"features": given.grad}))
    for found, expected in zip(runs[1], runs[0], strict=True):
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, atol=1e-9, rtol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_pools_of_several_videos_are_trained_as_one():
    network = small_network(SMALL_PGCN)
    fast = SECOND_STAGE["pgcn"](SMALL_PGCN).double().eval()
    fast.load_state_dict(network.state_dict())
    first, second = pgcn_inputs(21), pgcn_inputs(21)
    joined = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    joined[2] = torch.cat([first[2], second[2] + len(first[0])])
    output = fast(*joined)
    for rows, inputs in ((slice(0, 5), first), (slice(5, 10), second)):
        for name, scores in vars(network(*inputs)).items():
            torch.testing.assert_close(vars(output)[name][rows], scores)
