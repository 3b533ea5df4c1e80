"""Which cells of a proposal map are computed, and which of these stand for others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...geometry.proposal_map import sampled_cells

CONVOLUTIONS = 2  # with a kernel of 3 by 3, one after the other


@dataclass(frozen=True, eq=False)
class MapCells:
    """Which cells of a map [rows, columns] are computed, layer by layer.

    valid: bool [rows, columns], the proposals.
    sampled: the cells that are sampled, see `maps.sampled_cells`.
    source: int64 [rows, columns], for each cell the index of what is sampled for it.
    layers: bool [rows, columns] for what the first convolution reads, for its results, and for those of the second.
    copied: int64 [rows, columns], for each cell the number of the one that has its score, itself where it is computed.
    """

    valid: np.ndarray
    sampled: np.ndarray
    source: np.ndarray
    layers: tuple[np.ndarray, ...]
    copied: np.ndarray

    @staticmethod
    def of(valid: np.ndarray) -> MapCells:
        numbers = np.arange(valid.size).reshape(valid.shape)
        sampled = sampled_cells(valid)
        source = np.full(valid.shape, len(sampled) - 1)
        source[valid] = np.arange(valid.sum())

        near = dilated(valid, CONVOLUTIONS)
        places = list(zip(np.indices(valid.shape), valid.shape, strict=True))
        edges = [np.minimum(i, n - 1 - i).clip(max=CONVOLUTIONS) for i, n in places]
        sides = [np.int64(2 * i >= n) for i, n in places]
        kinds = np.ravel_multi_index((*edges, *sides), (CONVOLUTIONS + 1, CONVOLUTIONS + 1, 2, 2))
        _, first, kind = np.unique(kinds[~near], return_index=True, return_inverse=True)
        copied = numbers.copy()
        copied[~near] = numbers[~near][first][kind]
        layers = [np.isin(numbers, copied)]
        for _ in range(CONVOLUTIONS):
            layers.insert(0, dilated(layers[0], 1))
        return MapCells(valid, sampled, source, tuple(layers), copied)


def dilated(cells: np.ndarray, distance: int) -> np.ndarray:
    """Cells of a map, bool, with those that are at most so many rows and columns away from one."""
    padded = np.pad(cells, distance)
    size = 2 * distance + 1
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size)).any(axis=(2, 3))
