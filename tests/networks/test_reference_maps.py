"""The reference BMN and G-TAD against the public releases' float64 outputs, inside and out."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN
from helpers.sweeps import sweep
from support import seeded

from bcnet_fast.config import GTADConfig, ModelConfig
from bcnet_fast.networks.engine import gtad as engine_of_gtad
from bcnet_fast.networks.engine.engine import Engine
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.networks.reference.gtad import nearest
from bcnet_fast.ops import native
from bcnet_fast.presets import PRESETS

SEED = 101
BMN, ANET = PRESETS["bmn"]["activitynet13"].model, PRESETS["gtad"]["activitynet13"].model
# The branch master's network on ActivityNet's sequences.
T100 = GTADConfig(feature_dim=400, window=100, max_duration=100)
GTAD = {"gtad_anet": ANET, "gtad_t100": T100, "gtad_thumos": PRESETS["gtad"]["thumos14"].model}
MODELS = {"bmn": BMN, **GTAD}


# Modules inside the networks whose outputs are known.
INSIDE = {
    "bmn": ("x_1d_b", "x_1d_p", "x_3d_p"),
    "gtad": ("backbone1.1", "backbone1.2", "backbone2.0", "localization.1"),
}


def state_of(name: str, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The seeded weights that the golden outputs were computed with."""
    return seeded.map_state(GOLDEN / "bmn_gtad" / f"{name}_keys.json", SEED, g8=config.name == "gtad")


def features(case: str, config: ModelConfig) -> torch.Tensor:
    drawn = seeded.map_input(seeded.MAP_INPUTS[case], config.feature_dim, config.window, SEED)
    return torch.from_numpy(drawn).double()


@functools.cache
def run(name: str, window: str):
    """The output of the reference in float64, and the outputs of some modules, by name."""
    config = MODELS[name]
    network, seen = NETWORKS[config.name](config), {}
    network.load_state_dict(state_of(name, config))
    network.double().eval()
    for module in INSIDE[config.name]:
        network.get_submodule(module).register_forward_hook(
            lambda _, given, out, module=module: seen.update({module: out[0]})
        )
    if config.name == "gtad":
        sample = network.sample
        network.sample = lambda *given: seen.setdefault("subgraph", sample(*given))
    with torch.no_grad():
        return network(features(name + window, config)), seen


def assert_close(found: torch.Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-9, rtol=0)


@pytest.fixture(scope="module")
def inside(golden) -> np.lib.npyio.NpzFile:
    """Intermediate results of the releases: a sample of the features, and every neighbour graph."""
    return np.load(golden / "bmn_gtad" / "inside.npz")


@pytest.mark.parametrize("name", ["bmn", *GTAD])
def test_seeded_weights_are_those_of_the_golden_outputs(golden, name):
    known = json.loads((golden / "bmn_gtad" / "weight_check.json").read_text())[name]
    state = seeded.map_state(golden / "bmn_gtad" / f"{name}_keys.json", SEED)
    assert state.keys() == known.keys()
    for key, tensor in state.items():
        assert list(tensor.shape) == known[key]["shape"]
        assert tensor.flatten()[:2].tolist() == known[key]["first"]
        assert float(tensor.double().sum()) == pytest.approx(known[key]["sum"], abs=1e-9)


def test_bmn_gives_the_golden_outputs(golden):
    output, _ = run("bmn", "")
    known = np.load(golden / "bmn_gtad" / "bmn_forward.npz")
    assert_close(output.confidence[0], known["confidence_map"])
    assert_close(output.start[0], known["start"])
    assert_close(output.end[0], known["end"])
    assert output.background is None


@sweep(
    ("name", "window"),
    [("gtad_anet", ""), ("gtad_t100", ""), ("gtad_thumos", ""), ("gtad_thumos", "_winB")],
    keep=0,  # tests/cli/test_convert_maps.py has the engine's
)
def test_gtad_gives_the_golden_outputs(golden, name, window):
    output, _ = run(name, window)
    known = np.load(golden / "bmn_gtad" / f"{name}_forward{window}.npz")
    assert_close(output.confidence[0], known["iou_map_g8"])
    assert_close(output.start[0], known["start_g8"])
    assert_close(output.end[0], known["end_g8"])


def test_bmn_is_the_release_inside(inside):
    _, seen = run("bmn", "")
    assert_close(seen["x_1d_b"][::8], inside["bmn.base"])
    assert_close(seen["x_1d_p"][::8], inside["bmn.p1d"])
    assert_close(seen["x_3d_p"][::64, 0, ::7, ::7], inside["bmn.p3d"])


@sweep("name", GTAD, keep=0)
def test_gtad_is_the_release_inside(inside, name):
    config, (_, seen) = GTAD[name], run(name, "")
    every = 2 if config.window == 256 else 1
    for module, part in (("backbone1.1", "stem"), ("backbone1.2", "base"), ("backbone2.0", "gcnext")):
        assert_close(seen[module][::8, ::every], inside[f"{name}.{part}"])
        graph = nearest(seen[module][None], config.neighbours)[0].sort(dim=-1).values
        assert np.array_equal(graph.numpy(), inside[f"{name}.knn_{part}"])
    assert_close(seen["subgraph"][0, ::404, ::9, ::11], inside[f"{name}.subgraph"])
    assert_close(seen["localization.1"][::64, ::9, ::11], inside[f"{name}.loc0"])


@pytest.mark.parametrize("name", GTAD)
def test_the_engine_in_float32_has_the_release_s_graphs(inside, name, monkeypatch):
    config, graphs = GTAD[name], []

    def noted(x: torch.Tensor, count: int) -> torch.Tensor:
        graphs.append(made_by_engine(x, count))
        return graphs[-1]

    made_by_engine = engine_of_gtad.nearest
    monkeypatch.setattr(engine_of_gtad, "nearest", noted)
    engine = Engine(config, state_of(name, config), torch.device("cpu"), "fp32", native=native.module is not None)
    engine(features(name, config))
    for graph, part in zip(graphs, ("stem", "base", "gcnext"), strict=True):
        assert np.array_equal(graph.sort(dim=-1).values.reshape(-1, 3).numpy(), inside[f"{name}.knn_{part}"])
