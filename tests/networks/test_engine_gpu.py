"""The engine on a GPU: `python -m pytest -m gpu`. Nothing of this has run yet; without a GPU it is skipped."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import CONFIGS, difference, random_state

import bcnet_fast
from bcnet_fast.config import BCNetConfig, Config
from bcnet_fast.inference import Predictor
from bcnet_fast.networks.engine.engine import Engine
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.proposals import ProposalGenerator
from bcnet_fast.protocols import DEFAULT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CASES = CONFIGS | {"thumos14": Config("thumos14", model=BCNetConfig())}
# float32 as on a CPU. TF32 and float16 round to 11 bits, bfloat16 to 8, and the network enlarges rounding errors some
# hundred times.
TOLERANCES = {"fp64": 1e-9, "fp32": 2e-3, "tf32": 0.2, "bf16": 0.5, "fp16": 0.1}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    config = CASES[request.param]
    path = tmp_path / "network.safetensors"
    state = random_state(config.model) if request.param != "thumos14" else BCNet(config.model).state_dict()
    bcnet_fast.storage.checkpoint.save_checkpoint(path, state, config)
    features = torch.randn(3, config.model.feature_dim, config.model.window)
    return path, features, bcnet_fast.load(path, device="cpu", precision="fp64", backend="reference")(features)


@pytest.fixture(params=TOLERANCES)
def precision(request):
    if request.param in ("tf32", "bf16") and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")
    return request.param


def test_every_precision_stays_near_the_reference(case, precision):
    path, features, expected = case
    found = bcnet_fast.load(path, device="cuda", precision=precision)(features)
    assert all(scores.is_cuda for scores in vars(found).values())
    host = type(found)(**{name: scores.cpu() for name, scores in vars(found).items()})
    assert difference(host, expected) < TOLERANCES[precision]


def test_a_graph_replays_for_every_size_of_the_batch_and_results_stay(case):
    path, features, _ = case
    model = bcnet_fast.load(path, device="cuda")
    first = model(features)
    kept = {name: scores.clone() for name, scores in vars(first).items()}
    for batch in (1, 2, 3):
        again = model(features[:batch].cuda())
        for name, scores in kept.items():  # other sizes may be multiplied by other kernels
            torch.testing.assert_close(getattr(again, name), scores[:batch], rtol=0, atol=TOLERANCES["fp32"])
    assert all(torch.equal(getattr(again, name), scores) for name, scores in kept.items())
    assert all(torch.equal(getattr(first, name), scores) for name, scores in kept.items())
    assert set(model.run._graph.captured) == {1, 2, 4}


def test_the_graph_gives_what_the_network_gives_without_it(case):
    path, features, _ = case
    config = bcnet_fast.storage.checkpoint.read_config(path)
    state = bcnet_fast.storage.checkpoint.StoredWeights(path, BCNet(config.model))
    engine = Engine(config.model, state, torch.device("cuda"), "fp32", native=False)
    with torch.inference_mode():
        assert difference(engine(features[:2]), engine._eager(features[:2])) == 0


def test_proposals_on_the_device_are_those_of_the_host(case):
    path, features, _ = case
    model, lengths = bcnet_fast.load(path, device="cuda"), torch.tensor([features.shape[-1]] * 3)
    output = Predictor(model, DEFAULT).scores(features, lengths)
    host = type(output)(**{name: scores.cpu() for name, scores in vars(output).items()})
    found = ProposalGenerator(model.config, DEFAULT).window_proposals(output, lengths.cuda())
    expected = ProposalGenerator(model.config, DEFAULT).window_proposals(host, lengths)
    assert all(torch.equal(a, b) for a, b in zip(vars(found).values(), vars(expected).values(), strict=True))
