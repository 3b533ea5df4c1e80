"""A sampling plan as the C++ kernels read it: groups of anchors whose taps are stored once."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np

from . import native
from .sampling_plan import GROUP, SamplingPlan

_PACKED_AT_ONCE = 256  # groups: more take memory, fewer take time


class AnchorGroups(NamedTuple):
    """The taps of a plan, as `pack_plan` of the native extension takes them.

    Away from the ends of the sequence, the anchors of a group read the same weights at shifted snippets. These common
    taps are stored as the first anchor reads them; every further anchor reads `step` rows after the one before it.
    Other taps are stored per anchor. A row is n * T + t for bin n and snippet t.

    order: as in `SamplingPlan`, [groups, GROUP] int32.
    step: rows between two anchors of a group, [groups] int32.
    offsets: start of each list of taps, [groups * (GROUP + 1) + 1] int32. A group has one list of common taps and then
        one list for each of its anchors.
    rows: row of each tap, [stored taps] int32.
    weights: weight of each tap, [stored taps] in the dtype of the plan.
    """

    order: np.ndarray
    step: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    weights: np.ndarray


def packed_plan(plan: SamplingPlan) -> Any:
    """Return the native object of a plan on the CPU, made on the first call and kept as long as the plan's weights.

    Operators receive a plan as tensors, so the memory of these identifies it. Requires: the native extension.
    """
    key = plan.weights.data_ptr(), plan.first.data_ptr(), plan.order.data_ptr(), plan.weights.dtype, plan.length
    owner, packed = _known.get(key, (None, None))
    if owner is None or packed is None or owner() is None:
        packed = native.module.pack_plan(*anchor_groups(plan), sum(plan.bins) * plan.length)

        def forget(dead: weakref.ref) -> None:
            if _known.get(key, (None,))[0] is dead:
                del _known[key]

        _known[key] = weakref.ref(plan.weights, forget), packed
    return packed


_known: dict[tuple, tuple[weakref.ref, Any]] = {}


def anchor_groups(plan: SamplingPlan) -> AnchorGroups:
    """Group the taps of a plan on the CPU."""
    first, order, weights = (tensor.detach().numpy() for tensor in (plan.first, plan.order, plan.weights))
    offsets = plan.offsets.numpy()
    starts, count = offsets[:-1].reshape(first.shape), np.diff(offsets).reshape(first.shape)
    blocks = [
        _pack_some(order[begin : begin + _PACKED_AT_ONCE], first, count, starts, weights, plan.length)
        for begin in range(0, len(order), _PACKED_AT_ONCE)
    ]
    step, sizes, rows, taps = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return AnchorGroups(order.copy(), step, np.append(0, sizes.cumsum()).astype(np.int32), rows, taps)


def _pack_some(
    order: np.ndarray, first: np.ndarray, count: np.ndarray, starts: np.ndarray, weights: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, numbers of taps in each list, rows and weights of some groups."""
    step, common = _steps(order, first, count, starts, weights)

    members = (order >= 0)[:, :, None]
    listed = np.concatenate([common[:, None], ~common[:, None] & members], axis=1)  # [groups, 1 + GROUP, N]
    group, place, n = np.nonzero(listed)
    anchor = np.concatenate([order[:, :1], order], axis=1)[group, place]
    taps = count[anchor, n]
    entry, within = _spread(taps)
    sizes = np.bincount(group * (1 + GROUP) + place, taps, minlength=len(order) * (1 + GROUP))
    rows = ((n * length + first[anchor, n])[entry] + within).astype(np.int32)
    return step, sizes, rows, weights[starts[anchor, n][entry] + within]


def _steps(
    order: np.ndarray, first: np.ndarray, count: np.ndarray, starts: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the step of each group [groups], and which bins have common taps [groups, N]."""
    shift = np.zeros((len(order), first.shape[1]), np.int32)
    alike = np.ones(shift.shape, bool)
    for place in range(1, GROUP):
        group = np.flatnonzero(order[:, place] >= 0)
        before, after = order[group, place - 1], order[group, place]
        difference = first[after] - first[before]
        if place == 1:
            shift[group] = difference
        same = (count[before] == count[after]) & (difference == shift[group]) & (difference >= 0)
        pair, n = np.nonzero(same)
        tap_pair, within = _spread(count[after[pair], n])
        one, other = (weights[starts[anchors[pair], n][tap_pair] + within] for anchors in (before, after))
        same[pair, n] = np.bincount(tap_pair, one != other, minlength=len(pair)) == 0
        alike[group] &= same
    # The first bin that moves decides the step of its group. Bins that move by another number are not common.
    moves = alike & (shift > 0) & (count[order[:, 0]] > 0)
    step = np.where(moves.any(axis=1), shift[np.arange(len(order)), moves.argmax(axis=1)], 0).astype(np.int32)
    return step, alike & (shift == step[:, None])


def _spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for `counts` taps of each list, the list of every tap and its place in that list."""
    entry = np.repeat(np.arange(len(counts)), counts)
    return entry, np.arange(len(entry)) - (np.cumsum(counts) - counts)[entry]
