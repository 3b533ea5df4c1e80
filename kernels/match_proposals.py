"""Boundary probabilities and anchor scores to scored proposals (paper, section 3.6) of many windows, in one launch.

    pairs (s, e), 1 <= e - s <= D, of snippets that can be boundaries; m = table[s, e - s - 1]
    segment = ((s, e) + anchors[m]) / 2 where classification[m] and regression[m] are above their limits, else (s, e)
    score   = start[s] end[e] classification[m] regression[m] (1 - background[m])

with start, end [W, T], the scores of anchors [W, P], anchors [P, 2], table [T, D], and outputs of K rows for each
window, filled from the top. A program owns BLOCK_S start snippets of one window. To find its first row, it counts the
pairs of all snippets in one sweep over both boundary sequences. The ends that go with s are a window of D snippets, so
their number is a running sum of the ends that enter and leave it. The sweep is cheaper than a separate launch for the
counts, and than atomics, whose order would not repeat. The rows that no pair fills are divided among the programs:
every output element is written once.

All arithmetic is in float64, in the order of the formulas: the bits are those of the reference. No product is followed
by a sum, so nothing can be contracted to an FMA.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from ._common import TARGETS, Config, Launch, strides

# One variant serves all targets: larger tiles spill on some. A tile has 16 x 32 pairs, and there are 512 snippets in
# a step of the count (T + D of THUMOS14 are 320).
CONFIG = Config({"BLOCK_S": 16, "BLOCK_D": 32, "BLOCK_T": 512}, 4, 1, TARGETS)


@triton.jit
def _float64(bits):
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _at(base, index, stride, mask, other: tl.constexpr):
    return tl.load(base + index.to(tl.int64) * stride, mask=mask, other=other)


@triton.jit
def _boundaries(probability, stride, t, snippets, first, last, threshold):
    """Mark snippets t in [first, last) that can be a boundary: at least the threshold, or a strict local maximum."""
    here = _at(probability, t, stride, (t >= 0) & (t < snippets), -float("inf"))
    before = _at(probability, t - 1, stride, (t >= 1) & (t <= snippets), -float("inf"))
    after = _at(probability, t + 1, stride, (t >= -1) & (t < snippets - 1), -float("inf"))
    # The interpreter cannot compare bfloat16. 16 bits in float32 and float32 in itself are compared as they are.
    wide: tl.constexpr = tl.float64 if probability.dtype.element_ty == tl.float64 else tl.float32
    peak = (here.to(wide) > before.to(wide)) & (here.to(wide) > after.to(wide))
    return ((here.to(tl.float64) >= threshold) | peak) & (t >= first) & (t < last)


@triton.jit(
    do_not_specialize=("boundary_threshold", "min_classification", "min_regression", "max_snippets"),
)
def _match_proposals_kernel(
    start, end, classification, regression, background, anchors, table, lengths,
    segments, scores, boundaries, counts,
    snippets, longest, rows, boundary_threshold, min_classification, min_regression, max_snippets,
    start_s0, start_s1, end_s0, end_s1,
    classification_s0, classification_s1, regression_s0, regression_s1, background_s0, background_s1,
    anchors_s0, anchors_s1, table_s0, table_s1, lengths_s0,
    HAS_BACKGROUND: tl.constexpr, HAS_LENGTHS: tl.constexpr, CLAMP: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    programs = tl.cdiv(snippets, BLOCK_S)
    program = tl.program_id(0) % programs
    window = (tl.program_id(0) // programs).to(tl.int64)
    start += window * start_s0
    end += window * end_s0
    classification += window * classification_s0
    regression += window * regression_s0
    background += window * background_s0
    segments += window * rows * 2
    scores += window * rows
    boundaries += window * rows * 2
    threshold = _float64(boundary_threshold)

    # With CLAMP, row 0 is snippet 1 again, and the last snippet is no end.
    first: tl.constexpr = 1 if CLAMP else 0
    last_start = snippets
    if HAS_LENGTHS:
        last_start = tl.minimum(tl.load(lengths + window * lengths_s0), snippets).to(tl.int32)
    last_end = tl.minimum(last_start, snippets - first)
    own = program * BLOCK_S

    total = 0  # pairs of the window
    before = 0  # pairs of rows before this program's
    inside = 0  # ends in (t, t + longest]
    for step in range(-longest, snippets, BLOCK_T):
        t = step + tl.arange(0, BLOCK_T)
        change = _boundaries(end, end_s1, t + longest, snippets, 0, last_end, threshold).to(tl.int32)
        change -= _boundaries(end, end_s1, t, snippets, 0, last_end, threshold).to(tl.int32)
        is_start = _boundaries(start, start_s1, t, snippets, first, last_start, threshold)
        pairs = tl.where(is_start, inside + tl.cumsum(change, 0), 0)
        if CLAMP:
            again = tl.sum(tl.where(t == 1, pairs, 0), 0)
            total += again
            before += tl.where(own > 0, again, 0)
        total += tl.sum(pairs, 0)
        before += tl.sum(tl.where(t < own, pairs, 0), 0)
        inside += tl.sum(change, 0)

    row = own + tl.arange(0, BLOCK_S)
    s = tl.maximum(row, first)
    is_start = _boundaries(start, start_s1, s, snippets, first, last_start, threshold) & (row < snippets)
    in_row = tl.zeros([BLOCK_S], tl.int32)
    for step in range(0, longest, BLOCK_D):
        d = step + tl.arange(0, BLOCK_D)
        e = s[:, None] + 1 + d[None, :]  # [BLOCK_S, BLOCK_D]
        pair = _boundaries(end, end_s1, e, snippets, 0, last_end, threshold)
        pair = pair & is_start[:, None] & (d < longest)[None, :]
        in_row += tl.sum(pair.to(tl.int32), 1)

    start_score = _at(start, s, start_s1, is_start, 0.0).to(tl.float64)[:, None]
    offset = before + tl.cumsum(in_row, 0) - in_row
    for step in range(0, longest, BLOCK_D):
        d = step + tl.arange(0, BLOCK_D)
        e = s[:, None] + 1 + d[None, :]
        pair = _boundaries(end, end_s1, e, snippets, 0, last_end, threshold)
        pair = pair & is_start[:, None] & (d < longest)[None, :]
        seen = tl.cumsum(pair.to(tl.int32), 1)
        out = offset[:, None] + seen - 1
        offset += tl.sum(pair.to(tl.int32), 1)

        cell = s.to(tl.int64)[:, None] * table_s0 + d.to(tl.int64)[None, :] * table_s1
        anchor = tl.load(table + cell, mask=pair, other=0)
        score = start_score * _at(end, e, end_s1, pair, 0.0).to(tl.float64)
        action = _at(classification, anchor, classification_s1, pair, 0.0).to(tl.float64)
        overlap = _at(regression, anchor, regression_s1, pair, 0.0).to(tl.float64)
        score = score * action * overlap
        if HAS_BACKGROUND:
            score *= 1.0 - _at(background, anchor, background_s1, pair, 0.0).to(tl.float64)

        anchor_start = anchors + anchor.to(tl.int64) * anchors_s0
        refined = (action > _float64(min_classification)) & (overlap > _float64(min_regression))
        early = tl.zeros([BLOCK_S, BLOCK_D], tl.float64) + s.to(tl.float64)[:, None]
        late = e.to(tl.float64)
        anchor_early = tl.load(anchor_start, mask=pair, other=0).to(tl.float64)
        anchor_late = tl.load(anchor_start + anchors_s1, mask=pair, other=0).to(tl.float64)
        early = tl.where(refined, (early + anchor_early) * 0.5, early)
        late = tl.where(refined, (late + anchor_late) * 0.5, late)
        score = tl.where(late - early >= _float64(max_snippets), 0.0, score)

        tl.store(segments + 2 * out, early, mask=pair)
        tl.store(segments + 2 * out + 1, late, mask=pair)
        tl.store(scores + out, score, mask=pair)
        tl.store(boundaries + 2 * out, tl.zeros([BLOCK_S, BLOCK_D], tl.int32) + s[:, None], mask=pair)
        tl.store(boundaries + 2 * out + 1, e, mask=pair)

    if program == 0:
        tl.store(counts + window, total.to(tl.int64))
    share = tl.cdiv(rows, programs)
    for step in range(program * share, tl.minimum(rows, (program + 1) * share), BLOCK_T):
        out = step + tl.arange(0, BLOCK_T)
        empty = (out >= total) & (out < tl.minimum(rows, (program + 1) * share))
        tl.store(segments + 2 * out, tl.zeros([BLOCK_T], tl.float64), mask=empty)
        tl.store(segments + 2 * out + 1, tl.zeros([BLOCK_T], tl.float64), mask=empty)
        tl.store(scores + out, tl.zeros([BLOCK_T], tl.float64), mask=empty)
        tl.store(boundaries + 2 * out, tl.zeros([BLOCK_T], tl.int32), mask=empty)
        tl.store(boundaries + 2 * out + 1, tl.zeros([BLOCK_T], tl.int32), mask=empty)


def _bits(value: float) -> int:
    """Return the integer with the bits of a float64: Triton would round a float to float32."""
    return struct.unpack("q", struct.pack("d", value))[0]


def match_launch(
    scores: Sequence[torch.Tensor | None],
    tables: Sequence[torch.Tensor | None],
    outputs: Sequence[torch.Tensor],
    *,
    boundary_threshold: float,
    min_classification: float,
    min_regression: float,
    max_snippets: float | None,
    clamp_boundaries: bool,
) -> Launch:
    """Return the launch that fills the outputs; options as in `ops.match_proposals`.

    Args:
        scores: start, end [W, T], classification, regression, background or None [W, P].
        tables: anchors [P, 2], table [T, D], lengths [W] or None.
        outputs: segments, scores, boundaries, counts, as in `ops.MatchedProposals`.
    """
    start, end, classification, regression, background = scores
    anchors, table, lengths = tables
    segments, pair_scores, boundaries, counts = outputs
    windows, snippets = start.shape
    tensors = {
        "start": start,
        "end": end,
        "classification": classification,
        "regression": regression,
        "background": classification if background is None else background,
        "anchors": anchors,
        "table": table,
        "lengths": counts if lengths is None else lengths,
    }
    arguments = {
        **tensors,
        **strides(**tensors),
        "segments": segments,
        "scores": pair_scores,
        "boundaries": boundaries,
        "counts": counts,
        "snippets": snippets,
        "longest": min(table.shape[1], snippets - 1),
        "rows": pair_scores.shape[1],
        "boundary_threshold": _bits(boundary_threshold),
        "min_classification": _bits(min_classification),
        "min_regression": _bits(min_regression),
        "max_snippets": _bits(float("inf") if max_snippets is None else max_snippets),
        "HAS_BACKGROUND": background is not None,
        "HAS_LENGTHS": lengths is not None,
        "CLAMP": clamp_boundaries,
    }
    grid = (windows * triton.cdiv(snippets, CONFIG.tiles["BLOCK_S"]),)
    return Launch(_match_proposals_kernel, grid, arguments, CONFIG)


def launch(
    scores: Sequence[torch.Tensor | None],
    tables: Sequence[torch.Tensor | None],
    outputs: Sequence[torch.Tensor],
    **options: Any,
) -> None:
    """Fill the outputs; arguments as in `match_launch`."""
    match_launch(scores, tables, outputs, **options).run()
