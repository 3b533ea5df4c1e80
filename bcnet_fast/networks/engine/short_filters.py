"""A convolution of many taps in fewer products: three outputs and three taps at a time, in five instead of nine.

The minimal filtering algorithm F(3, 3) of Winograd ("Arithmetic Complexity of Computations", SIAM 1980), by
Toom and Cook's evaluation at the points 0, 1, -1, 2 and infinity. Three outputs of three taps read five inputs d:
y = A^T (G g * B^T d), where g are the taps and * multiplies element by element. Longer filters are sums of groups of
three taps. Group j of outputs 3 q to 3 q + 2 reads the inputs of group 0 of outputs 3 (q + j) on. So each of the five
transformed signals is convolved over q, with one tap for each group.
"""

from __future__ import annotations

import numpy as np

TILE = 3  # outputs, and taps of a group
POINTS = 2 * TILE - 1


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T [outputs, points], G [points, taps], B^T [points, inputs], float64."""

    def at_points(degree: int) -> np.ndarray:
        """Values of the monomials up to a degree, of which the last is that at infinity."""
        values = np.vander([0.0, 1.0, -1.0, 2.0], degree, increasing=True)
        return np.vstack([values, np.eye(degree)[-1:]])

    inputs = np.linalg.inv(at_points(POINTS)).T
    # A row may be scaled as long as the taps' row is scaled inversely: inputs get whole numbers, which are small.
    scale = np.array([2.0, 2.0, 6.0, 6.0, 1.0])
    return at_points(TILE).T.copy(), at_points(TILE) / scale[:, None], np.round(inputs * scale[:, None])


OUTPUTS, TAPS, INPUTS = _matrices()


def transformed_taps(weight: np.ndarray) -> np.ndarray:
    """Weights [outputs, inputs, taps] of whole groups -> float64 [points, groups, outputs, inputs]."""
    outputs, inputs, taps = weight.shape
    groups = weight.astype(np.float64).reshape(outputs, inputs, taps // TILE, TILE)
    return np.einsum("pt,oigt->pgoi", TAPS, groups)


def tiles_of(length: int) -> int:
    """Tiles of outputs of a sequence."""
    return -(-length // TILE)


def input_sums(length: int, taps: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a sequence, and weights, that make the transformed signals: [points * tiles, 1, inputs of a tile].

    There is a tile more for each group of taps but the first. Rows beyond the sequence have weight 0.
    """
    tiles = tiles_of(length) + taps // TILE - 1
    rows = TILE * np.arange(tiles)[:, None] + np.arange(POINTS) - taps // 2
    outside = (rows < 0) | (rows >= length)
    weights = np.where(outside[None], 0, INPUTS[:, None])
    rows = np.broadcast_to(np.where(outside, 0, rows), weights.shape)
    return rows.reshape(-1, 1, POINTS), weights.astype(dtype).reshape(-1, 1, POINTS)


def output_sums(length: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the products [points * tiles], and weights, that make the outputs: [length, 1, points]."""
    tile, place = np.divmod(np.arange(length), TILE)
    rows = tile[:, None] + tiles_of(length) * np.arange(POINTS)
    return rows[:, None].copy(), OUTPUTS[place][:, None].astype(dtype)
