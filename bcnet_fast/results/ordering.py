"""The order of equal scores in the public evaluators."""

from __future__ import annotations

import numpy as np


def descending(values: np.ndarray) -> np.ndarray:
    """Indices [..., n] from the largest to the smallest of values [..., n], equal ones in the order of the public code.

    The public code reverses `argsort()`, that is introsort: of equal values the later one comes first in up to 16, and
    what comes first in longer lists is up to the pivots. NumPy now sorts float64 with vector instructions where the
    processor has them, in another order; for long double it has no such code and every machine gives the same order.
    """
    return np.argsort(values.astype(np.longdouble), axis=-1, kind="quicksort")[..., ::-1]
