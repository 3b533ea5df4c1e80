"""compat.Align1D beside its definition, in the places where G-TAD and OpenTAD use the CUDA extension."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bcnet_fast import compat
from bcnet_fast.compat import Align1D

times = st.integers(-12, 60).map(lambda n: n / 4)
rois = st.lists(st.tuples(st.integers(0, 1), times, times), max_size=6)


def at(sequence: list[float], time: float) -> float:
    """Value between two points; the first or last one just outside, 0 beyond."""
    if time < -1 or time > len(sequence):
        return 0.0
    time = min(max(time, 0.0), len(sequence) - 1.0)
    low = int(time)
    high = min(low + 1, len(sequence) - 1)
    return sequence[low] + (time - low) * (sequence[high] - sequence[low])


def plain(input: torch.Tensor, intervals: list, parts: int, ratio: int) -> torch.Tensor:
    out = torch.zeros(len(intervals), input.shape[1], parts, dtype=input.dtype)
    for n, (batch, start, end) in enumerate(intervals):
        length = max(end - start, 1.0) / parts
        points = ratio if ratio > 0 else math.ceil(length)
        for c in range(input.shape[1]):
            sequence = input[batch, c].tolist()
            for d in range(parts):
                values = [at(sequence, start + d * length + (p + 0.5) * length / points) for p in range(points)]
                out[n, c, d] = sum(values) / points
    return out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rois, st.sampled_from([1, 4, 6]), st.integers(0, 3))
def test_parts_are_means_of_interpolated_points(intervals, parts, ratio):
    input = torch.randn(2, 3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    roi = torch.tensor(intervals, dtype=torch.float64).view(-1, 3)
    found = Align1D.forward(input, roi, parts, ratio)
    torch.testing.assert_close(found, plain(input, intervals, parts, ratio))


def test_the_layer_of_gtad():
    layer = compat.Align1DLayer(32)
    input, rois = torch.randn(2, 8, 100), torch.tensor([[0, 2.5, 40], [1, -3.0, 7], [1, 90, 120.0]])
    out = layer(input, rois)
    assert out.shape == (3, 8, 32) and out.dtype == torch.float32
    torch.testing.assert_close(out, compat.align1d(input, rois, 32, 0))
    torch.testing.assert_close(
        out, plain(input, [(int(b), s, e) for b, s, e in rois.tolist()], 32, 0), rtol=1e-4, atol=1e-5
    )
    assert repr(layer) == "Align1DLayer(feature_dim=32, sampling_ratio=0)"
    assert not list(layer.parameters()) and not layer.state_dict()


def test_forward_and_backward_of_the_extension_serve_an_autograd_function():
    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input, roi):
            ctx.save_for_backward(roi)
            ctx.sizes = input.size()
            return Align1D.forward(input, roi, 4, 2)

        @staticmethod
        def backward(ctx, grad_output):
            (roi,) = ctx.saved_tensors
            return Align1D.backward(grad_output, roi, 4, *ctx.sizes, 2), None

    input = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    roi = torch.tensor([[0, -2, 5], [1, 3.3, 14], [1, 3, 3.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: Op.apply(x, roi), input)
    assert torch.autograd.gradcheck(lambda x: compat.align1d(x, roi, 4, 0), input)


def test_the_call_of_opentad():
    input, roi = torch.randn(1, 4, 20), torch.tensor([[0, 1.5, 19.5]])
    out = Align1D.forward(input.half().double(), roi.half().double(), 3, 6).to(input.dtype)
    torch.testing.assert_close(out, compat.align1d(input, roi, 3, 6), rtol=1e-2, atol=1e-2)


def test_sequences_need_not_be_contiguous():
    input, roi = torch.randn(2, 20, 4), torch.tensor([[1, 2.5, 9.0]])
    torch.testing.assert_close(Align1D.forward(input.mT, roi, 4, 0), Align1D.forward(input.mT.contiguous(), roi, 4, 0))


def test_without_intervals():
    assert Align1D.forward(torch.randn(1, 4, 20), torch.zeros(0, 3), 5, 0).shape == (0, 4, 5)
    assert not Align1D.backward(torch.zeros(0, 4, 5), torch.zeros(0, 3), 5, 1, 4, 20, 0).any()


@pytest.mark.parametrize(
    "input, roi, parts, error, message",
    [
        (torch.zeros(1, 2, 9).half(), torch.zeros(1, 3).half(), 4, TypeError, "input is torch.float16"),
        (torch.zeros(1, 2, 9), torch.zeros(1, 3).double(), 4, TypeError, "expected both float32 or both float64"),
        (torch.zeros(1, 2, 9), torch.zeros(1, 3, device="meta"), 4, ValueError, "roi on meta, expected one device"),
        (torch.zeros(2, 9), torch.zeros(1, 3), 4, ValueError, r"input has shape \[2, 9\]"),
        (torch.zeros(1, 2, 9), torch.zeros(1, 2), 4, ValueError, r"roi \[1, 2\], expected \[B, C, T\] and \[N, 3\]"),
        (torch.zeros(1, 2, 9), torch.zeros(1, 3), 0, ValueError, "feature_dim is 0, expected at least 1"),
    ],
)
def test_refusals_name_argument_and_expectation(input, roi, parts, error, message):
    with pytest.raises(error, match=f"^Align1D: .*{message}"):
        Align1D.forward(input, roi, parts, 0)
