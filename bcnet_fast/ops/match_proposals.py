"""Boundary probabilities and anchor scores to scored proposals: pairing, matching, refinement and confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from . import native, reference
from .backends import choose, triton_kernels
from .refusals import check_number, refuse, refuse_device, refuse_dtype, refuse_shape, refuse_type
from .registration import register

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ANCHOR_DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64)


class MatchedProposals(NamedTuple):
    """Proposals of W windows, K rows for each. Window w uses its first counts[w] rows; the others are zeros.

    segments: start and end after refinement, [W, K, 2] float64, in snippets.
    scores: confidence, [W, K] float64.
    boundaries: start and end snippet before refinement, [W, K, 2] int32, sorted by start, then end.
    counts: number of proposals, [W] int64.
    """

    segments: torch.Tensor
    scores: torch.Tensor
    boundaries: torch.Tensor
    counts: torch.Tensor


class _Scores(NamedTuple):
    """The tensors [W, T] and [W, P] of network outputs, in the order of the operator's list."""

    start: torch.Tensor
    end: torch.Tensor
    classification: torch.Tensor
    regression: torch.Tensor
    background: torch.Tensor | None = None


class _Thresholds(NamedTuple):
    """The thresholds, in the order of the operator's list."""

    boundary_threshold: float
    min_classification: float
    min_regression: float


def match_proposals(
    start: torch.Tensor,
    end: torch.Tensor,
    classification: torch.Tensor,
    regression: torch.Tensor,
    background: torch.Tensor | None,
    anchors: torch.Tensor,
    table: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    boundary_threshold: float = 0.7,
    min_classification: float = 0.9,
    min_regression: float = 0.8,
    max_snippets: float | None = None,
    clamp_boundaries: bool = False,
) -> MatchedProposals:
    """Pair the likely boundaries of each window, and score each pair by its matching anchor.

    Source: BCNet paper, section 3.6. A snippet t can be a boundary if its probability is at least `boundary_threshold`,
    or greater than that of both neighbours. Every pair of a start s and an end e with 1 <= e - s <= D is a proposal.
    With m = table[s, e - s - 1], the anchor that matches the pair:

        segment = ((s, e) + anchors[m]) / 2 if classification[m] > min_classification
                  and regression[m] > min_regression (Eq. 12), else (s, e)
        score   = start[s] * end[e] * classification[m] * regression[m] * (1 - background[m]) (Eq. 13)

    Args:
        start: probabilities of a start, [W, T], any strides; float16, bfloat16, float32 or float64.
        end: probabilities of an end, [W, T], in the dtype and on the device of start, like the next three.
        classification: scores of the anchors, [W, P].
        regression: predicted tIoU of the anchors, [W, P].
        background: background scores of the anchors, [W, P]; None leaves out their factor.
        anchors: start and end in snippets, [P, 2] int32, int64, float32 or float64.
        table: anchor of each pair, [T, D] int32, numbers below P, as `anchors.matching_table` returns it.
        lengths: snippets that are not padding, [W] int64, 0 to T; None if no window is padded.
        boundary_threshold, min_classification, min_regression: see above.
        max_snippets: segments of this length or longer get the score 0; None for no limit.
        clamp_boundaries: read snippet 0 as 1 and T - 1 as T - 2, as the public BCNet release does. Pairs with s = 1
            then appear twice in a row, and those with s = 0 or e = T - 1 not at all.

    Returns:
        `MatchedProposals` with K = d (T - 1) - d (d - 1) / 2, d = min(D, T - 1): the most pairs a window can have.

    All arithmetic is in float64, in the order of the formulas, so every backend gives the same bits. All shapes follow
    from those of the inputs and nothing is read back from the device, so a CUDA graph can hold the call. Not
    differentiable.

    Raises:
        TypeError: an argument is not a tensor or number, or its dtype is not listed above.
        ValueError: an argument has another shape, device or range. On the CPU this includes NaN and infinity, and the
            values of lengths and table. Values on other devices are not checked. There a NaN is neither a boundary nor
            a lower neighbour of one, never refines, and makes the score of every pair it is a factor of NaN.
    """
    tensors = {
        "start": start,
        "end": end,
        "classification": classification,
        "regression": regression,
        "background": background,
        "anchors": anchors,
        "table": table,
        "lengths": lengths,
    }
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) and not (tensor is None and name in ("background", "lengths")):
            refuse_type("match_proposals", name, tensor, "a tensor")
    numbers = {
        "boundary_threshold": boundary_threshold,
        "min_classification": min_classification,
        "min_regression": min_regression,
        "max_snippets": 0 if max_snippets is None else max_snippets,
    }
    for name, value in numbers.items():
        check_number("match_proposals", name, value)
    scores = [start.detach(), end.detach(), classification.detach(), regression.detach()]
    if background is not None:
        scores.append(background.detach())
    thresholds = [boundary_threshold, min_classification, min_regression]
    return MatchedProposals(
        *_match_proposals(scores, anchors, table, lengths, thresholds, max_snippets, clamp_boundaries)
    )


def _check(
    scores: _Scores,
    anchors: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor | None,
    thresholds: _Thresholds,
    max_snippets: float | None,
) -> None:
    """Raise for arguments that no backend supports, as far as it shows without reading values of a tensor."""
    op = "match_proposals"
    start = scores.start
    if start.dim() != 2 or 0 in start.shape:
        refuse_shape(op, "start", start, "[W, T] and not empty")
    if table.dim() != 2 or table.shape[0] != start.shape[1] or table.shape[1] == 0:
        refuse_shape(op, "table", table, f"[{start.shape[1]}, D] to fit start, and not empty")
    if anchors.dim() != 2 or anchors.shape[1] != 2 or anchors.shape[0] == 0:
        refuse_shape(op, "anchors", anchors, "[P, 2] and not empty")
    by_snippet, by_anchor = list(start.shape), [start.shape[0], anchors.shape[0]]
    required: dict[str, tuple[list[int], tuple[torch.dtype, ...]]] = {
        "start": (by_snippet, DTYPES),
        "end": (by_snippet, (start.dtype,)),
        "classification": (by_anchor, (start.dtype,)),
        "regression": (by_anchor, (start.dtype,)),
        "background": (by_anchor, (start.dtype,)),
        "anchors": (list(anchors.shape), ANCHOR_DTYPES),
        "table": (list(table.shape), (torch.int32,)),
        "lengths": (by_snippet[:1], (torch.int64,)),
    }
    for name, tensor in {**scores._asdict(), "anchors": anchors, "table": table, "lengths": lengths}.items():
        if tensor is None:
            continue
        shape, dtypes = required[name]
        if list(tensor.shape) != shape:
            refuse_shape(op, name, tensor, f"{shape} to fit the others")
        if tensor.dtype not in dtypes:
            refuse_dtype(op, name, tensor.dtype, dtypes)
        if tensor.device != start.device:
            refuse_device(op, name, tensor, start, "start")
    for name, value in {**thresholds._asdict(), "max_snippets": max_snippets}.items():
        if value is not None and math.isnan(value):
            refuse(op, name, value, "a number")


def _check_values(scores: _Scores, anchors: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor | None) -> None:
    """Raise for values in host memory that no backend supports."""

    def refuse_value(name, required, tensor, good):
        where = (~good).nonzero()[0].tolist()
        value = tensor[tuple(where)].item()
        refuse("match_proposals", name, f"{value} at {where} of {list(tensor.shape)}", required)

    for name, tensor in {**scores._asdict(), "anchors": anchors}.items():
        if tensor is not None and not (good := tensor.isfinite()).all():
            refuse_value(name, "finite numbers", tensor, good)
    for name, tensor, most in (("table", table, len(anchors) - 1), ("lengths", lengths, scores.start.shape[1])):
        if tensor is not None and not (good := (tensor >= 0) & (tensor <= most)).all():
            refuse_value(name, f"numbers from 0 to {most}", tensor, good)


def _run(
    scores: Sequence[torch.Tensor],
    anchors: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor | None,
    thresholds: Sequence[float],
    max_snippets: float | None,
    clamp_boundaries: bool,
) -> tuple[torch.Tensor, ...]:
    """Return the fields of `MatchedProposals`; scores and thresholds are those of `_Scores` and `_Thresholds`."""
    named, limits = _Scores(*scores), _Thresholds(*thresholds)
    _check(named, anchors, table, lengths, limits, max_snippets)
    backend = choose("match_proposals", named.start.device)
    tables = anchors, table, lengths
    options = {**limits._asdict(), "max_snippets": max_snippets, "clamp_boundaries": clamp_boundaries}
    if backend == "native":
        return _run_native(named, *tables, options)
    if named.start.device.type == "cpu":
        _check_values(named, *tables)
    if backend == "reference":
        return reference.match_proposals(*named, *tables, **options)
    kernels = triton_kernels("match_proposals")
    outputs = _outputs(named.start, table)
    kernels.launch(named, tables, outputs, **options)
    return outputs


def _run_native(
    scores: _Scores,
    anchors: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor | None,
    options: dict[str, Any],
) -> tuple[torch.Tensor, ...]:
    start = scores.start
    dtype = np.float64 if start.dtype == torch.float64 else np.float32
    half = start.dtype in (torch.float16, torch.bfloat16)
    tensors = *(tensor if tensor is None or not half else tensor.float() for tensor in scores), anchors, table, lengths
    dtypes = (*[dtype] * len(scores), np.float64, np.int32, np.int64)
    inputs = [
        None if tensor is None else np.ascontiguousarray(tensor.numpy(force=True), dtype)
        for tensor, dtype in zip(tensors, dtypes, strict=True)
    ]
    outputs = _outputs(start, table)
    arrays = {name: output.numpy() for name, output in MatchedProposals(*outputs)._asdict().items()}
    try:
        native.module.match_proposals(*inputs, **options, **arrays, threads=torch.get_num_threads())
    except ValueError:
        # The C++ code checks all values too, and faster, but names neither the value nor its place.
        _check_values(scores, anchors, table, lengths)
        raise
    return outputs


def _outputs(start: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
    windows, rows = start.shape[0], reference.most_pairs(*table.shape)
    return (
        start.new_empty(windows, rows, 2, dtype=torch.float64),
        start.new_empty(windows, rows, dtype=torch.float64),
        start.new_empty(windows, rows, 2, dtype=torch.int32),
        start.new_empty(windows, dtype=torch.int64),
    )


def _fake(scores, anchors, table, lengths, thresholds, max_snippets, clamp_boundaries):
    named = _Scores(*scores)
    _check(named, anchors, table, lengths, _Thresholds(*thresholds), max_snippets)
    return _outputs(named.start, table)


_match_proposals = register(
    "match_proposals",
    "(Tensor[] scores, Tensor anchors, Tensor table, Tensor? lengths, float[] thresholds, float? max_snippets, "
    "bool clamp_boundaries) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
