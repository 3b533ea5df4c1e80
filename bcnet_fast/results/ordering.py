"""Order of equal scores, as in the public evaluators."""

from __future__ import annotations

import numpy as np


def descending(values: np.ndarray) -> np.ndarray:
    """Sort values [..., n] in descending order and return indices [..., n]; ties are ordered as in the public code.

    The public code reverses `argsort()`, an introsort: in lists of up to 16, the later of equal values comes first; in
    longer lists the pivots decide. For float64, NumPy may use vector instructions that order ties differently. It has
    none for long double, so that every machine gives the same order.
    """
    return np.argsort(values.astype(np.longdouble), axis=-1, kind="quicksort")[..., ::-1]
