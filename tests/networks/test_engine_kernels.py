"""The operations that every set of kernels must have, and the buffers of those in C++."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from helpers.backends import needs_native
from helpers.networks import CONFIGS, NO_REWRITES, difference, map_config, random_state, written
from helpers.sweeps import sweep

import bcnet_fast
from bcnet_fast.inference.model import Model
from bcnet_fast.networks.engine import buffers, kernels, native, native_map, native_sampling, torch_backend
from bcnet_fast.networks.engine.buffers import BCNetBuffer, Workspace
from bcnet_fast.networks.engine.rewrites import Rewrites
from bcnet_fast.networks.outputs import Output
from bcnet_fast.networks.reference import NETWORKS

IMPLEMENTATIONS = [
    (kernels.Kernels, native.NativeKernels),
    (kernels.Kernels, torch_backend.TorchKernels),
    (kernels.FoldingKernels, native.NativeKernels),
    (kernels.AnchorKernels, native_sampling.NativeAnchors),
    (kernels.AnchorKernels, torch_backend.TorchAnchors),
    (kernels.MapKernels, native_map.NativeMap),
    (kernels.MapKernels, torch_backend.TorchMap),
]


@pytest.mark.parametrize(
    ("protocol", "implementation"), IMPLEMENTATIONS, ids=lambda kind: kind.__name__ if inspect.isclass(kind) else None
)
def test_kernels_implement_every_operation_with_its_signature(protocol, implementation):
    operations = {name: of for name, of in vars(protocol).items() if inspect.isfunction(of) and name[0] != "_"}
    assert operations
    for name, operation in operations.items():
        assert inspect.getdoc(operation), f"{name} has no docstring"
        found = inspect.signature(vars(implementation)[name])
        parameters = [(p.name, p.kind, p.default) for p in found.parameters.values()]
        assert parameters == [(p.name, p.kind, p.default) for p in inspect.signature(operation).parameters.values()]


CASES = {
    **{f"bcnet, {name}": config for name, config in CONFIGS.items()},
    **{name: map_config(name) for name in ("bmn", "bmn, many channels", "gtad", "gtad, many channels")},
}


def all_scores(model: Model, features: torch.Tensor) -> list[Output]:
    """Scores of all anchors, and of every third, which takes another path."""
    scores = [model(features)]
    if model.run.skips_anchors:
        boundaries = model.boundaries(features)
        needed = torch.arange(model.run.network.anchor_count) % 3 == 0
        scores.append(model.anchors(features, boundaries, needed.expand(len(features), -1)))
    return scores


@needs_native
@sweep("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("name", CASES)
def test_no_result_is_read_after_its_buffer_was_taken_again(name, precision, tmp_path, monkeypatch):
    """Where overwritten results become NaN, all scores stay the same: in every window, with and without rewrites."""
    config = CASES[name]
    system = config.model.name
    state = random_state(config.model) if system == "bcnet" else NETWORKS[system](config.model).state_dict()
    path, features, _ = written(tmp_path, config, state)
    for rewrites in (Rewrites(), Rewrites(folded_norm=False), NO_REWRITES, Rewrites(project_sampling=False)):
        model = bcnet_fast.load(path, device="cpu", precision=precision, rewrites=rewrites)
        expected = all_scores(model, features)
        monkeypatch.setattr(Workspace, "poison", True)
        for scores, known in zip(all_scores(model, features), expected, strict=True):
            assert difference(scores, known) == 0
        monkeypatch.setattr(Workspace, "poison", False)


@needs_native
def test_poison_shows_a_read_of_an_overwritten_result(tmp_path, monkeypatch):
    """The result is the boundary layers' self-attention of the first sequence, which every layer adds to a later
    one."""
    config = CONFIGS["many"]
    path, features, _ = written(tmp_path, config, random_state(config.model))
    monkeypatch.setattr(Workspace, "poison", True)
    model = bcnet_fast.load(path, device="cpu", precision="fp64")
    assert not model(features).start.isnan().any()
    workspace = model.run.network.kernels.workspace
    take = workspace.take
    wrong = {BCNetBuffer.SELF_ATTENDED: BCNetBuffer.ORIGINAL_ATTENDED}
    workspace.take = lambda buffer, *shape, **options: take(wrong.get(buffer, buffer), *shape, **options)
    assert model(features).start.isnan().all()


def test_a_workspace_reuses_memory_and_grows():
    workspace = Workspace(np.dtype(np.float32))
    first = workspace.take(BCNetBuffer.QUERY, 3, 5)
    assert first.shape == (3, 5) and first.strides == (buffers.CACHE_LINE * 4, 4)
    assert workspace.take(BCNetBuffer.QUERY, 3, 5) is first
    memory = workspace.memory[BCNetBuffer.QUERY]
    smaller = workspace.take(BCNetBuffer.QUERY, 2, 3, padded=False)
    assert smaller.flags.c_contiguous and workspace.memory[BCNetBuffer.QUERY] is memory
    workspace.take(BCNetBuffer.QUERY, 9, 5)
    assert workspace.memory[BCNetBuffer.QUERY] is not memory
    # Two powers of two apart, rows would share the cache's sets: an odd number of lines keeps them apart.
    assert workspace.take(BCNetBuffer.ATTENDED, 2, 512).strides[0] == 33 * buffers.CACHE_LINE * 4
