"""compat.nms_1d_cpu in the places where ActionFormer, TriDet, DyFADet and OpenTAD call their extension."""

from __future__ import annotations

import inspect

import pytest
import torch
from helpers.nms_1d import expf, plain_softnms

from bcnet_fast.compat import nms_1d_cpu
from bcnet_fast.ops import native, use_backend


@pytest.fixture(params=["native", "reference"])
def backend(request):
    if request.param == "native" and native.module is None:
        pytest.skip("the native extension is not built")
    with use_backend(request.param):
        yield request.param


def actions(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    start, length, scores = torch.rand(3, n, generator=generator)
    return torch.stack([80 * start, 80 * start + 20 * length], dim=1), scores


def test_names_and_order_of_the_arguments_are_those_of_the_extensions():
    assert list(inspect.signature(nms_1d_cpu.nms).parameters) == ["segs", "scores", "iou_threshold"]
    actionformer = ["segs", "scores", "dets", "iou_threshold", "sigma", "min_score", "method"]
    assert list(inspect.signature(nms_1d_cpu.softnms).parameters) == [*actionformer, "t1", "t2"]


def test_hard_nms_of_actionformer(backend):
    segs = torch.tensor([[0, 10], [1, 10], [20, 30], [21, 40.0]], requires_grad=True)
    scores = torch.tensor([0.5, 0.9, 0.3, 0.8], requires_grad=True)
    inds = nms_1d_cpu.nms(segs.contiguous().cpu(), scores.contiguous().cpu(), iou_threshold=0.5)
    assert inds.dtype == torch.int64 and inds.tolist() == [1, 3, 2]
    assert segs[inds[: min(2, len(inds))]].tolist() == [[1, 10], [21, 40]]


def test_soft_nms_of_actionformer_writes_dets_in_place(backend):
    segs, scores = actions(50)
    copies = segs.clone(), scores.clone()
    dets = segs.new_empty((segs.size(0), 3), device="cpu")
    inds = nms_1d_cpu.softnms(
        segs.cpu(), scores.cpu(), dets.cpu(), iou_threshold=0.1, sigma=0.5, min_score=0.001, method=2
    )
    k = len(inds)
    assert inds.dtype == torch.int64 and len(set(inds.tolist())) == k > 10
    assert torch.equal(dets[:k, :2], segs[inds])
    assert dets[0, 2] == scores.max() and (dets[1:k, 2].diff() <= 0).all() and (dets[:k, 2] <= scores[inds]).all()
    assert torch.equal(segs, copies[0]) and torch.equal(scores, copies[1])


@pytest.mark.skipif(expf is None, reason="no C library to take expf from")
@pytest.mark.parametrize("method", [0, 1, 2, 3])
def test_soft_nms_of_opentad_by_position(method):
    segs, scores = actions(200)
    dets = torch.empty(200, 3)
    inds = nms_1d_cpu.softnms(segs, scores, dets, 0.3, 0.7, 0.001, method, 0.1, 0.01)
    indices, rows = plain_softnms(segs, scores, 0.3, 0.7, 0.001, method, 0.1, 0.01)
    assert inds.tolist() == indices
    assert torch.equal(dets[: len(inds)], torch.tensor(rows))


def test_the_thresholds_of_method_3_matter(backend):
    segs, scores = torch.tensor([[0, 10], [2, 12.0]]), torch.tensor([0.9, 0.8])
    dets = torch.empty(2, 3)

    def second_score(**thresholds):
        nms_1d_cpu.softnms(segs, scores, dets, iou_threshold=0.0, sigma=0.5, min_score=0.001, method=3, **thresholds)
        return dets[1, 2].item()

    # The tIoU is 8 / 12.
    assert second_score(t1=0.7, t2=0.0) == pytest.approx(0.8)
    assert second_score(t1=0.5, t2=0.02) == pytest.approx(0.8)
    assert second_score(t1=0.5, t2=0.01) == pytest.approx(0.8 * 2.718281828 ** (-((8 / 12) ** 2) / 0.5), rel=1e-6)


def test_the_first_pick_need_not_reach_the_lowest_score(backend):
    dets = torch.empty(3, 3)
    inds = nms_1d_cpu.softnms(actions(3)[0], torch.tensor([0.1, 0.3, 0.2]), dets, 0.5, 0.5, 0.4, 2)
    assert inds.tolist() == [1] and dets[0, 2] == pytest.approx(0.3)


def test_without_segments(backend):
    for shape in ((0, 2), (0,)):
        inds = nms_1d_cpu.nms(torch.zeros(shape), torch.zeros(0), 0.5)
        assert inds.dtype == torch.int64 and inds.shape == (0,)
        inds = nms_1d_cpu.softnms(torch.zeros(shape), torch.zeros(0), torch.zeros(0, 3), 0.5, 0.5, 0.001, 2)
        assert inds.dtype == torch.int64 and inds.shape == (0,)


def test_views_and_autograd_tensors(backend):
    segs, scores = actions(60)
    expected = torch.zeros(60, 3)
    inds = nms_1d_cpu.softnms(segs, scores, expected, 0.3, 0.5, 0.001, 2)
    kept = nms_1d_cpu.nms(segs, scores, 0.5)

    strided = torch.stack([segs, segs], 2).requires_grad_()[:, :, 0]
    every_second = torch.stack([scores, scores], 1).requires_grad_()[:, 0]
    dets = torch.zeros(3, 70, requires_grad=True).t()
    assert not strided.is_contiguous() and not every_second.is_contiguous() and not dets.is_contiguous()
    assert torch.equal(nms_1d_cpu.softnms(strided, every_second, dets, 0.3, 0.5, 0.001, 2), inds)
    assert torch.equal(dets[:60].detach(), expected) and not dets[60:].any()
    assert torch.equal(nms_1d_cpu.nms(strided, every_second, 0.5), kept)


def test_inside_an_autograd_function():
    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx, segs, scores):
            return scores[nms_1d_cpu.nms(segs, scores, 0.5)].clone()

    segs, scores = actions(20)
    assert Op.apply(segs.requires_grad_(), scores.requires_grad_()).requires_grad


def test_numbers_may_be_integers_or_scalars(backend):
    segs, scores = actions(20)
    dets = torch.empty(20, 3)
    assert len(nms_1d_cpu.nms(segs, scores, 1)) == 20
    assert len(nms_1d_cpu.softnms(segs, scores, dets, 1, torch.tensor(1.0), 0, 0)) == 20


segs, scores = actions(4)
dets = torch.zeros(4, 3)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((segs.double(), scores, dets), TypeError, "segs is float64, expected a float32 tensor"),
        ((segs, scores.half(), dets), TypeError, "scores is float16, expected a float32 tensor"),
        ((segs, scores, dets.int()), TypeError, "dets is int32, expected a float32 tensor"),
        ((segs.tolist(), scores, dets), TypeError, "segs is list, expected a float32 tensor"),
        ((segs.to("meta"), scores, dets), ValueError, "segs is on meta, expected it on the CPU"),
        ((segs.mT, scores, dets), ValueError, r"segs has shape \[2, 4\], expected \[n, 2\]"),
        ((segs[0], scores, dets), ValueError, r"segs has shape \[2\], expected \[n, 2\]"),
        ((segs[0, 0], scores, dets), ValueError, r"segs has shape \[\], expected \[n, 2\]"),
        ((segs, scores[:3], dets), ValueError, r"scores has shape \[3\], expected \[4\] to fit segs"),
        ((segs, scores[:, None], dets), ValueError, r"scores has shape \[4, 1\], expected \[4\] to fit segs"),
        ((segs, scores, dets[:3]), ValueError, r"dets has shape \[3, 3\], expected \[4, 3\] or more rows"),
        ((segs, scores, dets[:, :2]), ValueError, r"dets has shape \[4, 2\], expected \[4, 3\] or more rows"),
    ],
)
def test_refusals_name_argument_and_expectation(arguments, error, message):
    with pytest.raises(error, match=f"^softnms: {message}$"):
        nms_1d_cpu.softnms(*arguments, 0.5, 0.5, 0.001, 2)
    if "dets" not in message:
        with pytest.raises(error, match=f"^nms: {message}$"):
            nms_1d_cpu.nms(*arguments[:2], 0.5)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"^softnms: method is 4, expected 0, 1, 2 or 3$"):
        nms_1d_cpu.softnms(segs, scores, dets, 0.5, 0.5, 0.001, 4)
