"""Difference attention (paper Eq. 6): one softmax map reweights two value streams.

    A = softmax(Q K^T * scale)        out_action = A V_action        out_background = A V_background

with Q [B, H, Tq, D], K [B, H, Tk, D], both V [B, H, Tk, Dv], both outputs [B, H, Tq, Dv]. One pass over K makes each
tile of the map once, on chip, and multiplies it with both value tiles (online softmax); the map never reaches memory.
Two attention calls make every tile twice: 4 matrix products a tile instead of 3, twice the exponentials, Q and K read
twice. The log-sum-exp of each row is kept for the backward.

Backward, with P the map and dO the gradients of the outputs:

    delta = rowsum(dO_a * O_a + dO_b * O_b)       dP = dO_a V_a^T + dO_b V_b^T       dS = P * (dP - delta)
    dQ = scale dS K        dK = scale dS^T Q        dV_a = P^T dO_a        dV_b = P^T dO_b

in two sweeps that each recompute P from the log-sum-exp: one owns rows (delta, dQ), one owns columns (dK, dV). Every
output element has one writer and a fixed order of sums, so the bits repeat; there are no atomics.

Products accumulate in fp32, P and dS are rounded to the dtype of the inputs for theirs. Exponentials are of base 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from ._common import (
    TARGETS,
    Config,
    Launch,
    aligned,
    copy_back,
    multiprocessors,
    product_precision,
    strides,
    target_of,
)

LOG2E = tl.constexpr(math.log2(math.e))


def _variant(block_q: int, block_k: int, num_warps: int, num_stages: int, *targets: int) -> Config:
    return Config({"BLOCK_Q": block_q, "BLOCK_K": block_k}, num_warps, num_stages, targets)


_TENSOR = tuple(t for t in TARGETS if t >= 80)  # targets with the tensor-core products that Triton uses
_SMALL = (80, 86, 89, 120)  # of these, the ones whose products are made by single warps from registers
_LARGE = (90, 100)  # and by warpgroups from shared memory, which leaves registers for larger tiles

# Variants by kernel, by unit that multiplies ("half": tensor cores, 16 bit; "tf32": tensor cores, float32; "fma":
# none) and by the larger head, padded. The first of a list is for grids that fill the device, the last for those that
# do not. Each compiles for its targets without spills (bench/aot.py, Triton 3.9), with heads of 64 or 128, to which
# `launch` pads all others. None has been timed on a GPU.
CONFIGS = {
    ("forward", "half", 64): (_variant(128, 64, 8, 3, *_TENSOR), _variant(64, 64, 4, 3, *_TENSOR)),
    ("forward", "half", 128): (_variant(128, 64, 8, 2, *_LARGE), _variant(64, 64, 8, 2, *_TENSOR)),
    ("forward", "tf32", 64): (_variant(128, 32, 8, 2, *_TENSOR), _variant(64, 32, 4, 2, *_TENSOR)),
    ("forward", "tf32", 128): (_variant(64, 32, 8, 2, *_TENSOR),),
    ("forward", "fma", 64): (
        _variant(64, 32, 8, 2, *_TENSOR),
        _variant(32, 32, 4, 2, *_TENSOR),
        _variant(32, 32, 8, 1, 75),
    ),
    ("forward", "fma", 128): (_variant(32, 32, 8, 2, *_TENSOR), _variant(32, 16, 8, 1, 75)),
    ("backward_query", "half", 64): (_variant(128, 64, 8, 2, *_TENSOR), _variant(64, 64, 4, 2, *_TENSOR)),
    ("backward_query", "half", 128): (
        _variant(128, 64, 8, 2, *_LARGE),
        _variant(64, 64, 8, 2, 80),
        _variant(64, 32, 8, 2, *_TENSOR),
    ),
    ("backward_query", "tf32", 64): (_variant(128, 32, 8, 2, 80, *_LARGE), _variant(64, 32, 4, 2, *_TENSOR)),
    ("backward_query", "tf32", 128): (_variant(32, 32, 8, 1, *_TENSOR),),
    ("backward_query", "fma", 64): (
        _variant(64, 32, 8, 2, *_TENSOR),
        _variant(32, 32, 4, 2, *_TENSOR),
        _variant(32, 16, 4, 1, 75),
    ),
    ("backward_query", "fma", 128): (_variant(32, 16, 8, 2, *_TENSOR), _variant(16, 16, 8, 1, 75)),
    ("backward_key", "half", 64): (
        _variant(64, 128, 8, 2, *_LARGE),
        _variant(64, 64, 4, 2, *_LARGE),
        _variant(32, 128, 8, 2, *_SMALL),
        _variant(32, 64, 4, 2, *_SMALL),
    ),
    ("backward_key", "half", 128): (_variant(64, 64, 8, 2, 80, 100), _variant(32, 64, 8, 2, *_TENSOR)),
    ("backward_key", "tf32", 64): (
        _variant(32, 64, 8, 2, 90),  # with 4 warps, most versions of Triton before 3.9 spill
        _variant(32, 64, 4, 2, 100),
        _variant(32, 32, 4, 2, *_TENSOR),
    ),
    ("backward_key", "tf32", 128): (_variant(32, 32, 8, 2, 80, *_LARGE), _variant(16, 32, 8, 2, *_TENSOR)),
    ("backward_key", "fma", 64): (_variant(32, 32, 8, 2, *_TENSOR), _variant(16, 32, 4, 1, 75)),
    ("backward_key", "fma", 128): (_variant(16, 32, 8, 1, *_TENSOR), _variant(16, 16, 8, 1, 75)),
}


@triton.jit
def _offsets(row, column, row_stride, column_stride, ROWS: tl.constexpr):
    """Offsets in int64 of rows `row`, `row` + 1, ... of a strided matrix: a tile may start beyond 2^31 elements."""
    rows = tl.arange(0, ROWS).to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
    return tl.cast(row, tl.int64) * row_stride + rows  # [ROWS, columns]


@triton.jit
def _load(base, row, column, row_stride, column_stride, rows, columns, ROWS: tl.constexpr, WIDEN: tl.constexpr):
    """The tile from `row` on of a matrix of `rows` x `columns`, in float32 if WIDEN; zero outside."""
    mask = (tl.arange(0, ROWS) < rows - row)[:, None] & (column < columns)[None, :]
    tile = tl.load(base + _offsets(row, column, row_stride, column_stride, ROWS), mask=mask, other=0.0)
    return tile.to(tl.float32) if WIDEN else tile


@triton.jit
def _store(base, row, column, row_stride, column_stride, rows, columns, tile, ROWS: tl.constexpr):
    mask = (tl.arange(0, ROWS) < rows - row)[:, None] & (column < columns)[None, :]
    tl.store(base + _offsets(row, column, row_stride, column_stride, ROWS), tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _difference_attention_fwd_kernel(
    query, key, value_a, value_b, out_a, out_b, lse,
    heads, length_q, length_k, exponent,
    query_s0, query_s1, query_s2, query_s3,
    key_s0, key_s1, key_s2, key_s3,
    value_a_s0, value_a_s1, value_a_s2, value_a_s3,
    value_b_s0, value_b_s1, value_b_s2, value_b_s3,
    out_a_s0, out_a_s1, out_a_s2, out_a_s3,
    out_b_s0, out_b_s1, out_b_s2, out_b_s3,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(length_q, BLOCK_Q)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = pair // heads, pair % heads
    query += b * query_s0 + h * query_s1
    key += b * key_s0 + h * key_s1
    value_a += b * value_a_s0 + h * value_a_s1
    value_b += b * value_b_s0 + h * value_b_s1
    out_a += b * out_a_s0 + h * out_a_s1
    out_b += b * out_b_s0 + h * out_b_s1

    row = (tl.program_id(0) % blocks) * BLOCK_Q
    t = row + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    q = _load(query, row, d, query_s2, query_s3, length_q, D, BLOCK_Q, WIDEN)  # [BLOCK_Q, BLOCK_D]

    maximum = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    sum_a = tl.zeros([BLOCK_Q, BLOCK_DV], tl.float32)
    sum_b = tl.zeros([BLOCK_Q, BLOCK_DV], tl.float32)
    for start in range(0, length_k, BLOCK_K):
        s = start + tl.arange(0, BLOCK_K)
        k = _load(key, start, d, key_s2, key_s3, length_k, D, BLOCK_K, WIDEN)  # [BLOCK_K, BLOCK_D]
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * exponent  # [BLOCK_Q, BLOCK_K]
        logits = tl.where((s < length_k)[None, :], logits, -float("inf"))
        # Finite from the first tile on: every tile has a column inside the keys.
        new_maximum = tl.maximum(maximum, tl.max(logits, 1))
        p = tl.exp2(logits - new_maximum[:, None])
        shrink = tl.exp2(maximum - new_maximum)
        total = total * shrink + tl.sum(p, 1)
        maximum = new_maximum
        p = p.to(q.dtype)
        v_a = _load(value_a, start, dv, value_a_s2, value_a_s3, length_k, DV, BLOCK_K, WIDEN)  # [BLOCK_K, BLOCK_DV]
        sum_a = tl.dot(p, v_a, sum_a * shrink[:, None], input_precision=PRECISION)
        v_b = _load(value_b, start, dv, value_b_s2, value_b_s3, length_k, DV, BLOCK_K, WIDEN)
        sum_b = tl.dot(p, v_b, sum_b * shrink[:, None], input_precision=PRECISION)

    _store(out_a, row, dv, out_a_s2, out_a_s3, length_q, DV, sum_a / total[:, None], BLOCK_Q)
    _store(out_b, row, dv, out_b_s2, out_b_s3, length_q, DV, sum_b / total[:, None], BLOCK_Q)
    tl.store(lse + pair * length_q + t, (maximum + tl.log2(total)) / LOG2E, mask=t < length_q)


@triton.jit
def _difference_attention_bwd_query_kernel(
    query, key, value_a, value_b, out_a, out_b, grad_a, grad_b, lse, delta, grad_query,
    heads, length_q, length_k, exponent, scale,
    query_s0, query_s1, query_s2, query_s3,
    key_s0, key_s1, key_s2, key_s3,
    value_a_s0, value_a_s1, value_a_s2, value_a_s3,
    value_b_s0, value_b_s1, value_b_s2, value_b_s3,
    out_a_s0, out_a_s1, out_a_s2, out_a_s3,
    out_b_s0, out_b_s1, out_b_s2, out_b_s3,
    grad_a_s0, grad_a_s1, grad_a_s2, grad_a_s3,
    grad_b_s0, grad_b_s1, grad_b_s2, grad_b_s3,
    grad_query_s0, grad_query_s1, grad_query_s2, grad_query_s3,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(length_q, BLOCK_Q)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = pair // heads, pair % heads
    query += b * query_s0 + h * query_s1
    key += b * key_s0 + h * key_s1
    value_a += b * value_a_s0 + h * value_a_s1
    value_b += b * value_b_s0 + h * value_b_s1
    out_a += b * out_a_s0 + h * out_a_s1
    out_b += b * out_b_s0 + h * out_b_s1
    grad_a += b * grad_a_s0 + h * grad_a_s1
    grad_b += b * grad_b_s0 + h * grad_b_s1
    grad_query += b * grad_query_s0 + h * grad_query_s1

    row = (tl.program_id(0) % blocks) * BLOCK_Q
    t = row + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    q = _load(query, row, d, query_s2, query_s3, length_q, D, BLOCK_Q, WIDEN)  # [BLOCK_Q, BLOCK_D]
    g_a = _load(grad_a, row, dv, grad_a_s2, grad_a_s3, length_q, DV, BLOCK_Q, WIDEN)  # [BLOCK_Q, BLOCK_DV]
    g_b = _load(grad_b, row, dv, grad_b_s2, grad_b_s3, length_q, DV, BLOCK_Q, WIDEN)
    o_a = _load(out_a, row, dv, out_a_s2, out_a_s3, length_q, DV, BLOCK_Q, WIDEN)
    o_b = _load(out_b, row, dv, out_b_s2, out_b_s3, length_q, DV, BLOCK_Q, WIDEN)
    row_delta = tl.sum(g_a.to(tl.float32) * o_a.to(tl.float32) + g_b.to(tl.float32) * o_b.to(tl.float32), 1)
    tl.store(delta + pair * length_q + t, row_delta, mask=t < length_q)
    row_lse = tl.load(lse + pair * length_q + t, mask=t < length_q, other=0.0) * LOG2E

    grad_q = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, length_k, BLOCK_K):
        s = start + tl.arange(0, BLOCK_K)
        k = _load(key, start, d, key_s2, key_s3, length_k, D, BLOCK_K, WIDEN)  # [BLOCK_K, BLOCK_D]
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * exponent  # [BLOCK_Q, BLOCK_K]
        # Columns outside must be exact zeros: exp2(0 - lse) can overflow, and infinity times a zero key is not a zero.
        logits = tl.where((s < length_k)[None, :], logits, -float("inf"))
        p = tl.exp2(logits - row_lse[:, None])
        v_a = _load(value_a, start, dv, value_a_s2, value_a_s3, length_k, DV, BLOCK_K, WIDEN)  # [BLOCK_K, BLOCK_DV]
        v_b = _load(value_b, start, dv, value_b_s2, value_b_s3, length_k, DV, BLOCK_K, WIDEN)
        grad_p = tl.dot(g_a, tl.trans(v_a), input_precision=PRECISION)
        grad_p = tl.dot(g_b, tl.trans(v_b), grad_p, input_precision=PRECISION)
        grad_s = (p * (grad_p - row_delta[:, None])).to(q.dtype)
        grad_q = tl.dot(grad_s, k, grad_q, input_precision=PRECISION)

    grad_q *= scale
    _store(grad_query, row, d, grad_query_s2, grad_query_s3, length_q, D, grad_q, BLOCK_Q)


@triton.jit
def _difference_attention_bwd_key_kernel(
    query, key, value_a, value_b, grad_a, grad_b, lse, delta, grad_key, grad_value_a, grad_value_b,
    heads, length_q, length_k, exponent, scale,
    query_s0, query_s1, query_s2, query_s3,
    key_s0, key_s1, key_s2, key_s3,
    value_a_s0, value_a_s1, value_a_s2, value_a_s3,
    value_b_s0, value_b_s1, value_b_s2, value_b_s3,
    grad_a_s0, grad_a_s1, grad_a_s2, grad_a_s3,
    grad_b_s0, grad_b_s1, grad_b_s2, grad_b_s3,
    grad_key_s0, grad_key_s1, grad_key_s2, grad_key_s3,
    grad_value_a_s0, grad_value_a_s1, grad_value_a_s2, grad_value_a_s3,
    grad_value_b_s0, grad_value_b_s1, grad_value_b_s2, grad_value_b_s3,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(length_k, BLOCK_K)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    b, h = pair // heads, pair % heads
    query += b * query_s0 + h * query_s1
    key += b * key_s0 + h * key_s1
    value_a += b * value_a_s0 + h * value_a_s1
    value_b += b * value_b_s0 + h * value_b_s1
    grad_a += b * grad_a_s0 + h * grad_a_s1
    grad_b += b * grad_b_s0 + h * grad_b_s1
    grad_key += b * grad_key_s0 + h * grad_key_s1
    grad_value_a += b * grad_value_a_s0 + h * grad_value_a_s1
    grad_value_b += b * grad_value_b_s0 + h * grad_value_b_s1
    lse += pair * length_q
    delta += pair * length_q

    row = (tl.program_id(0) % blocks) * BLOCK_K
    d = tl.arange(0, BLOCK_D)
    dv = tl.arange(0, BLOCK_DV)
    k = _load(key, row, d, key_s2, key_s3, length_k, D, BLOCK_K, WIDEN)  # [BLOCK_K, BLOCK_D]
    v_a = _load(value_a, row, dv, value_a_s2, value_a_s3, length_k, DV, BLOCK_K, WIDEN)  # [BLOCK_K, BLOCK_DV]
    v_b = _load(value_b, row, dv, value_b_s2, value_b_s3, length_k, DV, BLOCK_K, WIDEN)

    grad_k = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    grad_v_a = tl.zeros([BLOCK_K, BLOCK_DV], tl.float32)
    grad_v_b = tl.zeros([BLOCK_K, BLOCK_DV], tl.float32)
    for start in range(0, length_q, BLOCK_Q):
        t = start + tl.arange(0, BLOCK_Q)
        q = _load(query, start, d, query_s2, query_s3, length_q, D, BLOCK_Q, WIDEN)  # [BLOCK_Q, BLOCK_D]
        g_a = _load(grad_a, start, dv, grad_a_s2, grad_a_s3, length_q, DV, BLOCK_Q, WIDEN)  # [BLOCK_Q, BLOCK_DV]
        g_b = _load(grad_b, start, dv, grad_b_s2, grad_b_s3, length_q, DV, BLOCK_Q, WIDEN)
        # Queries outside read as q = 0, lse = 0 and zero gradients: p = 1 there and adds nothing. Keys outside may make
        # infinities, in rows of the products that are theirs alone and never stored.
        row_lse = tl.load(lse + t, mask=t < length_q, other=0.0) * LOG2E
        row_delta = tl.load(delta + t, mask=t < length_q, other=0.0)
        logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * exponent  # [BLOCK_K, BLOCK_Q]
        p = tl.exp2(logits - row_lse[None, :])
        p_low = p.to(k.dtype)
        grad_v_a = tl.dot(p_low, g_a, grad_v_a, input_precision=PRECISION)
        grad_v_b = tl.dot(p_low, g_b, grad_v_b, input_precision=PRECISION)
        grad_p = tl.dot(v_a, tl.trans(g_a), input_precision=PRECISION)
        grad_p = tl.dot(v_b, tl.trans(g_b), grad_p, input_precision=PRECISION)
        grad_s = (p * (grad_p - row_delta[None, :])).to(k.dtype)
        grad_k = tl.dot(grad_s, q, grad_k, input_precision=PRECISION)

    grad_k *= scale
    _store(grad_key, row, d, grad_key_s2, grad_key_s3, length_k, D, grad_k, BLOCK_K)
    _store(grad_value_a, row, dv, grad_value_a_s2, grad_value_a_s3, length_k, DV, grad_v_a, BLOCK_K)
    _store(grad_value_b, row, dv, grad_value_b_s2, grad_value_b_s3, length_k, DV, grad_v_b, BLOCK_K)


def variants(name: str, query: torch.Tensor, value: torch.Tensor, target: int) -> list[Config]:
    """The variants of a kernel shipped for these dtypes, head sizes and target, largest tiles first."""
    precision, widen = product_precision(target)
    if widen or (query.dtype == torch.float32 and precision == "ieee"):
        unit = "fma"
    else:
        unit = "tf32" if query.dtype == torch.float32 else "half"
    return [c for c in CONFIGS[name, unit, _padded_head(query, value)] if target in c.targets]


def _launch(
    name: str, tensors: dict[str, torch.Tensor], others: dict[str, Any], scale: float, target: int | None
) -> Launch:
    """Return the launch of kernel `name` on strided `tensors`; `others` are arguments that only this kernel has.

    The variant follows from shapes and device alone. A choice by timing would synchronise the host on first use, fail
    inside a CUDA graph, and could give other bits in the next process.
    """
    query, value = tensors["query"], tensors["value_a"]
    target = target or target_of(query.device)
    batch, heads, length_q, d = query.shape
    length_k, dv = value.shape[2:]
    kernel, owned, length = {
        "forward": (_difference_attention_fwd_kernel, "BLOCK_Q", length_q),
        "backward_query": (_difference_attention_bwd_query_kernel, "BLOCK_Q", length_q),
        "backward_key": (_difference_attention_bwd_key_kernel, "BLOCK_K", length_k),
    }[name]
    usable = variants(name, query, value, target)
    # A grid of one dimension: the others end at 65,535, which batch x heads can pass.
    grids = [(triton.cdiv(length, c.tiles[owned]) * batch * heads,) for c in usable]
    processors = multiprocessors(query.device)
    chosen = next((i for i, grid in enumerate(grids) if grid[0] >= processors), len(usable) - 1)
    precision, widen = product_precision(target)
    arguments = {
        **tensors,
        **others,
        "heads": heads,
        "length_q": length_q,
        "length_k": length_k,
        "exponent": scale * LOG2E.value,
        **strides(**tensors),
        "D": d,
        "DV": dv,
        "BLOCK_D": triton.next_power_of_2(d),
        "BLOCK_DV": triton.next_power_of_2(dv),
        "PRECISION": precision,
        "WIDEN": widen,
    }
    return Launch(kernel, grids[chosen], arguments, usable[chosen])


Tensors = Sequence[torch.Tensor]


def forward_launch(inputs: Tensors, outputs: Tensors, scale: float, target: int | None = None) -> Launch:
    """Return the forward launch.

    Args:
        inputs: query, key, value_action, value_background.
        outputs: out_action, out_background, and the log-sum-exp, float32 and contiguous [B, H, Tq].
        scale: factor of the logits.
        target: compute capability that replaces the device's own.
    """
    names = ("query", "key", "value_a", "value_b", "out_a", "out_b")
    tensors = dict(zip(names, (*inputs, *outputs[:2]), strict=True))
    return _launch("forward", tensors, {"lse": outputs[2]}, scale, target)


def backward_launches(
    inputs: Tensors,
    outputs: Tensors,
    grad_outputs: Tensors,
    grad_inputs: Tensors,
    scale: float,
    target: int | None = None,
) -> tuple[Launch, Launch]:
    """Return the two sweeps, in their order: the first writes the deltas that the second reads.

    Args:
        inputs, outputs, scale, target: as in `forward_launch`.
        grad_outputs: gradients of out_action and out_background.
        grad_inputs: where the four gradients of the inputs are written.
    """
    out_a, out_b, lse = outputs
    grad_query, *of_keys = grad_inputs
    shared = dict(
        zip(("query", "key", "value_a", "value_b", "grad_a", "grad_b"), (*inputs, *grad_outputs), strict=True)
    )
    by_query = {**shared, "out_a": out_a, "out_b": out_b, "grad_query": grad_query}
    by_key = {**shared, **dict(zip(("grad_key", "grad_value_a", "grad_value_b"), of_keys, strict=True))}
    others = {"lse": lse, "delta": torch.empty_like(lse), "scale": scale}
    return (
        _launch("backward_query", by_query, others, scale, target),
        _launch("backward_key", by_key, others, scale, target),
    )


def launch(inputs: Tensors, outputs: Tensors, scale: float) -> None:
    """Fill the outputs; arguments as in `forward_launch`."""
    *outs, lse = outputs
    size = _padded_head(inputs[0], inputs[2])
    padded = [aligned(t, size) for t in outs]
    forward_launch([aligned(t, size) for t in inputs], (*padded, lse), scale).run()
    copy_back(padded, outs)


def launch_backward(
    inputs: Tensors, outputs: Tensors, grad_outputs: Tensors, grad_inputs: Tensors, scale: float
) -> None:
    """Fill grad_inputs; arguments as in `backward_launches`."""
    *outs, lse = outputs
    size = _padded_head(inputs[0], inputs[2])
    inputs, outs, grad_outputs, padded = (
        [aligned(t, size) for t in tensors] for tensors in (inputs, outs, grad_outputs, grad_inputs)
    )
    for sweep in backward_launches(inputs, (*outs, lse.contiguous()), grad_outputs, padded, scale):
        sweep.run()
    copy_back(padded, grad_inputs)


def _padded_head(query: torch.Tensor, value: torch.Tensor) -> int:
    """Return the size that all heads are padded to: one of the two that every shipped variant was compiled for."""
    return 64 if max(query.shape[-1], value.shape[-1]) <= 64 else 128
