"""Anchor sampling and its projection: weighted sums of rows, by a sparse plan (bcnet_fast/ops/sampling_plan.py).

    sampling      out[p, n] = sum_k w[p, n, k] rows[source(n), first[p, n] + k]
    gather        out[p] = sum_n sum_k w[p, n, k] projected[n, first[p, n] + k]      (+ bias, ReLU)
    projection    out[p] = sum_n sampled[p, n] @ weight[n]                           (+ bias, ReLU)

over the taps k of each bin, of which there are 2 to 5 on average. Gathering is bound by the caches. The blocks of
`gather` and `projection` therefore hold anchors that follow each other in the plan's order: at tap k, each reads the
row that its successor read at tap k - 1. A block skips bins that are empty for all its anchors, and leaves a bin after
the last tap of any anchor. `projection` makes the operand [BLOCK_R, BLOCK_K] of each matrix product from such sums on
the spot: the sampled features of the anchors never reach memory.

The gradients of `sampling` and `gather` use the transposed plan, which lists the taps j of bin n at snippet t:

    grad_rows[g, t] = sum_{n of g} sum_j w[n, t, j] grad[anchor[n, t, j], n]
    grad_projected[n, t] = sum_j w[n, t, j] grad[anchor[n, t, j]]

so every element has one writer and a fixed order of sums: the bits repeat, and there are no atomics. The lists at the
ends of the sequence are up to 30 times as long as the others, hence LISTS lanes work on each.

Sums are in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from ._common import TARGETS, Config, Launch, aligned, copy_back, multiprocessors, product_precision, target_of

_TENSOR = tuple(t for t in TARGETS if t >= 80)  # targets with the tensor-core products that Triton uses


def _rows_by_columns(rows: int, columns: int, num_warps: int) -> Config:
    return Config({"BLOCK_R": rows, "BLOCK_C": columns}, num_warps, 1, TARGETS)


def _lists(rows: int, lists: int, columns: int, num_warps: int) -> Config:
    return Config({"BLOCK_R": rows, "LISTS": lists, "BLOCK_C": columns}, num_warps, 1, TARGETS)


def _product(rows: int, inner: int, columns: int, *targets: int) -> Config:
    return Config({"BLOCK_R": rows, "BLOCK_K": inner, "BLOCK_C": columns}, 4, 1, targets)


# Variants by kernel, and for products by the unit that multiplies ("half": tensor cores, 16 bit; "tf32": tensor cores,
# float32; "fma": none). The first of a list is for grids that fill the device, the last for those that do not. The 64
# columns of a block are one cache line in 16 bit and two in float32. Each compiles for its targets without spills
# (bench/aot.py, Triton 3.9). None was timed, for want of a GPU.
CONFIGS = {
    ("forward", "any"): (_rows_by_columns(32, 64, 4), _rows_by_columns(16, 64, 2)),
    ("gather", "any"): (_rows_by_columns(32, 64, 4), _rows_by_columns(16, 64, 2)),
    ("backward", "any"): (_lists(2, 16, 64, 4), _lists(1, 16, 64, 2)),
    ("gather_backward", "any"): (_lists(4, 16, 64, 4), _lists(1, 32, 64, 4)),
    ("projection", "half"): (
        _product(64, 64, 128, 80, 86, 89, 90, 120),
        _product(64, 32, 128, 100),
        _product(64, 64, 64, *_TENSOR),
    ),
    ("projection", "tf32"): (_product(64, 32, 128, *_TENSOR), _product(64, 32, 64, *_TENSOR)),
    ("projection", "fma"): (
        _product(32, 32, 64, *TARGETS),
        _product(32, 16, 32, *_TENSOR),
        _product(16, 16, 32, 75),
    ),
}


@triton.jit
def _block(rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return the part of this program: batch entry, first row, columns. Neighbours share columns, which stay cached."""
    blocks = tl.cdiv(rows, BLOCK_R)
    strips = tl.cdiv(columns, BLOCK_C)
    strip = tl.program_id(0) // blocks
    column = strip % strips * BLOCK_C + tl.arange(0, BLOCK_C)
    return strip // strips, tl.program_id(0) % blocks * BLOCK_R, column


@triton.jit
def _rows(base, row, used, column, columns):
    """Load rows of a matrix of `columns` columns, zeros where not used. Offsets are in int64."""
    mask = used[:, None] & (column < columns)[None, :]
    return tl.load(base + row.to(tl.int64)[:, None] * columns + column[None, :], mask=mask, other=0.0)


@triton.jit
def _store_rows(base, row, used, column, columns, tile):
    mask = used[:, None] & (column < columns)[None, :]
    offset = row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(base + offset, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _add_taps(total, rows, first, weights, begin, end, most, column, columns):
    """Add the rows from `first` on times the weights from `begin` up to `end` to `total`; most: the longest range."""
    for k in range(0, most):
        used = begin + k < end
        weight = tl.load(weights + begin + k, mask=used, other=0.0)
        row = _rows(rows, first + k, used, column, columns).to(tl.float32)
        total = tl.fma(row, weight[:, None], total)
    return total


@triton.jit
def _finish(total, bias, column, columns, HAS_BIAS: tl.constexpr, RELU: tl.constexpr):
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # a NaN stays
    return total


@triton.jit
def _sampling_kernel(
    rows, first, offsets, weights, out,
    cells, bins, first_bin, all_bins, source, sources, length, columns, out_b,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, row, column = _block(cells, columns, BLOCK_R, BLOCK_C)
    cell = row + tl.arange(0, BLOCK_R)
    used = cell < cells
    cell = cell // bins * all_bins + first_bin + cell % bins  # of the anchor and bin in the whole plan
    start = tl.load(first + cell, mask=used, other=0)
    begin = tl.load(offsets + cell, mask=used, other=0)
    end = tl.load(offsets + cell + 1, mask=used, other=0)
    rows += (b.to(tl.int64) * sources + source) * length * columns
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    total = _add_taps(total, rows, start, weights, begin, end, tl.max(end - begin), column, columns)
    _store_rows(out + b.to(tl.int64) * out_b, cell, used, column, columns, total)


@triton.jit
def _gather_kernel(
    projected, order, first, offsets, weights, bias, out,
    places, anchors, bins, bin_rows, length, columns,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, row, column = _block(places, columns, BLOCK_R, BLOCK_C)
    place = row + tl.arange(0, BLOCK_R)
    p = tl.load(order + place, mask=place < places, other=-1)
    used = p >= 0  # the plan fills its groups up with -1
    p = tl.maximum(p, 0)
    projected += b.to(tl.int64) * length * columns
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    end = tl.load(offsets + p * bins, mask=used, other=0)
    for n in range(0, bins):
        cell = p * bins + n
        begin = end
        end = tl.load(offsets + cell + 1, mask=used, other=0)
        start = n * bin_rows + tl.load(first + cell, mask=used, other=0)
        total = _add_taps(total, projected, start, weights, begin, end, tl.max(end - begin), column, columns)
    total = _finish(total, bias, column, columns, HAS_BIAS, RELU)
    _store_rows(out + b.to(tl.int64) * anchors * columns, p, used, column, columns, total)


@triton.jit
def _by_snippet_kernel(
    grad, offsets, anchor, weight, out,
    rows, columns, bins, first_bin, anchor_rows, bin_rows, grad_b, out_b,
    BLOCK_R: tl.constexpr, LISTS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, row, column = _block(rows, columns, BLOCK_R, BLOCK_C)
    grad += b.to(tl.int64) * grad_b
    lane = tl.arange(0, BLOCK_R * LISTS)
    r = row + lane // LISTS
    total = tl.zeros([BLOCK_R * LISTS, BLOCK_C], tl.float32)
    for n in range(first_bin, first_bin + bins):
        begin = tl.load(offsets + n * rows + r, mask=r < rows, other=0)
        end = tl.load(offsets + n * rows + r + 1, mask=r < rows, other=0)
        for k in range(0, tl.max(end - begin), LISTS):
            tap = begin + k + lane % LISTS
            used = tap < end
            index = tl.load(anchor + tap, mask=used, other=0) * anchor_rows + n * bin_rows
            factor = tl.load(weight + tap, mask=used, other=0.0)
            values = _rows(grad, index, used, column, columns).to(tl.float32)
            total = tl.fma(values, factor[:, None], total)
    total = tl.sum(tl.reshape(total, [BLOCK_R, LISTS, BLOCK_C]), 1)
    r = row + tl.arange(0, BLOCK_R)
    _store_rows(out + b.to(tl.int64) * out_b, r, r < rows, column, columns, total)


@triton.jit
def _projection_kernel(
    rows, source, order, first, offsets, weights, weight, bias, out,
    places, anchors, bins, sources, length, row_length, channels, columns,
    HAS_BIAS: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, row, column = _block(places, columns, BLOCK_R, BLOCK_C)
    place = row + tl.arange(0, BLOCK_R)
    p = tl.load(order + place, mask=place < places, other=-1)
    used = p >= 0  # the plan fills its groups up with -1
    p = tl.maximum(p, 0)
    rows += b.to(tl.int64) * sources * length * row_length
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    end = tl.load(offsets + p * bins, mask=used, other=0)
    for n in range(0, bins):
        cell = p * bins + n
        begin = end
        end = tl.load(offsets + cell + 1, mask=used, other=0)
        start = tl.load(source + n) * length + tl.load(first + cell, mask=used, other=0)
        most = tl.max(end - begin)
        if most > 0:
            for channel in range(0, channels, BLOCK_K):
                c = channel + tl.arange(0, BLOCK_K)
                # Asked for before the sampling, which it need not wait for.
                factor = _rows(weight, n * channels + c, c < channels, column, columns)  # [BLOCK_K, BLOCK_C]
                sampled = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
                sampled = _add_taps(sampled, rows, start, weights, begin, end, most, c, row_length)
                sampled = sampled.to(factor.dtype)
                if WIDEN:
                    sampled, factor = sampled.to(tl.float32), factor.to(tl.float32)
                total = tl.dot(sampled, factor, total, input_precision=PRECISION)
    total = _finish(total, bias, column, columns, HAS_BIAS, RELU)
    _store_rows(out + b.to(tl.int64) * anchors * columns, p, used, column, columns, total)


def variants(name: str, dtype: torch.dtype, target: int) -> list[Config]:
    """Return the shipped variants of a kernel for this dtype and target, largest tiles first."""
    precision, widen = product_precision(target)
    if name != "projection":
        unit = "any"
    elif widen or (dtype == torch.float32 and precision == "ieee"):
        unit = "fma"
    else:
        unit = "tf32" if dtype == torch.float32 else "half"
    return [c for c in CONFIGS[name, unit] if target in c.targets]


def _launch(name: str, kernel: Any, out: torch.Tensor, sets: int, rows: int, arguments: dict, target: int | None):
    """Return the launch that fills `sets` times `rows` rows of the width of `out`.

    The variant follows from shapes and device alone, see kernels/difference_attention.py.
    """
    usable = variants(name, out.dtype, target or target_of(out.device))
    columns = out.shape[-1]
    # A grid of one dimension: the others end at 65,535.
    grids = [(sets * triton.cdiv(rows, c.tiles["BLOCK_R"]) * triton.cdiv(columns, c.tiles["BLOCK_C"]),) for c in usable]
    processors = multiprocessors(out.device)
    chosen = next((i for i, grid in enumerate(grids) if grid[0] >= processors), len(usable) - 1)
    return Launch(kernel, grids[chosen], {**arguments, "out": out, "columns": columns}, usable[chosen])


def _spans(bins: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return each feature sequence with its first bin and its number of bins."""
    return [(source, sum(bins[:source]), count) for source, count in enumerate(bins)]


def sampling_launches(rows, plan, out, target=None) -> list[Launch]:
    """Return one launch for each feature sequence.

    Args:
        rows: [B, G, T, C].
        plan: `bcnet_fast.ops.sampling_plan.SamplingPlan`, here and below.
        out: [B, P, N, C], to be filled.
        target: compute capability that replaces the device's own, here and below.
    """
    batch, sources, length, _ = rows.shape
    anchors, all_bins = plan.first.shape
    launches = []
    for source, first_bin, count in _spans(plan.bins):
        arguments = {
            "rows": rows, "first": plan.first, "offsets": plan.offsets, "weights": plan.weights,
            "cells": anchors * count, "bins": count, "first_bin": first_bin, "all_bins": all_bins,
            "source": source, "sources": sources, "length": length, "out_b": out.stride(0),
        }  # fmt: skip
        launches.append(_launch("forward", _sampling_kernel, out, batch, anchors * count, arguments, target))
    return launches


def _transposed(plan) -> dict[str, torch.Tensor]:
    return {"offsets": plan.by_snippet_offsets, "anchor": plan.by_snippet_anchor, "weight": plan.by_snippet_weight}


def sampling_backward_launches(grad, plan, out, target=None) -> list[Launch]:
    """Return one launch for each feature sequence: grad [B, P, N, C] -> out [B, G, T, C]."""
    batch, _, length, _ = out.shape
    launches = []
    for source, first_bin, count in _spans(plan.bins):
        arguments = {
            "grad": grad, **_transposed(plan), "rows": length, "bins": count, "first_bin": first_bin,
            "anchor_rows": sum(plan.bins), "bin_rows": 1, "grad_b": grad.stride(0), "out_b": out.stride(0),
        }  # fmt: skip
        launches.append(_launch("backward", _by_snippet_kernel, out[:, source], batch, length, arguments, target))
    return launches


def gather_launch(projected, plan, bias, relu, out, target=None) -> Launch:
    """Return the launch: projected [N, B, T, O], bias [O] or None -> out [B, P, O]."""
    bins, batch, length, _ = projected.shape
    arguments = {
        "projected": projected, "order": plan.order, "first": plan.first, "offsets": plan.offsets,
        "weights": plan.weights, "bias": bias, "places": plan.order.numel(), "anchors": len(plan.first), "bins": bins,
        "bin_rows": batch * length, "length": length, "HAS_BIAS": bias is not None, "RELU": relu,
    }  # fmt: skip
    return _launch("gather", _gather_kernel, out, batch, plan.order.numel(), arguments, target)


def gather_backward_launch(grad, plan, out, target=None) -> Launch:
    """Return the launch: grad [B, P, O] -> out [B, N, T, O]."""
    batch, bins, length, _ = out.shape
    arguments = {
        "grad": grad, **_transposed(plan), "rows": bins * length, "bins": 1, "first_bin": 0,
        "anchor_rows": 1, "bin_rows": 0, "grad_b": grad.stride(0), "out_b": out.stride(0),
    }  # fmt: skip
    return _launch("gather_backward", _by_snippet_kernel, out, batch, bins * length, arguments, target)


def projection_launch(rows, weight, plan, bias, relu, out, target=None) -> Launch:
    """Return the launch: rows [B, G, T, C], weight [N, C, O], bias [O] or None -> out [B, P, O]."""
    batch, sources, length, row_length = rows.shape
    bins = sum(plan.bins)
    # Filled on the device: a copy from the host would wait for it.
    source = torch.zeros(bins, dtype=torch.int32, device=rows.device)
    for begin in list(itertools.accumulate(plan.bins))[:-1]:
        source[begin:] += 1
    precision, widen = product_precision(target or target_of(rows.device))
    arguments = {
        "rows": rows, "source": source, "order": plan.order, "first": plan.first, "offsets": plan.offsets,
        "weights": plan.weights, "weight": weight, "bias": bias, "places": plan.order.numel(),
        "anchors": len(plan.first), "bins": bins, "sources": sources, "length": length, "row_length": row_length,
        "channels": weight.shape[1], "HAS_BIAS": bias is not None, "RELU": relu, "PRECISION": precision,
        "WIDEN": widen,
    }  # fmt: skip
    return _launch("projection", _projection_kernel, out, batch, plan.order.numel(), arguments, target)


def launch_sampling(rows, plan, out) -> None:
    """Fill out [B, P, N, C] from rows [B, G, T, C]. Requires contiguous tensors, here and below."""
    padded = aligned(out)
    for launch in sampling_launches(aligned(rows), plan, padded):
        launch.run()
    copy_back([padded], [out])


def launch_sampling_backward(grad, plan, out) -> None:
    """Fill out [B, G, T, C] from grad [B, P, N, C]."""
    padded = aligned(out)
    for launch in sampling_backward_launches(aligned(grad), plan, padded):
        launch.run()
    copy_back([padded], [out])


def launch_gather(projected, plan, bias, relu, out) -> None:
    """Fill out [B, P, O] from projected [N, B, T, O], bias [O] or None."""
    padded, bias = aligned(out), None if bias is None else aligned(bias)
    gather_launch(aligned(projected), plan, bias, relu, padded).run()
    copy_back([padded], [out])


def launch_gather_backward(grad, plan, out) -> None:
    """Fill out [B, N, T, O] from grad [B, P, O]."""
    padded = aligned(out)
    gather_backward_launch(aligned(grad), plan, padded).run()
    copy_back([padded], [out])


def launch_projection(rows, weight, plan, bias, relu, out) -> None:
    """Fill out [B, P, O] from rows [B, G, T, C], weight [N, C, O], bias [O] or None."""
    padded, bias = aligned(out), None if bias is None else aligned(bias)
    projection_launch(aligned(rows), aligned(weight), plan, bias, relu, padded).run()
    copy_back([padded], [out])
