"""The cells of a proposal map that are computed, and the cells whose scores they stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...geometry.proposal_map import sampled_cells

CONVOLUTIONS = 2  # convolutions of 3 by 3, one after the other


@dataclass(frozen=True, eq=False)
class MapCells:
    """The cells of a map [rows, columns] that each layer computes.

    valid: [rows, columns] bool, the proposals
    sampled: numbers of the cells that are sampled, see `proposal_map.sampled_cells`
    source: [rows, columns] int64, for each cell the index into `sampled` of the cell that samples the same
    layers: [rows, columns] bool for the first convolution's inputs, its results, and the results of the second
    copied: [rows, columns] int64, for each cell the number of the computed cell that has its score
    """

    valid: np.ndarray
    sampled: np.ndarray
    source: np.ndarray
    layers: tuple[np.ndarray, ...]
    copied: np.ndarray

    @staticmethod
    def of(valid: np.ndarray) -> MapCells:
        """Choose the cells: the valid ones, cells near them, and one of each kind of the others."""
        numbers = np.arange(valid.size).reshape(valid.shape)
        sampled = sampled_cells(valid)
        source = np.full(valid.shape, len(sampled) - 1)
        source[valid] = np.arange(valid.sum())

        # A cell that no valid one is near has the score of all cells at its distances from the map's edges.
        near = dilated(valid, CONVOLUTIONS)
        axes = list(zip(np.indices(valid.shape), valid.shape, strict=True))
        distances = [np.minimum(i, n - 1 - i).clip(max=CONVOLUTIONS) for i, n in axes]
        sides = [(2 * i >= n).astype(np.int64) for i, n in axes]
        kinds = np.ravel_multi_index((*distances, *sides), (CONVOLUTIONS + 1, CONVOLUTIONS + 1, 2, 2))
        _, first, kind = np.unique(np.asarray(kinds)[~near], return_index=True, return_inverse=True)
        copied = numbers.copy()
        copied[~near] = numbers[~near][first][kind]
        layers = [np.isin(numbers, copied)]
        for _ in range(CONVOLUTIONS):
            layers.insert(0, dilated(layers[0], 1))
        return MapCells(valid, sampled, source, tuple(layers), copied)


def dilated(cells: np.ndarray, distance: int) -> np.ndarray:
    """Extend a bool map to all cells within `distance` rows and columns of a true one."""
    padded = np.pad(cells, distance)
    size = 2 * distance + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
    return np.any(windows, axis=(2, 3))
