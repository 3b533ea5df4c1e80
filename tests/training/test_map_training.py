"""Labels and objectives of BMN and G-TAD: the public releases' figures, and finite values where they give NaN."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.seeded import generator

from bcnet_fast.geometry.proposal_map import proposal_map
from bcnet_fast.networks.outputs import MapOutput
from bcnet_fast.presets import PRESETS
from bcnet_fast.protocols import DEFAULT, protocol_for
from bcnet_fast.training.losses import map_loss
from bcnet_fast.training.targets import MapTargets, map_targets

SEED = 101
CONFIGS = {
    "bmn": PRESETS["bmn"]["activitynet13"],
    "gtad_anet": PRESETS["gtad"]["activitynet13"],
    "gtad_thumos": PRESETS["gtad"]["thumos14"],
}
RELEASES = {name: protocol_for("release", config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def arrays(golden):
    return np.load(golden / "bmn_gtad" / "train.npz")


def release_targets(arrays, system: str) -> MapTargets:
    """The three golden windows of a system."""
    model, made = CONFIGS[system].model, []
    for index in range(3):
        place = {}
        if system == "gtad_thumos":
            segments = arrays[f"thumos_segments_{index}"]
            place = {"first": 5.0 * arrays["thumos_window_start_snippet"][index], "stride": 5.0}
        else:
            segments = arrays[f"anet_segments_{index}"] * model.window
        made.append(map_targets(segments, proposal_map(model), model.window, **place, rules=RELEASES[system].labels))
    return MapTargets(*(torch.from_numpy(np.stack(column)) for column in zip(*made, strict=True)))


@pytest.mark.parametrize("system", CONFIGS)
def test_release_targets_equal_the_public_codes(arrays, system):
    targets, valid = release_targets(arrays, system), proposal_map(CONFIGS[system].model).valid
    assert torch.equal(targets.start, torch.from_numpy(arrays[f"{system}_start"]))
    assert torch.equal(targets.end, torch.from_numpy(arrays[f"{system}_end"]))
    assert torch.equal(targets.action, torch.from_numpy(arrays[f"{system}_map"] * valid))


def test_targets_of_a_map_by_hand():
    """Four snippets; one instance over the second and third, one over the first half of the last."""
    targets = map_targets([[1, 3], [3, 3.5]], proposal_map(dataclasses.replace(CONFIGS["bmn"].model, window=4)), 4)
    assert targets.action.dtype == targets.background.dtype == np.float32
    nothing = 0.0
    action = [
        [nothing, 1 / 2, 2 / 3, 1 / 2],
        [nothing, 1 / 2, 1, 2 / 3],
        [nothing, nothing, 1 / 2, 1 / 3],
        [nothing, nothing, nothing, 1 / 2],
    ]
    action[1][1], action[0][1] = 1 / 2, 1 / 3
    np.testing.assert_allclose(targets.action, action, rtol=1e-6)
    background = [[1, 1 / 2, 1 / 3, 1.5 / 4], [0, 0, 0, 0.5 / 3], [0, 0, 0, 0.5 / 2], [0, 0, 0, 0.5]]
    np.testing.assert_allclose(targets.background, background, rtol=1e-6)
    # Boundaries 1 and 3 are starts, 3 and 3.5 ends; the snippet around a boundary lies within 1.5 of one, or half does.
    np.testing.assert_allclose(targets.start, [1, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(targets.end, [0, 0, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("layout", ["start_end", "duration_start"])
def test_both_layouts_have_the_same_labels(rng, layout):
    model = dataclasses.replace(CONFIGS["bmn"].model, window=12, max_duration=7, map_layout=layout)
    cells = proposal_map(model)
    segments = np.sort(rng.uniform(-3, 15, (4, 2)), axis=1)
    targets = map_targets(segments, cells, 12)
    assert cells.valid.sum() == sum(12 - d for d in range(7))
    for row, column in np.argwhere(cells.valid):
        start, end = cells.start[row, column], cells.end[row, column]
        overlap = np.minimum(end, segments[:, 1]) - np.maximum(start, segments[:, 0])
        overlap = overlap.clip(min=0)
        tiou = (overlap / (end - start + segments[:, 1] - segments[:, 0] - overlap)).max()
        assert targets.action[row, column] == pytest.approx(tiou, rel=1e-6)
        assert targets.background[row, column] == pytest.approx(max(0, 1 - overlap.sum() / (end - start)), abs=1e-6)
    assert (targets.action[~cells.valid] == 0).all() and (targets.background[~cells.valid] == 0).all()


def golden_case(arrays, system: str, case: str, dtype: torch.dtype):
    """Predictions, targets and draws of one of the golden losses."""
    targets = release_targets(arrays, system)
    shape = targets.action.shape

    def draw(name: str, *size: int) -> torch.Tensor:
        values = (0.02 + 0.96 * generator(SEED, f"{system}/pred_{name}").random(size)).astype(np.float32)
        return torch.from_numpy(values).to(dtype)

    output = MapOutput(draw("start", 3, shape[-1]), draw("end", 3, shape[-1]), draw("bm", 3, 2, *shape[1:]))
    if case == "many_high":
        action = np.sqrt(np.sqrt(generator(SEED, f"{system}/gt_high").random(shape).astype(np.float32)))
    elif case == "no_high":
        action = 0.5 * generator(SEED, f"{system}/gt_low").random(shape).astype(np.float32)
    else:
        action = targets.action.numpy()
    start = torch.zeros_like(targets.start) if case == "no_boundary" else targets.start
    targets = targets._replace(start=start, action=torch.from_numpy(action))
    state = np.random.RandomState(SEED)
    draws = torch.from_numpy(np.stack([state.rand(*shape), state.rand(*shape)]).astype(np.float32))
    return output, targets, draws


@pytest.mark.parametrize("case", ["real", "many_high", "no_high", "no_boundary"])
@pytest.mark.parametrize("system", CONFIGS)
def test_release_losses_equal_the_public_codes(arrays, system, case):
    """Where the public code gives NaN, ours is finite: a part of which nothing is positive has its negatives alone."""
    valid = torch.from_numpy(proposal_map(CONFIGS[system].model).valid)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        output, targets, draws = golden_case(arrays, system, case, dtype)
        losses = map_loss(output, targets, valid, draws=draws, rules=RELEASES[system].losses)
        names = ("total", "boundary", "regression", "classification")
        for name, expected in zip(names, arrays[f"{system}_{case}_loss"], strict=True):
            assert losses[name].dtype == dtype and losses[name].isfinite()
            if np.isfinite(expected):
                assert float(losses[name]) == pytest.approx(expected, rel=tolerance), name
    assert ("no" in case) == bool(np.isnan(arrays[f"{system}_{case}_loss"][0]))
    assert "background" not in losses


def test_the_background_constraint_adds_its_loss(arrays):
    valid = torch.from_numpy(proposal_map(CONFIGS["bmn"].model).valid)
    output, targets, draws = golden_case(arrays, "bmn", "real", torch.float64)
    without = map_loss(output, targets, valid, draws=draws)
    output.background = torch.rand_like(output.confidence[:, 0])
    losses = map_loss(output, targets, valid, draws=draws)
    prediction, positive = output.background[:, valid], targets.background[:, valid] > 0.8
    expected = -(prediction[positive] + 1e-6).log().mean() / 2 - (1 - prediction[~positive] + 1e-6).log().mean() / 2
    torch.testing.assert_close(losses["background"], expected)
    torch.testing.assert_close(losses["total"], without["total"] + expected)
    weights = 10 * without["regression"] + without["classification"]
    torch.testing.assert_close(without["total"], without["boundary"] + weights)


def test_gradients_are_finite_and_only_of_proposals():
    model = dataclasses.replace(CONFIGS["bmn"].model, window=9, max_duration=4)
    cells = proposal_map(model)
    valid = torch.from_numpy(cells.valid)
    for segments in ([], [[2, 5]], [[-20, 40]], [[3, 3]]):
        targets = MapTargets(*(torch.from_numpy(x)[None] for x in map_targets(segments, cells, 9)))
        start, end, confidence, background = (
            torch.rand(shape, requires_grad=True) for shape in ((1, 9), (1, 9), (1, 2, 9, 9), (1, 9, 9))
        )
        loss = map_loss(MapOutput(start, end, confidence, background), targets, valid, rules=DEFAULT.losses)
        gradients = torch.autograd.grad(loss["total"], (start, end, confidence, background))
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[2][..., ~valid] == 0).all() and (gradients[3][..., ~valid] == 0).all()
        assert (gradients[3][..., valid] != 0).all()
