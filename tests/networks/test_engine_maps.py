"""The engines of BMN and G-TAD against their references: every rewrite, layout and kernel, on maps of odd sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.backends import needs_native
from helpers.networks import MAP_MODELS, CountedOperations, difference, map_config

import bcnet_fast
from bcnet_fast.config import BMNConfig
from bcnet_fast.errors import InputError
from bcnet_fast.geometry.proposal_map import proposal_map
from bcnet_fast.networks.engine.engine import Engine
from bcnet_fast.networks.engine.map_cells import CONVOLUTIONS, MapCells
from bcnet_fast.networks.engine.rewrites import REWRITES, Rewrites
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.ops import native


@pytest.fixture(params=MAP_MODELS)
def case(request, tmp_path):
    """A checkpoint of a small network, features for three windows, and the reference's scores in float64."""
    config = map_config(request.param)
    path = tmp_path / "network.safetensors"
    state = NETWORKS[config.model.name](config.model).state_dict()
    state = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in state.items()}
    bcnet_fast.storage.checkpoint.save_checkpoint(path, state, config)
    features = torch.randn(3, config.model.feature_dim, config.model.window)
    return path, features, bcnet_fast.load(path, device="cpu", precision="fp64", backend="reference")(features)


@pytest.mark.parametrize(
    ("backend", "each"),
    [
        pytest.param("native", True, marks=needs_native),
        ("auto", False),
        pytest.param("auto", True, marks=pytest.mark.slow),
    ],
)
def test_every_rewrite_gives_the_reference_s_function(case, backend, each, monkeypatch):
    """All cells of the map, those that are no proposals too."""
    path, features, expected = case
    if backend == "auto":  # without a compiler
        monkeypatch.setattr(native, "module", None)
        monkeypatch.setattr(native, "reason", "not here")
    system = bcnet_fast.storage.checkpoint.read_config(path).model.name
    for off in (None, *(REWRITES[system] if each else ())):
        rewrites = Rewrites(**{off: False} if off else {})
        model = bcnet_fast.load(path, device="cpu", precision="fp64", backend=backend, rewrites=rewrites)
        found = model(features)
        assert found.columns().keys() == expected.columns().keys()
        assert difference(found, expected) < 1e-12, off


def test_float32_stays_near_the_reference(case):
    path, features, expected = case
    found = bcnet_fast.load(path, device="cpu")(features)
    assert all(scores.dtype == torch.float32 for scores in found.columns().values())
    assert difference(found, expected) < 1e-5


def test_without_background_constraint_there_is_no_such_score(case):
    path, _, expected = case
    constrained = bcnet_fast.storage.checkpoint.read_config(path).model.background_constraint
    assert (expected.background is not None) == constrained
    if constrained:
        assert expected.background.shape == expected.confidence[:, 0].shape


@needs_native
def test_results_have_the_same_bits_in_any_batch_and_for_any_number_of_threads(case):
    path, features, _ = case
    model = bcnet_fast.load(path, device="cpu")
    together = model(features)
    alone = [model(window[None]) for window in features]
    assert difference(type(together).cat(alone), together) == 0
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert difference(model(features), together) == 0
    finally:
        torch.set_num_threads(threads)
    assert all(len(scores) == 0 for scores in model(features[:0]).columns().values())


@needs_native
def test_a_window_leaves_nothing_behind(case):
    """The next window gets neither its values nor its NaN."""
    path, features, _ = case
    model = bcnet_fast.load(path, device="cpu")
    first = model(features[:1])
    bad = model(torch.full_like(features[:1], torch.nan))
    valid = proposal_map(model.config.model).valid
    assert bad.start.isnan().all() and bad.confidence[:, :, valid].isnan().all()
    model(features[1:] * 100)
    assert difference(model(features[:1]), first) == 0


@pytest.mark.parametrize("name", MAP_MODELS)
def test_computed_cells(name):
    """A layer with a different value in every cell shows which cells are computed, and where the others get their
    scores."""
    valid = proposal_map(MAP_MODELS[name]).valid
    cells = MapCells.of(valid)
    numbers = np.arange(valid.size).reshape(valid.shape)
    assert np.array_equal(np.sort(cells.sampled), np.unique(cells.sampled))
    assert np.array_equal(cells.sampled[cells.source[valid]], numbers[valid])
    assert (cells.source[~valid] == len(cells.sampled) - 1).all()

    rng = np.random.default_rng(1)
    layer = np.where(valid, rng.integers(1, 1000, valid.shape), 7).astype(np.float64)  # all others alike
    for computed in cells.layers[1:]:
        around = np.lib.stride_tricks.sliding_window_view(np.pad(layer, 1), (3, 3))
        layer = (around * [[1, 20, 3], [4, 50, 6], [70, 8, 9]]).sum(axis=(2, 3))
        poisoned = np.where(computed, layer, np.nan)
    assert len(cells.layers) == CONVOLUTIONS + 1
    assert np.array_equal(poisoned.ravel()[cells.copied], layer)


def test_half_of_the_map_is_computed():
    """5050 of 10,000 cells are sampled, and a seventh more convolved, from which the others have their scores."""
    cells = MapCells.of(proposal_map(BMNConfig()).valid)
    assert len(cells.sampled) == 5050 + 1
    assert all(layer.sum() < 1.15 * 5050 for layer in cells.layers[1:])


def test_by_triton_kernels(triton):
    for name in ("bmn, background", "gtad"):
        torch.manual_seed(2)
        config = MAP_MODELS[name]
        network = NETWORKS[config.name](config)
        features = torch.randn(1, config.feature_dim, config.window)
        with torch.no_grad(), bcnet_fast.ops.use_backend("triton"):
            engine = Engine(config, network.state_dict(), torch.device("cpu"), "fp32", native=False)
            found = engine.network(features)
            expected = network.double().eval()(features.double())
        assert difference(found, expected) < 1e-5


def test_launches_do_not_grow_with_the_batch():
    """A CUDA graph replays as many launches for eight windows as for one."""
    for name in ("bmn", "gtad"):
        config = MAP_MODELS[name]
        engine = Engine(config, NETWORKS[name](config).state_dict(), torch.device("cpu"), "fp32", native=False)
        counts = []
        for batch in (1, 8):
            with torch.inference_mode(), CountedOperations() as counted:
                engine.network(torch.randn(batch, config.feature_dim, config.window))
            counts.append(sum(counted.counts.values()))
        assert counts[0] == counts[1]


def test_what_cannot_be_had_is_named():
    with pytest.raises(InputError, match=r"precision is 'int8', .* expected fp32, fp64, tf32, bf16 or fp16 for bmn"):
        bcnet_fast.load(map_config("bmn"), device="cpu", precision="int8")
    with pytest.raises(InputError, match="model is 'bsn', expected bcnet, bmn, gtad, pgcn or muses"):
        bcnet_fast.load("thumos14", model="bsn", device="cpu")
    with pytest.raises(InputError, match="model is 'bmn', expected 'gtad', the system of these weights"):
        bcnet_fast.load(map_config("gtad"), model="bmn", device="cpu")
    model = bcnet_fast.load(map_config("gtad"), model="gtad", device="cpu")
    with pytest.raises(ValueError, match=r"features has shape \[1, 8, 22\], expected \[B, 8, 23\]"):
        model(torch.zeros(1, 8, 22))
