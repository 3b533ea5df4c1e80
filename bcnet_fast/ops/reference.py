"""Definition of every operator in plain PyTorch or NumPy: the ground truth of tests, and the fallback on any device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .sampling_plan import SamplingPlan


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over inputs of `dtype`: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def difference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value_action: torch.Tensor,
    value_background: torch.Tensor,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Define difference attention (BCNet paper, Eq. 6): `A = softmax(query key^T * scale)`, times each value.

    Shapes as in `ops.difference_attention`. Stores the map [B, H, Tq, Tk].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out_action, out_background, _ = difference_attention_forward(query, key, value_action, value_background, scale)
    return out_action.to(query.dtype), out_background.to(query.dtype)


def difference_attention_forward(query, key, value_action, value_background, scale):
    """Return both outputs and the log-sum-exp [B, H, Tq] of each row of logits, all in the accumulation dtype."""
    query, key, value_action, value_background = _accumulated(query, key, value_action, value_background)
    logits = (query * scale) @ key.mT
    weights = torch.softmax(logits, dim=-1)
    # The largest weight is exp(largest logit - lse), which saves a second pass of exponentials.
    lse = logits.amax(-1) - weights.amax(-1).log()
    return weights @ value_action, weights @ value_background, lse


def difference_attention_backward(inputs, outputs, grad_action, grad_background, scale):
    """Return the gradients of query, key, value_action and value_background, in the accumulation dtype.

    Args:
        inputs: query, key, value_action, value_background.
        outputs: out_action, out_background, and the log-sum-exp [B, H, Tq].
        grad_action, grad_background: gradients of the first two outputs.
        scale: factor of the logits.
    """
    query, key, value_action, value_background = _accumulated(*inputs)
    out_action, out_background, lse = outputs
    grad_action, grad_background = _accumulated(grad_action, grad_background)
    weights = torch.exp((query * scale) @ key.mT - lse[..., None])
    delta = (grad_action * out_action + grad_background * out_background).sum(-1, keepdim=True)
    grad_weights = grad_action @ value_action.mT + grad_background @ value_background.mT
    grad_logits = weights * (grad_weights - delta) * scale
    return grad_logits @ key, grad_logits.mT @ query, weights.mT @ grad_action, weights.mT @ grad_background


def _accumulated(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [t.to(accumulation_dtype(t.dtype)) for t in tensors]


def soft_nms(
    segments: np.ndarray,
    scores: np.ndarray,
    offsets: np.ndarray,
    *,
    method: str,
    sigma: float,
    threshold_low: float,
    threshold_high: float,
    min_score: float,
    max_proposals: int | None,
    length_epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Define Soft-NMS; arguments as in `ops.soft_nms`, as arrays. Returns the indices and scores of the picks.

    Written in NumPy because the algorithm is a chain of short steps, each of which takes much longer in PyTorch.
    """
    number = scores.dtype.type
    indices, picked = [np.empty(0, np.int64)], [scores[:0]]
    for first, last in itertools.pairwise(offsets):
        index, score = _soft_nms_of_set(
            segments[first:last],
            scores[first:last],
            method=method,
            sigma=number(sigma),
            thresholds=(number(threshold_low), number(threshold_high)),
            min_score=number(min_score),
            max_proposals=last - first if max_proposals is None else max_proposals,
            epsilon=number(length_epsilon),
        )
        indices.append(first + index)
        picked.append(score)
    return np.concatenate(indices), np.concatenate(picked)


def _soft_nms_of_set(segments, scores, *, method, sigma, thresholds, min_score, max_proposals, epsilon):
    threshold_low, threshold_high = thresholds
    start, end, score = segments[:, 0].copy(), segments[:, 1].copy(), scores.copy()
    area, index = (end - start) + epsilon, np.arange(len(scores))
    columns = (start, end, score, area, index)
    picks, remaining = 0, len(scores)
    while picks < min(remaining, max_proposals):
        top = picks + int(np.argmax(score[picks:remaining]))
        if score[top] < min_score or score[top] <= 0:
            break
        for column in columns:
            column[[picks, top]] = column[[top, picks]]

        rest = slice(picks + 1, remaining)
        inter = np.maximum(np.minimum(end[picks], end[rest]) - np.maximum(start[picks], start[rest]), 0)
        tiou = np.divide(inter, (area[picks] + area[rest]) - inter, out=np.zeros_like(inter), where=inter > 0)
        threshold = threshold_low + (threshold_high - threshold_low) * (end[picks] - start[picks])
        if method == "gaussian":
            factor = _exp_nonpositive(tiou * tiou * (score.dtype.type(-1) / sigma))
            applies = tiou > threshold
        else:
            factor = 1 - tiou if method == "linear" else np.zeros_like(tiou)
            applies = tiou >= threshold
        score[rest] *= np.where((tiou > 0) & applies, factor, 1).astype(score.dtype)
        picks += 1

        dropped = (score[:remaining] < min_score) | (score[:remaining] <= 0)
        for position in picks + np.flatnonzero(dropped[picks:]):
            while position < remaining and dropped[position]:
                remaining -= 1
                dropped[position] = dropped[remaining]
                for column in columns:
                    column[position] = column[remaining]
    return index[:picks], score[:picks]


# log2(e); ln 2 as a sum of two numbers, the first with few bits; the x where exp(x) becomes 0; the last power.
_EXP_CONSTANTS = {
    np.dtype(np.float32): (1.44269504, 0.693359375, -2.12194440e-4, -104, 7),
    np.dtype(np.float64): (1.4426950408889634, 0.69314718036912382, 1.9082149292705877e-10, -746, 13),
}


def _exp_nonpositive(x: np.ndarray) -> np.ndarray:
    """Compute exp(x) for x <= 0 within 1.03 ulp, by the same operations as the C++ code (csrc/include/simd.h).

    NumPy's exp differs in the last bit between builds, and the last bit can decide which of two candidates is next.
    """
    log2e, ln2_high, ln2_low, lowest, last = _EXP_CONSTANTS[x.dtype]
    one, log2e, ln2_high, ln2_low, lowest = (x.dtype.type(c) for c in (1, log2e, ln2_high, ln2_low, lowest))
    x = np.maximum(x, lowest)
    n = np.rint(x * log2e)
    r = (x - n * ln2_high) - n * ln2_low
    tail = x.dtype.type(0)
    for power in range(last - 1, 1, -2):
        first, second = (one / x.dtype.type(math.factorial(k)) for k in (power, power + 1))
        tail = (first + r * second) + r * r * tail
    return np.ldexp(one + (r + r * r * tail), n.astype(np.int32))


def anchor_sampling(rows: torch.Tensor, plan: SamplingPlan) -> torch.Tensor:
    """Define anchor sampling: rows [B, G, T, C] -> [B, P, N, C], in the accumulation dtype."""
    sampled = [matrix @ rows[:, source].to(matrix.dtype) for matrix, source in _matrices(plan)]
    return torch.stack(sampled, 2)


def anchor_sampling_backward(grad: torch.Tensor, plan: SamplingPlan) -> torch.Tensor:
    """Return the gradient of the rows [B, G, T, C], in the accumulation dtype; grad is [B, P, N, C]."""
    rows = plan.weights.new_zeros(grad.shape[0], len(plan.bins), plan.length, grad.shape[3])
    for n, (matrix, source) in enumerate(_matrices(plan)):
        rows[:, source] += matrix.mT @ grad[:, :, n].to(matrix.dtype)
    return rows


def anchor_projection(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plan: SamplingPlan, relu: bool
) -> torch.Tensor:
    """Define the projection: the sum over bins of sampled[:, :, n] @ weight[n], + bias, ReLU: [B, P, O]."""
    out = plan.weights.new_zeros(rows.shape[0], plan.anchors, weight.shape[2])
    for (matrix, source), projection in zip(_matrices(plan), weight, strict=True):
        out += (matrix @ rows[:, source]) @ projection
    if bias is not None:
        out += bias
    return out.relu() if relu else out


def anchor_gather_backward(grad: torch.Tensor, plan: SamplingPlan) -> torch.Tensor:
    """Return the gradient of every snippet projected for every bin, [B, N, T, O]; grad is [B, P, O]."""
    return torch.stack([matrix.mT @ grad for matrix, _ in _matrices(plan)], 1)


def _matrices(plan: SamplingPlan) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield, for one bin after the other, the dense sampling matrix [P, T] and the feature sequence it reads."""
    taps = torch.arange(plan.longest, device=plan.first.device)
    sources = [source for source, count in enumerate(plan.bins) for _ in range(count)]
    for n, source in enumerate(sources):
        begin, end = (plan.offsets[n + shift :: len(sources)][: plan.anchors, None].long() for shift in (0, 1))
        used = begin + taps < end
        weight = torch.where(used, plan.weights[(begin + taps).clamp(max=plan.taps - 1)], 0)
        snippet = (plan.first[:, n, None] + taps).clamp(max=plan.length - 1)
        yield plan.weights.new_zeros(plan.anchors, plan.length).scatter_add_(1, snippet, weight), source


def add_layer_norm(x: torch.Tensor, residual: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Define the residual LayerNorm: z = x + residual, then (z - mean) / sqrt(variance + eps) of each row."""
    return add_layer_norm_forward(x, residual, eps)[0].to(x.dtype)


def add_layer_norm_forward(x, residual, eps):
    """Return the output [..., D] and 1 / sqrt(variance + eps) [...] of each row, in the accumulation dtype."""
    x, residual = _accumulated(x, residual)
    z = x + residual
    # A constant added to a row changes neither result nor gradient, but a large one costs PyTorch's LayerNorm digits.
    first = z.detach()[..., :1]
    centre = first + (z.detach() - first).mean(-1, keepdim=True)
    out, _, rstd = torch.native_layer_norm(z - centre, z.shape[-1:], None, None, eps)
    return out, rstd[..., 0]


def add_layer_norm_backward(grad, out, rstd):
    """Return the gradient of x, which is that of residual too, in the accumulation dtype."""
    grad, out = _accumulated(grad, out)
    slope = (grad * out).mean(-1, keepdim=True)
    return (grad - grad.mean(-1, keepdim=True) - out * slope) * rstd[..., None]


def match_proposals(
    start: torch.Tensor,
    end: torch.Tensor,
    classification: torch.Tensor,
    regression: torch.Tensor,
    background: torch.Tensor | None,
    anchors: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor | None,
    *,
    boundary_threshold: float,
    min_classification: float,
    min_regression: float,
    max_snippets: float | None,
    clamp_boundaries: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Define proposal matching; arguments and results as in `ops.match_proposals`.

    All sizes follow from the shapes of the inputs, so that nothing is read back from the device.
    """
    windows, snippets = start.shape
    longest, rows = min(table.shape[1], snippets - 1), most_pairs(*table.shape)
    starts, ends = (possible_boundaries(p, boundary_threshold, lengths) for p in (start, end))
    t = torch.arange(snippets, device=start.device)
    # Without a clamp at the last snippet: it starts no pair, as no end lies beyond it.
    s = t.clamp(min=min(1, snippets - 1)) if clamp_boundaries else t
    e = s[:, None] + torch.arange(1, longest + 1, device=start.device)  # [T, d]
    inside = e < snippets - clamp_boundaries
    # Cell (row, i) of a window is the pair (s[row], e[row, i]).
    pairs = (starts[:, s, None] & ends[:, e.clamp(max=snippets - 1)] & inside).flatten(1)  # [W, T * d]
    found = pairs.cumsum(1)
    counts = pairs.sum(1)

    # Row k of the result holds the cell of the k-th pair. An extra row collects the cells that are not pairs.
    cells = torch.arange(snippets * longest, device=start.device).expand(windows, -1)
    cell = found.new_zeros(windows, rows + 1).scatter_(1, torch.where(pairs, found - 1, rows), cells)[:, :rows]
    valid = torch.arange(rows, device=start.device) < counts[:, None]
    row, column = cell // max(1, longest), cell % max(1, longest)
    first = torch.where(valid, s[row], 0)
    last = torch.where(valid, first + 1 + column, 0)
    anchor = table[first, column].long()

    segments = torch.stack([first, last], dim=2).double()
    classification, regression = (scores.double().gather(1, anchor) for scores in (classification, regression))
    refined = valid & (classification > min_classification) & (regression > min_regression)
    segments = torch.where(refined[..., None], (segments + anchors.double()[anchor]) / 2, segments)
    scores = start.double().gather(1, first) * end.double().gather(1, last) * classification * regression
    if background is not None:
        scores = scores * (1 - background.double().gather(1, anchor))
    if max_snippets is not None:
        scores = torch.where(segments[..., 1] - segments[..., 0] >= max_snippets, 0.0, scores)
    boundaries = torch.stack([first, last], dim=2).int()
    return segments, torch.where(valid, scores, 0.0), boundaries, counts


def most_pairs(snippets: int, durations: int) -> int:
    """Count the pairs (s, e) of `snippets` snippets with 1 <= e - s <= durations."""
    longest: Any = torch.sym_min(durations, snippets - 1)  # sizes may be symbols while tracing
    return longest * (snippets - 1) - longest * (longest - 1) // 2


def possible_boundaries(probability: torch.Tensor, threshold: float, lengths: torch.Tensor | None) -> torch.Tensor:
    """Mark snippets [W, T] that can be a boundary: at least `threshold` or a strict local maximum, and not padding.

    Args:
        probability: [W, T] of any float dtype.
        threshold: compared in float64.
        lengths: [W] int64, number of snippets that are not padding; None if no window is padded.
    """
    probability = probability.double()  # in float32, the threshold itself would be rounded
    padded = torch.nn.functional.pad(probability, (1, 1), value=-torch.inf)
    taken = (probability >= threshold) | ((probability > padded[:, :-2]) & (probability > padded[:, 2:]))
    if lengths is not None:
        taken &= torch.arange(probability.shape[1], device=probability.device) < lengths[:, None]
    return taken
