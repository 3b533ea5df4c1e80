"""BCNet's objective: the public release's figures, and finite values where the public codes give NaN."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.training import release_targets
from support.seeded import generator
from torch.utils.data import default_collate

from bcnet_fast.networks.outputs import BCNetOutput
from bcnet_fast.protocols import DEFAULT, NAMES, RELEASES
from bcnet_fast.training.losses import bcnet_loss, binary_logistic_loss, regression_loss, regression_weights
from bcnet_fast.training.targets import Targets

SEED = 101
GOLDEN_NAMES = {
    "bpm_action": "actionness",
    "bpm_start": "start",
    "bpm_end": "end",
    "frame_action": "frame_action",
    "frame_background": "frame_background",
    "aem_reg_random": "regression",
    "aem_cls": "classification",
    "abi_background_clip": "background",
    "bpm_total": "boundary",
    "abi_total": "interaction",
}


def golden_predictions(dtype: torch.dtype) -> BCNetOutput:
    predictions = generator(SEED, "pred")

    def draw(*shape: int) -> list[torch.Tensor]:
        values = (0.01 + 0.98 * predictions.random(shape)).astype(np.float32)
        return list(torch.from_numpy(values).to(dtype).unbind(-1))

    (actionness, start, end), action, background = draw(3, 256, 3), draw(3, 256, 1), draw(3, 256, 1)
    return BCNetOutput(start, end, actionness, *action, *background, *draw(3, 1218, 2), *draw(3, 1218, 1))


def golden_draws() -> torch.Tensor:
    """The release's two draws: of the medium anchors first, then of the low ones."""
    state = np.random.RandomState(SEED)
    return torch.from_numpy(np.stack([state.rand(3, 1218), state.rand(3, 1218)]).astype(np.float32))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-7), (torch.float64, 1e-12)])
def test_release_losses_equal_the_public_codes(golden, dtype, tolerance):
    arrays = np.load(golden / "bcnet" / "train.npz")
    targets = default_collate(release_targets(arrays))
    losses = bcnet_loss(golden_predictions(dtype), targets, draws=golden_draws(), rules=RELEASES["bcnet"].losses)
    expected = dict(zip(arrays["loss_names"].tolist(), arrays["loss_float64"].tolist(), strict=True))
    for golden_name, name in GOLDEN_NAMES.items():
        assert losses[name].dtype == dtype
        assert float(losses[name]) == pytest.approx(expected[golden_name], rel=tolerance), name
    assert float(losses["total"]) == pytest.approx(expected["bpm_total"] + expected["abi_total"], rel=tolerance)


def test_sampled_anchors_equal_the_public_codes(golden):
    arrays = np.load(golden / "bcnet" / "train.npz")
    label = torch.from_numpy(arrays["label_clip_iou"])
    for protocol in (DEFAULT, RELEASES["bcnet"]):
        weights = regression_weights(label, golden_draws(), protocol.losses)
        np.testing.assert_array_equal(weights.numpy(), arrays["reg_weights"])


def test_fewer_medium_than_high_anchors_are_all_taken_and_nothing_else(rng):
    label = torch.tensor([[0.9] * 6 + [0.5] * 2 + [0.1] * 3 + [0.0] * 4])
    draws = torch.from_numpy(rng.random((2, *label.shape)).astype(np.float32))
    weights = regression_weights(label, draws)
    assert weights.tolist() == [[1.0] * 11 + [0.0] * 4]
    # The public codes compare a masked draw with a negative threshold, once for the medium and once for the low ones.
    assert regression_weights(label, draws, RELEASES["bcnet"].losses).tolist() == [[3.0] * 6 + [2.0] * 9]


def test_sampling_balances_medium_and_low_anchors():
    label = torch.cat([torch.full((50,), 0.9), torch.full((500,), 0.5), torch.full((5000,), 0.1)])[None]
    weights = torch.stack([regression_weights(label, torch.rand(2, *label.shape)) for _ in range(40)]).mean(dim=0)[0]
    assert weights[:50].sum() == 50
    assert float(weights[50:550].sum()) == pytest.approx(50, abs=5)
    assert float(weights[550:].sum()) == pytest.approx(50, abs=5)


def test_logistic_loss_equals_the_balancing_coefficients_of_bmn(rng):
    prediction = torch.from_numpy(rng.uniform(0.01, 0.99, (3, 50)))
    label = torch.from_numpy(rng.random((3, 50)).astype(np.float32) ** 2)
    positive = (label > 0.5).double()
    ratio = positive.numel() / positive.sum()
    weighted = 0.5 * ratio * positive * torch.log(prediction + 1e-6)
    weighted += 0.5 * ratio / (ratio - 1) * (1 - positive) * torch.log(1 - prediction + 1e-6)
    expected = -float(weighted.mean())
    assert float(binary_logistic_loss(prediction, label, 0.5)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("label", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("prediction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("protocol", [DEFAULT, RELEASES["bcnet"]], ids=NAMES)
def test_losses_and_gradients_are_finite_with_labels_of_one_kind(label, prediction, protocol):
    shapes = {f.name: (2, 8) for f in dataclasses.fields(BCNetOutput)}
    shapes |= dict.fromkeys(("regression", "classification", "background"), (2, 30))
    output = BCNetOutput(**{name: torch.full(shape, prediction, requires_grad=True) for name, shape in shapes.items()})
    targets = Targets(*(torch.full((2, 30 if name.startswith("anchor") else 8), label) for name in Targets._fields))
    losses = bcnet_loss(output, targets, rules=protocol.losses)
    assert all(torch.isfinite(loss) for loss in losses.values())
    losses["total"].backward()
    for name in shapes:
        assert torch.isfinite(getattr(output, name).grad).all(), name


def test_a_score_that_the_network_lacks_has_no_loss():
    whole = golden_predictions(torch.float64)
    targets = Targets(*(torch.rand(3, 1218 if name.startswith("anchor") else 256) for name in Targets._fields))
    expected = bcnet_loss(whole, targets, draws=golden_draws())
    for lacking in (("frame_action", "frame_background"), ("background",)):
        output = dataclasses.replace(whole, **dict.fromkeys(lacking))
        losses = bcnet_loss(output, targets, draws=golden_draws())
        assert list(losses) == [name for name in expected if name not in lacking]
        less = sum(expected[name] for name in lacking)
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name] - less * (name in ("interaction", "total")))


def test_regression_loss_without_any_overlap_is_zero():
    prediction = torch.rand(2, 30, requires_grad=True)
    loss = regression_loss(prediction, torch.zeros(2, 30))
    loss.backward()
    assert loss == 0 and (prediction.grad == 0).all()


def test_low_precision_predictions_are_judged_in_float32():
    label = torch.tensor([[1.0, 0.0]])
    prediction = torch.tensor([[0.0, 1.0]], dtype=torch.float16)
    loss = binary_logistic_loss(prediction, label, 0.5)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(-np.log(1e-6), rel=1e-4)
