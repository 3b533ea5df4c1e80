"""The reference network and the engine against the public release's float64 outputs, from a converted checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from helpers.backends import needs_native
from helpers.networks import SMALL, ablated, golden_fields
from helpers.sweeps import sweep
from support import seeded

import bcnet_fast
from bcnet_fast import infer
from bcnet_fast.geometry.anchors import make_anchors, matching_table
from bcnet_fast.inference import Predictor
from bcnet_fast.networks.outputs import BCNetOutput
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.networks.reference.dense_sampling import sampling_weights
from bcnet_fast.networks.reference.layers import DifferenceAttention, sinusoid
from bcnet_fast.proposals import ProposalGenerator
from bcnet_fast.protocols import DEFAULT


# float64: sums in another order, 4e-13 measured. float32: the release itself is up to 1.1e-4 off on the unbounded
# regression and 3e-5 on probabilities.
@pytest.mark.slow  # the engine below is compared with the same figures, and elsewhere with this network
@pytest.mark.parametrize(("precision", "tolerance", "regression"), [("fp64", 1e-9, 1e-9), ("fp32", 2e-4, 1e-3)])
def test_converted_release_gives_the_golden_outputs(released, golden, precision, tolerance, regression):
    model = bcnet_fast.load(released, device="cpu", precision=precision, backend="reference")
    output = model(torch.from_numpy(seeded.network_input(101)))
    for name, expected in golden_fields(golden).items():
        error = np.abs(getattr(output, name)[0].double().numpy() - expected).max()
        assert error < (regression if name == "regression" else tolerance), name


# float64: 4e-13 measured. float32: 1e-5 measured; the release's own float32 is 1.1e-4 off.
@needs_native
@sweep(("precision", "tolerance"), [("fp32", 1e-4), ("fp64", 1e-9)])
def test_the_engine_gives_the_golden_outputs_and_proposals(released, golden, precision, tolerance):
    model = bcnet_fast.load(released, device="cpu", precision=precision)
    features = torch.from_numpy(seeded.network_input(101))
    everything = model(features)
    expected = golden_fields(golden)
    for name, values in expected.items():
        assert np.abs(getattr(everything, name)[0].double().numpy() - values).max() < tolerance, name

    exact = BCNetOutput(**{name: torch.from_numpy(values)[None] for name, values in expected.items()})
    lengths, protocol = torch.tensor([256]), DEFAULT
    found = ProposalGenerator(model.config, protocol).window_proposals(
        Predictor(model, protocol).scores(features, lengths), lengths
    )
    wanted = ProposalGenerator(model.config, protocol).window_proposals(exact, lengths)
    assert torch.equal(found.segments, wanted.segments)  # the same proposals in the same order
    torch.testing.assert_close(found.decayed, wanted.decayed, rtol=1e-3, atol=1e-6)


@pytest.mark.slow  # the engine's scores, and proposals of them, are tested above
def test_from_checkpoint_and_features_to_the_release_s_final_list(released, golden, tmp_path):
    np.save(tmp_path / "video.npy", seeded.network_input(101)[0].T)
    output = tmp_path / "proposals.json"
    arguments = ["--checkpoint", released, "--features", tmp_path / "video.npy", "--output", output, "--fps", 30]
    assert infer.main([str(a) for a in [*arguments, "--protocol", "release", "--precision", "fp64"]]) == 0
    found = json.loads(output.read_text())["results"]["video"]
    expected = np.load(golden / "bcnet" / "proposals.npz")["model_nms120_then_nms1000"]  # score, frames
    assert [p["segment"] for p in found] == np.round(expected[:, 1:] / 30, 1).tolist()
    assert [p["score"] for p in found] == np.round(expected[:, 0], 6).tolist()


def test_anchors_and_sampling_weights_are_the_release_s_bit_for_bit(golden):
    stored = np.load(golden / "bcnet" / "anchors.npz")
    anchors = make_anchors(256, 64)
    np.testing.assert_array_equal(anchors, np.stack([stored["anchor_start"], stored["anchor_end"]], axis=1))
    weights = sampling_weights(anchors, 256, 32, 3)
    assert hashlib.sha256(weights.tobytes()).hexdigest() == str(stored["mask_sha256_f32_T_N_P"])


def slow_sampling(start: float, end: float, window: int, bins: int, points: int) -> np.ndarray:
    weights = np.zeros((window, bins))
    for k in range(bins * points):
        point = start + k * (end - start) / (bins * points - 1)
        low = int(np.floor(point))
        for snippet, weight in ((low, 1 - (point - low)), (low + 1, point - low)):
            if 0 <= snippet < window:
                weights[snippet, k // points] += weight / points
    return weights


@pytest.mark.parametrize(("window", "longest", "bins", "points"), [(7, 8, 1, 1), (31, 20, 5, 3), (100, 100, 32, 3)])
def test_sampling_follows_its_definition_at_any_size(window, longest, bins, points, rng):
    anchors = make_anchors(window, longest)
    weights = sampling_weights(anchors, window, bins, points)
    for index in rng.choice(len(anchors), min(len(anchors), 20), replace=False):
        start, end = anchors[index]
        if bins * points > 1:
            expected = slow_sampling(start, end, window, bins, points)
            np.testing.assert_allclose(weights[:, :, index], expected, atol=1e-6)
        assert weights[:, :, index].sum() > 0


@pytest.mark.parametrize(("window", "longest"), [(5, 6), (37, 23), (40, 40)])
def test_matching_table_is_the_first_anchor_of_highest_tiou(window, longest):
    anchors = make_anchors(window, longest)
    table = matching_table(window, longest)
    for start in range(window):
        for duration in range(1, longest + 1):
            tious = []
            for a, b in anchors.tolist():
                overlap = max(min(start + duration, b) - max(start, a), 0)
                tious.append(overlap / (duration + b - a - overlap))
            assert table[start, duration - 1] == tious.index(max(tious))


def test_no_anchor_is_a_clear_error():
    with pytest.raises(ValueError, match="no anchor fits: window 1"):
        make_anchors(1, 64)


@pytest.mark.parametrize("width", [6, 7])
def test_positions_are_sines_and_cosines(width):
    table = sinusoid(9, width)[:, 0].double().numpy()
    for position in range(9):
        for column in range(width):
            angle = position / 10000 ** (2 * (column // 2) / width)
            assert table[position, column] == pytest.approx(np.cos(angle) if column % 2 else np.sin(angle), abs=1e-5)


def test_network_trains_on_any_width_and_dropout_is_for_training_only():
    torch.manual_seed(0)
    network = BCNet(SMALL)
    features = torch.randn(2, 10, 24)
    output = network(features)
    sum(scores.mean() for scores in output.columns().values()).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []
    assert not torch.equal(network(features).start, network(features).start)
    network.eval()
    assert torch.equal(network(features).start, network(features).start)


def test_difference_unit_applies_one_map_to_both_streams(rng):
    unit = DifferenceAttention(width=6, heads=2, head_dim=4).double()
    a, b = (torch.from_numpy(rng.standard_normal((1, 5, 6))) for _ in range(2))
    outputs = unit(a, b)
    with torch.no_grad():
        q, k, value_a, value_b = unit.W_Q(a)[0], unit.W_K(b)[0], unit.W_V_A(a)[0], unit.W_V_B(b)[0]
        for out, stream, value, project in ((outputs[0], a, value_a, unit.fc_a), (outputs[1], b, value_b, unit.fc_b)):
            for i in range(5):
                heads = []
                for head in (slice(0, 4), slice(4, 8)):
                    weights = torch.softmax(torch.stack([q[i, head] @ k[j, head] / 2.0 for j in range(5)]), dim=0)
                    heads.append(sum(weights[j] * value[j, head] for j in range(5)))
                mixed = project(torch.cat(heads)) + stream[0, i]
                expected = (mixed - mixed.mean()) / (mixed.var(unbiased=False) + 1e-5).sqrt()
                torch.testing.assert_close(out[0, i], expected)


@pytest.mark.parametrize("config", ablated(SMALL).values(), ids=ablated(SMALL))
def test_a_part_that_is_left_out_passes_on_what_it_would_get(config, monkeypatch):
    """The scores are those of the whole network with units that do nothing; no other part is left out."""
    whole, network = BCNet(SMALL).double().eval(), BCNet(config).double().eval()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state, levels = whole.state_dict(), (whole.abi.frame_model.encoder, whole.abi.encoder)
    dropped = []
    for encoder in levels:
        (layer,) = encoder.layers
        if not config.self_attention:
            monkeypatch.setattr(layer.enc_self_attn, "forward", lambda x, y: x)
            dropped.append(layer.enc_self_attn)
        if not config.difference_attention:
            monkeypatch.setattr(layer.enc_abi_attn, "forward", lambda a, b: (a, b))
            dropped.append(layer.enc_abi_attn)
    if not config.frame_level:
        frames = whole.abi.frame_model
        monkeypatch.setattr(frames.encoder.layers[0], "forward", lambda a, b: (a, b))
        dropped += [frames.encoder.layers[0], frames.fc_cls_a, frames.fc_cls_b]
    names = {id(parameter): name for name, parameter in whole.named_parameters()}
    without = {names[id(parameter)] for module in dropped for parameter in module.parameters()}
    network.load_state_dict({name: tensor for name, tensor in state.items() if name not in without})

    features = torch.randn(2, SMALL.feature_dim, SMALL.window).double()
    with torch.no_grad():
        found, expected = network(features), whole(features)
    if not config.frame_level:
        assert found.frame_action is None and found.frame_background is None
        expected.frame_action = expected.frame_background = None
    assert found.columns().keys() == expected.columns().keys()
    for name, scores in expected.columns().items():
        assert torch.equal(getattr(found, name), scores), name


@pytest.mark.parametrize("difference", [True, False], ids=["difference", "no difference"])
def test_only_the_difference_unit_brings_the_background_to_the_action(difference):
    network = BCNet(dataclasses.replace(SMALL, difference_attention=difference)).double().eval()
    features = torch.randn(2, SMALL.feature_dim, SMALL.window).double()
    with torch.no_grad():
        before = network(features)
        for encoder in (network.abi.frame_model.encoder, network.abi.encoder):
            for parameter in encoder.layers[0].pos_ffn_b.parameters():
                parameter.normal_()
        after = network(features)
    for name in ("frame_action", "regression", "classification"):
        assert torch.equal(getattr(after, name), getattr(before, name)) != difference, name
    for name in ("frame_background", "background"):
        assert not torch.equal(getattr(after, name), getattr(before, name)), name


def test_wrong_feature_shape_names_both_shapes():
    network = BCNet(SMALL)
    with pytest.raises(ValueError, match=r"features has shape \[2, 24, 10\], expected \[B, 10, 24\]"):
        network(torch.zeros(2, 24, 10))


def test_a_window_gives_the_same_bits_in_any_batch():
    torch.manual_seed(1)
    model = bcnet_fast.load(bcnet_fast.config.Config("small", model=SMALL), device="cpu")
    features = torch.randn(5, 10, 24)
    together, alone = model(features), model(features[3:4])
    for name in vars(alone):
        assert torch.equal(getattr(together, name)[3:4], getattr(alone, name))
