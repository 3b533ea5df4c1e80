"""Common behaviour of all operators: the backend of a backward, torch.autocast, and errors for unusable arguments."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers.sampling_plans import PLANS
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from bcnet_fast.ops import (
    add_layer_norm,
    anchor_projection,
    anchor_sampling,
    difference_attention,
    match_proposals,
    soft_nms,
    use_backend,
)
from bcnet_fast.ops import reference as definitions

PLAN = PLANS["any"]()
X = torch.randn(2, 3, PLAN.length)
CALLS = {
    "difference_attention": lambda x: difference_attention(*[x[None]] * 4)[0],
    "anchor_sampling": lambda x: anchor_sampling(x, PLAN),
    "anchor_projection": lambda x: anchor_projection(x, PLAN, x.new_ones(sum(PLAN.bins), 3, 2), relu=True),
    "add_layer_norm": lambda x: add_layer_norm(x, x),
}
BACKWARDS = {
    "difference_attention": "difference_attention_backward",
    "anchor_sampling": "anchor_sampling_backward",
    "anchor_projection": "anchor_gather_backward",
    "add_layer_norm": "add_layer_norm_backward",
}


@pytest.mark.parametrize("name", CALLS)
def test_backward_uses_the_backend_of_its_forward(monkeypatch, name):
    """Also in another thread, as PyTorch runs it for a GPU, and in a block that asks for something else."""
    runs, original = [], getattr(definitions, BACKWARDS[name])
    monkeypatch.setattr(definitions, BACKWARDS[name], lambda *a: runs.append(name) or original(*a))
    with use_backend("reference"):
        out = CALLS[name](X.clone().requires_grad_())
        thread = threading.Thread(target=lambda: out.sum().backward())
        thread.start()
        thread.join()
    assert runs == [name]
    runs.clear()
    with use_backend("native"):
        out = CALLS[name](X.clone().requires_grad_())
    with use_backend("reference"):
        out.sum().backward()
    assert not runs


@pytest.mark.parametrize("name", CALLS)
def test_operators_are_seen_by_modes_and_profilers(name):
    """Every call goes through PyTorch's dispatcher, with the same result as a plain one."""

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen = []
    with use_backend("native"):
        plain = CALLS[name](X)
        with Record():
            recorded = CALLS[name](X)
        with torch.profiler.profile() as profile:
            CALLS[name](X)
        with_gradients = CALLS[name](X.clone().requires_grad_())
    assert f"bcnet_fast.{name}.default" in seen
    assert f"bcnet_fast::{name}" in [event.key for event in profile.key_averages()]
    assert torch.equal(recorded, plain) and torch.equal(with_gradients, plain)
    assert with_gradients.requires_grad and not plain.requires_grad


@pytest.mark.parametrize("name", ["difference_attention", "add_layer_norm"])
def test_autocast_takes_mixed_dtypes(name):
    with torch.autocast("cpu", torch.bfloat16):
        if name == "add_layer_norm":
            assert add_layer_norm(X.bfloat16(), X).dtype == torch.float32
        else:
            assert difference_attention(X[None].bfloat16(), *[X[None]] * 3)[0].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        exact = difference_attention(*[X[None].double()] * 4)[0]
    assert exact.dtype == torch.float64


def test_results_without_gradients_ask_for_none():
    segments, scores = torch.tensor([[0.0, 1]]).requires_grad_(), torch.tensor([1.0]).requires_grad_()
    assert not any(t.requires_grad for t in soft_nms(segments, scores))
    probability = torch.rand(1, 4).requires_grad_()
    table = torch.zeros(4, 2, dtype=torch.int32)
    found = match_proposals(probability, probability, *[probability[:, :1]] * 3, torch.tensor([[0, 2]]), table)
    assert not any(t.requires_grad for t in found)


@pytest.mark.parametrize("rows", [3, 300, 900])
def test_forward_mode_derivatives_are_an_error_or_right(rows):
    x, residual, tangent = torch.randn(3, rows, 400)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        expected = torch.nn.functional.layer_norm(dual + residual, (400,))
        try:
            found = add_layer_norm(dual, residual)
        except NotImplementedError as error:
            assert str(error) == "add_layer_norm: has no forward-mode derivative, only gradients"
        else:
            found, expected = (forward_ad.unpack_dual(t).tangent for t in (found, expected))
            torch.testing.assert_close(found, expected)
        assert add_layer_norm(x, residual).shape == x.shape
        with pytest.raises(NotImplementedError, match="difference_attention: has no forward-mode derivative"):
            difference_attention(forward_ad.make_dual(X[None], X[None]), *[X[None]] * 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: difference_attention(*[X[None]] * 4, "x"), "difference_attention: scale is 'x', expected a number"),
        (lambda: add_layer_norm(X, X, "x"), "add_layer_norm: eps is 'x', expected a number"),
        (
            lambda: soft_nms(X[0, 0, :2].view(1, 2), X[0, 0, :1], sigma=None),
            "soft_nms: sigma is None, expected a number",
        ),
        (
            lambda: soft_nms(X[0, 0, :2].view(1, 2), X[0, 0, :1], max_proposals=2.5),
            "soft_nms: max_proposals is 2.5, expected an integer",
        ),
        (
            lambda: match_proposals(*[X[0]] * 5, X[0], X[0], boundary_threshold=None),
            "match_proposals: boundary_threshold is None, expected a number",
        ),
    ],
)
def test_what_is_no_number_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()
