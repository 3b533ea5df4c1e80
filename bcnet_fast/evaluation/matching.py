"""Ranked results beside the instances that they overlap, in the order of the public evaluators."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..geometry.tiou import pairwise_tiou
from ..results.ordering import descending

# Pairs of segments that are compared at once: bounds the working memory to a few dozen MB.
_PAIRS_AT_ONCE = 1 << 20
# If a round takes fewer than one pair in this many, going row by row is faster.
_WORTH_A_ROUND = 512


def ranking(scores: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order [N] by group and, within it, best score first, and the rank [N] from 0 within the group of each of them."""
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], group[order])
    for members in np.split(order, np.flatnonzero(np.diff(first)) + 1):
        members[:] = members[descending(scores[members])]
    return order, np.arange(len(order)) - first


def count_ties(group: np.ndarray, scores: np.ndarray) -> int:
    """Number of entries, given in the order of `ranking`, that share their score with another of their group."""
    same = (np.diff(group) == 0) & (np.diff(scores) == 0)
    return int(np.count_nonzero(np.append(same, False) | np.append(False, same)))


def overlapping_pairs(
    group: np.ndarray,
    segments: np.ndarray,
    truth_group: np.ndarray,
    truth_segments: np.ndarray,
    overlap: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs (row, instance) of the same group with their tIoU, by row and instance, a bounded number at a time.

    overlap: tIoU of segments [n, 2] with segments [n, 2]; `pairwise_tiou` by default.
    """
    overlap = overlap or pairwise_tiou
    by_group = np.argsort(truth_group, kind="stable")
    first = np.searchsorted(truth_group[by_group], group, side="left")
    count = np.searchsorted(truth_group[by_group], group, side="right") - first
    end = np.cumsum(count)
    row = 0
    while row < len(group):
        before = end[row] - count[row]
        stop = max(row + 1, int(np.searchsorted(end, before + _PAIRS_AT_ONCE, side="right")))
        rows = np.repeat(np.arange(row, stop), count[row:stop])
        place_in_row = np.arange(len(rows)) - (end[rows] - count[rows] - before)
        instances = by_group[first[rows] + place_in_row]
        yield rows, instances, overlap(segments[rows], truth_segments[instances])
        row = stop


def by_preference(row: np.ndarray, tiou: np.ndarray) -> np.ndarray:
    """Order of the pairs of `overlapping_pairs` that lists the instances of every row by descending tIoU."""
    order = np.arange(len(row))
    _, first, count = np.unique(row, return_index=True, return_counts=True)
    for length in np.unique(count):
        pairs = first[count == length, None] + np.arange(length)
        order[pairs] = np.take_along_axis(pairs, descending(tiou[pairs]), axis=1)
    return order


def first_come_pairs(row: np.ndarray, column: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Positions of the pairs that are taken when every row in turn takes its first free column.

    Pairs come by row, and for each row by its preference; all pairs of a row come in one call. `free` [columns] says
    which columns no earlier row has taken, and is brought up to date.

    A pair that comes first among the remaining pairs of both its row and its column is taken by the sequential rule
    too. So each round takes all such pairs and removes their rows and columns. Where every row wants the same column, a
    round takes one pair only; the rest is then matched row by row.
    """
    place = np.flatnonzero(free[column])
    row, column, matched = row[place], column[place], [place[:0]]
    while len(row):
        position = np.arange(len(row))
        first_of_column = np.full(column.max() + 1, len(row))
        np.minimum.at(first_of_column, column, position)
        first_of_row = np.append(True, row[1:] != row[:-1])
        taken = first_of_row & (first_of_column[column] == position)
        matched.append(place[taken])
        free[column[taken]] = False
        left = free[column] & ~np.isin(row, row[taken])
        row, column, place = row[left], column[left], place[left]
        if np.count_nonzero(taken) * _WORTH_A_ROUND < len(taken):
            break
    for pairs in np.split(np.arange(len(row)), np.flatnonzero(np.diff(row)) + 1):
        open_to_row = pairs[free[column[pairs]]]
        free[column[open_to_row[:1]]] = False
        matched.append(place[open_to_row[:1]])
    return np.concatenate(matched)
