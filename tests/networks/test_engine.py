"""The inference engine against the reference: every rewrite, kernel and precision, and its other promises."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.backends import NATIVE, needs_native
from helpers.networks import (
    CONFIGS,
    MANY,
    NO_REWRITES,
    SMALL,
    TOLERANCES,
    CountedOperations,
    ablated,
    difference,
    random_state,
    written,
)
from helpers.sweeps import sweep

import bcnet_fast
from bcnet_fast.config import AnchorProposalConfig, Config
from bcnet_fast.errors import BackendError, InputError
from bcnet_fast.inference import Predictor
from bcnet_fast.networks.engine import native
from bcnet_fast.networks.engine.engine import Engine
from bcnet_fast.networks.engine.rewrites import REWRITES, Rewrites
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.ops import native as ops_native
from bcnet_fast.proposals import ProposalGenerator
from bcnet_fast.proposals.candidates import match_candidates
from bcnet_fast.protocols import DEFAULT, RELEASES

ABLATED = {
    f"{preset}, {name}": Config(preset, model=model)
    for preset, config in CONFIGS.items()
    for name, model in ablated(config.model).items()
    if name != "whole"
}


@pytest.fixture(params=CONFIGS)
def case(request, tmp_path):
    """`written` of a small network."""
    config = CONFIGS[request.param]
    return written(tmp_path, config, random_state(config.model))


# Without a compiler, leaving out each rewrite is a slow test.
WITHOUT = [pytest.param("native", off, marks=needs_native) for off in (None, *REWRITES["bcnet"])]
WITHOUT += [("auto", None), *(pytest.param("auto", off, marks=pytest.mark.slow) for off in REWRITES["bcnet"])]

# The larger network without each of its parts is a slow test, but for one.
FEWER = [*list(ABLATED)[: len(ABLATED) // 2 + 1]]
FEWER += [pytest.param(name, marks=pytest.mark.slow) for name in ABLATED if name not in FEWER]


@pytest.fixture(params=FEWER)
def ablated_case(request, tmp_path):
    """The same of one without some of its parts. Positional encodings of both streams are alike in the small ones."""
    config = ABLATED[request.param]
    state = random_state(config.model)
    if config.preset == "small":
        state |= {name: table for name, table in BCNet(config.model).state_dict().items() if name.endswith(".pe")}
    return written(tmp_path, config, state)


@pytest.mark.parametrize(("backend", "off"), WITHOUT)
def test_every_rewrite_gives_the_reference_s_function(case, off, backend, monkeypatch):
    path, features, expected = case
    if backend == "auto":  # without a compiler
        monkeypatch.setattr(ops_native, "module", None)
        monkeypatch.setattr(ops_native, "reason", "not here")
    rewrites = Rewrites(**{off: False} if off else {})
    model = bcnet_fast.load(path, device="cpu", precision="fp64", backend=backend, rewrites=rewrites)
    assert difference(model(features), expected) < TOLERANCES["fp64"]


@pytest.mark.parametrize("backend", [NATIVE, "auto"])
def test_without_background_constraint_there_is_no_such_score(backend, monkeypatch):
    """The confidence lacks that factor too: it equals the confidence for a background score of 0."""
    if backend == "auto":
        monkeypatch.setattr(ops_native, "module", None)
        monkeypatch.setattr(ops_native, "reason", "not here")
    config = Config("plain", dataclasses.replace(SMALL, background_constraint=False))
    features, lengths = torch.randn(2, SMALL.feature_dim, SMALL.window), torch.full((2,), SMALL.window)
    made = []
    for asked in (backend, "reference"):
        torch.manual_seed(3)
        made.append(bcnet_fast.load(config, device="cpu", precision="fp64", backend=asked))
    found, expected = (model(features) for model in made)
    assert found.background is None and expected.background is None
    assert difference(found, expected) < TOLERANCES["fp64"]
    assert Predictor(made[0], DEFAULT).scores(features, lengths).background is None
    proposals = ProposalGenerator(config, DEFAULT).window_proposals(found, lengths)
    zeros = dataclasses.replace(found, background=torch.zeros_like(found.classification))
    wanted = ProposalGenerator(config, DEFAULT).window_proposals(zeros, lengths)
    assert len(proposals.scores) and torch.equal(proposals.scores, wanted.scores)


# Few boundaries, and padding at the end of a window: many anchors are not needed.
FEW = AnchorProposalConfig(boundary_threshold=0.99, max_snippets=None)


@sweep("rewrites", [Rewrites(), NO_REWRITES], ids=["rewritten", "plain"])
@sweep("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("backend", [NATIVE, "auto"])
def test_without_a_part_the_function_is_the_reference_s(ablated_case, backend, precision, rewrites, monkeypatch):
    """Scores of all anchors, and of the needed ones, where the others have the score 0."""
    path, features, expected = ablated_case
    if backend == "auto":
        monkeypatch.setattr(ops_native, "module", None)
        monkeypatch.setattr(ops_native, "reason", "not here")
    model = bcnet_fast.load(path, device="cpu", precision=precision, backend=backend, rewrites=rewrites)
    full = model(features)
    assert full.columns().keys() == expected.columns().keys()
    assert difference(full, expected) < TOLERANCES[precision]

    model.config = config = dataclasses.replace(model.config, proposals=FEW)
    window = config.model.window
    lengths = torch.tensor([window, window - 7, window // 3])
    found, skipped = Predictor(model, DEFAULT).scores(features, lengths), 0
    assert found.columns().keys() == expected.columns().keys()
    for i, needed in enumerate(ProposalGenerator(config, DEFAULT).needed_anchors(full, lengths)):
        for name in ("regression", "classification", "background"):
            one, other = getattr(found, name)[i], getattr(full, name)[i]
            if backend == "native":
                assert torch.equal(one[needed], other[needed])
            torch.testing.assert_close(one[needed], other[needed], atol=TOLERANCES[precision], rtol=0)
            assert (one[~needed] == 0).all() or not rewrites.matched_anchors
        skipped += int((~needed).sum())
    assert skipped > 0


@needs_native
def test_without_a_part_8_bits_stay_near(ablated_case):
    path, features, expected = ablated_case
    model = bcnet_fast.load(path, device="cpu", precision="int8")
    assert difference(model(features), expected) < TOLERANCES["int8"]


@needs_native
def test_without_difference_attention_only_the_needed_anchors_go_through_networks(tmp_path):
    config = ABLATED["many, without difference_attention"]
    path, features, _ = written(tmp_path, config, random_state(config.model))
    model = bcnet_fast.load(path, device="cpu")
    kernels, rows = model.run.network.kernels, []
    original = kernels.feed_forward_each

    def feed_forward_each(xs, networks, *, out):
        rows.append(len(xs[0]))
        return original(xs, networks, out=out)

    kernels.feed_forward_each = feed_forward_each
    which = torch.zeros(model.run.network.anchor_count, dtype=torch.bool)
    which[[3, 5, 8]] = True
    model.anchors(features[:1], model.boundaries(features[:1]), which[None])
    assert rows == [MANY.window, MANY.window, 3, 3]


@needs_native
def test_rewrites_change_what_is_computed(tmp_path):
    """Each switch does something: other bits, or fewer anchors."""
    torch.manual_seed(1)
    config = CONFIGS["many"]
    state, features = random_state(MANY), torch.randn(1, MANY.feature_dim, MANY.window)
    path = tmp_path / "network.safetensors"
    bcnet_fast.storage.checkpoint.save_checkpoint(path, state, config)

    def products(rewrites: Rewrites) -> list[tuple]:
        """The buffers that one window takes, one after the other."""
        model = bcnet_fast.load(path, device="cpu", rewrites=rewrites)
        workspace, taken = model.run.network.kernels.workspace, []
        original = workspace.take

        def take(buffer, *shape, **options):
            taken.append((buffer, shape, options))
            return original(buffer, *shape, **options)

        workspace.take = take
        Predictor(model, DEFAULT).scores(features, torch.tensor([MANY.window]))
        return taken

    everything = products(Rewrites())
    for name in REWRITES["bcnet"]:
        if name not in ("batched_original", "strassen"):  # one is not in C++, the other takes the same buffers
            assert products(Rewrites(**{name: False})) != everything, name


@needs_native
def test_strassen_changes_bits_of_float32_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "STRASSEN_FROM", 2)  # else for larger products than those of this network
    path, features, expected = written(tmp_path, CONFIGS["many"], random_state(MANY))
    for precision, alike in (("fp32", False), ("fp64", True), ("int8", True)):
        with_it, without = (
            bcnet_fast.load(path, device="cpu", precision=precision, rewrites=rewrites)(features)
            for rewrites in (Rewrites(), Rewrites(strassen=False))
        )
        assert torch.equal(with_it.classification, without.classification) is alike
        assert difference(with_it, expected) < TOLERANCES[precision]


@needs_native
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_lower_precisions_stay_near_the_reference(case, precision):
    path, features, expected = case
    model = bcnet_fast.load(path, device="cpu", precision=precision)
    found = model(features)
    assert all(scores.dtype == torch.float32 for scores in found.columns().values())
    assert difference(found, expected) < TOLERANCES[precision]


@pytest.mark.parametrize("backend", [NATIVE, "reference"])
def test_candidates_are_all_that_proposals_depend_on(case, backend):
    path, features, _ = case
    model = bcnet_fast.load(path, device="cpu", backend=backend)
    model.config = config = dataclasses.replace(model.config, proposals=FEW)
    window = config.model.window
    lengths = torch.tensor([window, window - 7, window // 3])
    for protocol in (DEFAULT, RELEASES["bcnet"]):
        full, found = model(features), Predictor(model, protocol).scores(features, lengths)
        for name in ("start", "end", "actionness", "frame_action", "frame_background"):
            assert torch.equal(getattr(found, name), getattr(full, name))
        skipped = 0
        for i, needed in enumerate(ProposalGenerator(config, protocol).needed_anchors(full, lengths)):
            for name in ("regression", "classification", "background"):
                assert torch.equal(getattr(found, name)[i, needed], getattr(full, name)[i, needed])
                if backend != "reference":
                    assert (getattr(found, name)[i, ~needed] == 0).all()
            skipped += int((~needed).sum())
        assert skipped > 0
        one, other = (ProposalGenerator(config, protocol).window_proposals(output, lengths) for output in (full, found))
        assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


@needs_native
def test_a_window_without_any_pair_of_boundaries(case):
    path, features, _ = case
    model = bcnet_fast.load(path, device="cpu")
    found = Predictor(model, DEFAULT).scores(features, torch.tensor([1, 1, 1]))
    assert not found.regression.any() and not found.classification.any() and not found.background.any()
    assert found.start.all()


@needs_native
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_same_bits_alone_and_in_a_batch_for_any_number_of_threads(case, precision):
    path, features, _ = case
    model = bcnet_fast.load(path, device="cpu", precision=precision)
    together = model(features)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            alone = [model(features[i : i + 1]) for i in range(3)]
            for name, scores in together.columns().items():
                assert torch.equal(torch.cat([getattr(part, name) for part in alone]), scores)
    finally:
        torch.set_num_threads(threads)


@needs_native
def test_buffers_are_made_once_and_results_stay_as_they_are(case):
    path, features, _ = case
    model = bcnet_fast.load(path, device="cpu")
    lengths = torch.full((3,), features.shape[-1])
    model(features)
    workspace = model.run.network.kernels.workspace
    buffers = dict(workspace.memory)
    first = model(features[:1])
    kept = {name: scores.clone() for name, scores in first.columns().items()}
    for _ in range(3):
        model(features.flip(0))
        Predictor(model, DEFAULT).scores(features, lengths)
    assert workspace.memory.keys() == buffers.keys()
    assert all(workspace.memory[name] is memory for name, memory in buffers.items())
    assert all(torch.equal(kept[name], scores) for name, scores in first.columns().items())


@needs_native
def test_threads_may_share_a_model(case):
    path, features, _ = case
    model = bcnet_fast.load(path, device="cpu")
    expected = [model(features[i : i + 1]) for i in range(3)]
    start = threading.Barrier(3)

    def run(i: int) -> bool:
        start.wait()
        return all(difference(model(features[i : i + 1]), expected[i]) == 0 for _ in range(20))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(run, range(3)))


def test_features_of_any_dtype_and_stride_and_an_empty_batch(case):
    path, features, expected = case
    model = bcnet_fast.load(path, device="cpu", precision="fp64")
    strided = features.double().transpose(1, 2).contiguous().transpose(1, 2)
    assert difference(model(strided), expected) < TOLERANCES["fp64"]
    for dtype in (torch.float16, torch.bfloat16):
        half = features.to(dtype).requires_grad_()
        assert difference(model(half), model(half.detach().double())) == 0
    assert all(len(scores) == 0 for scores in model(features[:0]).columns().values())
    with pytest.raises(ValueError, match=r"features has shape \[3, 1, 2\], expected \[B, \d+, \d+\]"):
        model(torch.zeros(3, 1, 2))


# ---- The path for CUDA, in Triton's interpreter


def test_network_and_proposals_by_triton_kernels(triton):
    config = CONFIGS["small"]
    torch.manual_seed(2)
    state, features = random_state(SMALL), torch.randn(1, SMALL.feature_dim, SMALL.window)
    lengths = torch.tensor([SMALL.window - 5])
    exact = BCNet(SMALL)
    exact.load_state_dict(state)
    with torch.no_grad():
        expected = exact.double().eval()(features.double())
    with bcnet_fast.ops.use_backend("triton"):
        engine = Engine(config.model, state, torch.device("cpu"), "fp32", native=False)
        found = engine.network(features)
        matched = match_candidates(found, lengths, config, DEFAULT.candidates)
    assert difference(found, expected) < TOLERANCES["fp32"]
    wanted = match_candidates(found, lengths, config, DEFAULT.candidates)
    assert wanted.counts.min() > 0
    assert all(torch.equal(a, b) for a, b in zip(matched, wanted, strict=True))


def test_launches_do_not_grow_with_the_batch():
    """A CUDA graph replays as many launches for eight windows as for one."""
    state = random_state(SMALL)
    engine = Engine(SMALL, state, torch.device("cpu"), "fp32", native=False)
    counts = []
    for batch in (1, 8):
        with torch.inference_mode(), CountedOperations() as counted:
            engine.network(torch.randn(batch, SMALL.feature_dim, SMALL.window))
        counts.append(sum(counted.counts.values()))
    assert counts[0] == counts[1]
    assert counts[0] == 146  # without Triton's


# ---- What cannot be had


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "int8", "backend": "triton"}, InputError, "precision is 'int8' .*, expected a CPU"),
        ({"precision": "int8", "backend": "reference"}, InputError, "expected fp32 or fp64 with backend 'reference'"),
        ({"precision": "bf16", "backend": "reference"}, InputError, "expected fp32 or fp64 with backend 'reference'"),
    ],
)
@needs_native
def test_what_cannot_be_had_is_named(options, error, message):
    with pytest.raises(error, match=message):
        bcnet_fast.load(CONFIGS["small"], device="cpu", **options)


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(ops_native, "module", None)
    monkeypatch.setattr(ops_native, "reason", "the native extension was not built")
    with pytest.raises(InputError, match="precision 'int8' cannot be used: the native extension was not built"):
        bcnet_fast.load(CONFIGS["small"], device="cpu", precision="int8")
    with pytest.raises(BackendError, match="backend 'native' cannot be used: the native extension was not built"):
        bcnet_fast.load(CONFIGS["small"], device="cpu", backend="native")


def test_a_precision_that_does_not_pay_is_said_to_be_one():
    with pytest.warns(UserWarning, match="precision bf16 has no kernels of its own on a CPU"):
        bcnet_fast.load(CONFIGS["small"], device="cpu", precision="bf16")
