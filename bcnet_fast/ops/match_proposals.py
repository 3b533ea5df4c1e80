"""Boundary probabilities and anchor scores to scored proposals: pairing, matching, refinement and confidence."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from . import native as _native
from . import reference
from .backends import call, check_number, choose

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ANCHOR_DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64)


class MatchedProposals(NamedTuple):
    """Proposals of W windows in K rows each, of which window w uses the first counts[w]; the others are zeros.

    segments [W, K, 2] float64, after refinement, in snippets; scores [W, K] float64; boundaries [W, K, 2] int32, the
    start and the end snippet; counts [W] int64.
    """

    segments: torch.Tensor
    scores: torch.Tensor
    boundaries: torch.Tensor
    counts: torch.Tensor


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
    """Pair the likely boundaries of each window, and score each pair by its matching anchor (paper, section 3.6).

    A snippet t can be a boundary where its probability is at least `boundary_threshold`, or above both neighbours'
    (beyond the window there is none), and t < its window's length. A start s and an end e are a pair where
    1 <= e - s <= D. With m = table[s, e - s - 1] the matching anchor of the pair:

        segment = ((s, e) + anchors[m]) / 2 where classification[m] > min_classification
                  and regression[m] > min_regression (Eq. 12), else (s, e)
        score   = start[s] * end[e] * classification[m] * regression[m] * (1 - background[m]) (Eq. 13)

    Args:
        start, end: [W, T], of one device and one of the dtypes float16, bfloat16, float32, float64, any strides.
        classification, regression, background: [W, P], of the same dtype. Without `background` (None) its factor is
            left out.
        anchors: [P, 2], start and end in snippets, int32, int64, float32 or float64.
        table: [T, D] int32, numbers below P, as `anchors.matching_table` makes it.
        lengths: [W] int64, the snippets that are not padding, 0 to T; None where no window has any.
        max_snippets: segments of this length and longer get the score 0; None for no limit.
        clamp_boundaries: a habit of the public BCNet release, which reads snippet 0 as 1 and T - 1 as T - 2: pairs with
            s = 1 appear twice in a row each time, those with s = 0 or e = T - 1 not at all.

    Returns:
        A named tuple (segments [W, K, 2] float64, scores [W, K] float64, boundaries [W, K, 2] int32, counts [W] int64).
        The pairs (s, e) = boundaries[w, i] of window w are its first counts[w] rows, sorted by s, then e; the rest is
        zeros. K = d (T - 1) - d (d - 1) / 2 with d = min(D, T - 1), the pairs that a window can have at most.

    All arithmetic is in float64 in the order of the formulas, one factor multiplied after the other: the bits are the
    same from every backend. The shapes depend on those of the inputs alone and nothing is read back from the device, so
    the call fits into a CUDA graph. Not differentiable.

    Raises:
        TypeError: an argument is no tensor, or has a dtype other than stated.
        ValueError: an argument has another shape, device or range than stated. On the CPU this includes NaN and
            infinity, lengths and table; values on another device are not looked at. There a NaN is no boundary and no
            lower neighbour of one, refines nothing, and is the score of every pair that it is a factor of.
    """
    tensors = {
        "start": start,
        "end": end,
        "classification": classification,
        "regression": regression,
        "anchors": anchors,
        "table": table,
        **({} if background is None else {"background": background}),
        **({} if lengths is None else {"lengths": lengths}),
    }
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"match_proposals: {name} must be a tensor, got {type(tensor).__name__}")
    numbers = {"boundary_threshold": boundary_threshold, "min_classification": min_classification}
    for name, value in {**numbers, "min_regression": min_regression}.items():
        check_number("match_proposals", name, value)
    if max_snippets is not None:
        check_number("match_proposals", "max_snippets", max_snippets)
    start, end, classification, regression = (t.detach() for t in (start, end, classification, regression))
    background = None if background is None else background.detach()
    return MatchedProposals(
        *call(
            _match_proposals, _run,
            start, end, classification, regression, background, anchors, table, lengths,
            boundary_threshold, min_classification, min_regression, max_snippets, clamp_boundaries,
        )
    )  # fmt: skip


def _check(
    start, end, classification, regression, background, anchors, table, lengths,
    boundary_threshold, min_classification, min_regression, max_snippets,
) -> None:  # fmt: skip
    """Raise for what no backend takes and what can be told without reading a tensor's values."""

    def refuse(error, name, wanted, got):
        raise error(f"match_proposals: {name} must be {wanted}, got {got}")

    if start.dim() != 2 or 0 in start.shape:
        refuse(ValueError, "start", "[W, T] and not empty", f"shape {list(start.shape)}")
    if table.dim() != 2 or table.shape[0] != start.shape[1] or table.shape[1] == 0:
        refuse(ValueError, "table", f"[{start.shape[1]}, D] to fit start, and not empty", f"shape {list(table.shape)}")
    if anchors.dim() != 2 or anchors.shape[1] != 2 or anchors.shape[0] == 0:
        refuse(ValueError, "anchors", "[P, 2] and not empty", f"shape {list(anchors.shape)}")
    frames, scores = list(start.shape), [start.shape[0], anchors.shape[0]]
    wanted = {
        "start": (start, frames, DTYPES),
        "end": (end, frames, (start.dtype,)),
        "classification": (classification, scores, (start.dtype,)),
        "regression": (regression, scores, (start.dtype,)),
        "background": (background, scores, (start.dtype,)),
        "anchors": (anchors, list(anchors.shape), ANCHOR_DTYPES),
        "table": (table, list(table.shape), (torch.int32,)),
        "lengths": (lengths, frames[:1], (torch.int64,)),
    }
    for name, (tensor, shape, dtypes) in wanted.items():
        if tensor is None:
            continue
        if list(tensor.shape) != shape:
            refuse(ValueError, name, f"{shape} to fit the others", f"shape {list(tensor.shape)}")
        if tensor.dtype not in dtypes:
            names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            refuse(TypeError, name, names, tensor.dtype)
        if tensor.device != start.device:
            refuse(ValueError, name, f"on {start.device} as start is", f"a tensor on {tensor.device}")
    numbers = {
        "boundary_threshold": boundary_threshold,
        "min_classification": min_classification,
        "min_regression": min_regression,
        "max_snippets": max_snippets,
    }
    for name, value in numbers.items():
        if value is not None and math.isnan(value):
            refuse(ValueError, name, "a number", value)


def _check_values(start, end, classification, regression, background, anchors, table, lengths) -> None:
    """Raise for values in host memory that no backend takes."""
    scores = {"start": start, "end": end, "classification": classification, "regression": regression}
    for name, tensor in {**scores, "background": background, "anchors": anchors}.items():
        if tensor is not None and not (good := tensor.isfinite()).all():
            where = (~good).nonzero()[0].tolist()
            value = tensor[tuple(where)].item()
            raise ValueError(f"match_proposals: {name} must be finite, got {value} at {where} of {list(tensor.shape)}")
    for name, tensor, most in (("table", table, len(anchors) - 1), ("lengths", lengths, start.shape[1])):
        if tensor is not None and not (good := (tensor >= 0) & (tensor <= most)).all():
            where = (~good).nonzero()[0].tolist()
            value = tensor[tuple(where)].item()
            raise ValueError(
                f"match_proposals: {name} must be 0 to {most}, got {value} at {where} of {list(tensor.shape)}"
            )


def _run(
    start, end, classification, regression, background, anchors, table, lengths,
    boundary_threshold, min_classification, min_regression, max_snippets, clamp_boundaries,
):  # fmt: skip
    tensors = start, end, classification, regression, background, anchors, table, lengths
    options = boundary_threshold, min_classification, min_regression, max_snippets, clamp_boundaries
    _check(*tensors, *options[:4])
    backend = choose("match_proposals", start.device)
    if backend == "native":
        return _run_native(tensors, options)
    if start.device.type == "cpu":
        _check_values(*tensors)
    if backend == "reference":
        return reference.match_proposals(*tensors, *options)
    from ..kernels import match_proposals as kernels

    outputs = _outputs(start, table)
    kernels.launch(*tensors, *options, *outputs)
    return outputs


# The schema is written out because PyTorch before 2.6 cannot read it from annotations that are strings.
_match_proposals = torch.library.custom_op(
    "bcnet_fast::match_proposals",
    _run,
    mutates_args=(),
    schema="(Tensor start, Tensor end, Tensor classification, Tensor regression, Tensor? background, Tensor anchors, "
    "Tensor table, Tensor? lengths, float boundary_threshold, float min_classification, float min_regression, "
    "float? max_snippets, bool clamp_boundaries) -> (Tensor, Tensor, Tensor, Tensor)",
)


def _run_native(tensors, options):
    start, *_, table, _ = tensors
    if start.dtype in (torch.float16, torch.bfloat16):
        tensors = *(None if tensor is None else tensor.float() for tensor in tensors[:5]), *tensors[5:]
    scores = np.float64 if start.dtype == torch.float64 else np.float32
    dtypes = (*[scores] * 5, np.float64, np.int32, np.int64)
    inputs = [
        None if tensor is None else np.ascontiguousarray(tensor.numpy(force=True), dtype)
        for tensor, dtype in zip(tensors, dtypes, strict=True)
    ]
    outputs = _outputs(start, table)
    arrays = [output.numpy() for output in outputs]
    try:
        _native.module.match_proposals(*inputs, *options, torch.get_num_threads(), *arrays)
    except ValueError:
        # It looks at all values itself, in less time, but says less about them.
        _check_values(*tensors)
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


@_match_proposals.register_fake
def _match_proposals_fake(
    start, end, classification, regression, background, anchors, table, lengths,
    boundary_threshold, min_classification, min_regression, max_snippets, clamp_boundaries,
):  # fmt: skip
    _check(
        start, end, classification, regression, background, anchors, table, lengths,
        boundary_threshold, min_classification, min_regression, max_snippets,
    )  # fmt: skip
    return _outputs(start, table)
