"""The cells of a proposal map as the C++ kernels go through them: runs of rows."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from ...ops import native as _native
from .map_cells import MapCells, dilated

LONGEST_RUN = 64  # rows, about as many as are worked on at a time


class NativeMap:
    """Where the cells of a map lie in memory: those that are read row by row, with zeros around the map where these are
    read; or without convolutions, in the order in which they are sampled.

    rows: how many they are. runs: for each layer, which are made of which, as `linear_runs` takes them. alike: the
    cells that are no proposals and are read all the same; the first of them is made, the others are copies. computed:
    how many cells the last layer has, in their order; spread: the one of these that each cell of the map has its score
    from.
    """

    def __init__(self, cells: MapCells, convolved: bool) -> None:
        self.convolved = convolved
        if not convolved:
            self.rows, self.border, self.alike = len(cells.sampled), slice(0), slice(0)
            self.runs = [_runs(np.arange(self.rows)[None], np.arange(self.rows))]
            self.spread = torch.from_numpy(cells.source.ravel())
            return
        read, first, second = cells.layers
        held = dilated(np.pad(first, 1), 1)  # with a border around the map
        self.rows = int(held.sum())
        places = _numbers(held)
        place = places[1:-1, 1:-1]
        self.border = places[held & ~np.pad(np.ones_like(read), 1)]
        self.alike = place[read & ~cells.valid]
        sampled = np.concatenate([place[cells.valid], self.alike[:1]])
        self.computed = int(second.sum())
        computed = _numbers(second)
        self.spread = torch.from_numpy(computed.ravel()[cells.copied.ravel()])
        # A row of the kernel takes three cells, from the one at its left on, and of the row above, its own, and below.
        taken = np.stack([places[row : row + len(read), :-2] for row in range(3)])
        self.runs = [
            _runs(np.arange(len(sampled))[None], sampled),
            _runs(taken[:, first], place[first]),
            _runs(taken[:, second], computed[second]),
        ]

    def with_copies(self, x: np.ndarray) -> np.ndarray:
        """The map with the first of the cells `alike` copied to the others."""
        x[self.alike] = x[self.alike][:1]
        return x


def _columns_at_a_time(columns: int) -> int:
    """The least part of a projection that keeps all threads as busy as all of it: each takes panels of columns."""
    module = _native.module
    together = module.PANEL * torch.get_num_threads()
    for part in range(module.RUN_PART, columns, module.RUN_PART):
        if -(-columns // part) * -(-part // together) <= -(-columns // together):
            return part
    return columns


def _numbers(chosen: np.ndarray) -> np.ndarray:
    """Of each cell that is chosen, how many are before it."""
    return chosen.cumsum().reshape(chosen.shape) - 1


def _runs(sources: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What rows are made of, [groups, n], and what they become, [n], as runs of at most LONGEST_RUN rows:
    [from of each group, to, rows], int32 [runs, groups + 2].
    """
    numbers = np.concatenate([sources, target[None]])[:, np.argsort(target)]
    apart = (np.diff(numbers) != 1).any(axis=0)
    begin = np.concatenate([[0], np.flatnonzero(apart) + 1, [len(target)]])
    pieces = [np.linspace(a, b, -(-(b - a) // LONGEST_RUN), endpoint=False) for a, b in itertools.pairwise(begin)]
    begin = np.append(np.concatenate(pieces), len(target)).astype(np.int64)
    return np.concatenate([numbers[:, begin[:-1]], np.diff(begin)[None]]).T.astype(np.int32, order="C")
