"""The native module as its tests call it: random arrays, outputs inside larger arrays of NaN, and exact results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.accuracy import BOUNDS
from helpers.accuracy import error as tensor_error

from bcnet_fast.ops import native

if native.module is None:
    pytest.skip(str(native.reason), allow_module_level=True)

module = native.module
EPS = 1e-5
# Rounding errors of a sum of n products grow with sqrt(n): in float32, 4e-7 of all results at n = 256. Sums are made in
# parts of 256, so the error grows no further, and two layers are within the bound for one operator.
BOUND = {np.float32: BOUNDS[torch.float32], np.float64: BOUNDS[torch.float64]}
# rows, inputs, outputs: around tiles of 12, 6 and 4 rows, panels of 32 columns, and parts of 256 products.
SHAPES = [
    (1, 1, 1),
    (2, 3, 31),
    (7, 13, 33),
    (11, 31, 5),
    (13, 33, 32),
    (31, 255, 17),
    (65, 257, 37),
    (3, 700, 97),
    (256, 400, 400),
]

every_set = pytest.mark.parametrize("instructions", module.INSTRUCTION_SETS)
every_dtype = pytest.mark.parametrize("dtype", BOUND, ids=lambda dtype: dtype.__name__)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def within(array: np.ndarray) -> np.ndarray:
    """The same rows as part of a larger array of NaN, so that a read beyond them shows."""
    frame = np.full((len(array) + 2, array.shape[1] + 5), np.nan, array.dtype)
    frame[1:-1, 3:-2] = array
    return frame[1:-1, 3:-2]


def written(op: str, rows: int, columns: int, dtype, **arguments) -> np.ndarray:
    """Output written to a part of a larger array of NaN, and nowhere else; two outputs are side by side."""
    frame = np.full((rows + 2, columns + 5), np.nan, dtype)
    out = frame[1:-1, 3:-2]
    to = {"outputs": np.split(out, len(arguments["values"]), 1)} if op == "attention" else {"out": out}
    getattr(module, op)(**arguments, **to)
    result = out.copy()
    out[...] = np.nan
    assert np.isnan(frame).all()
    return result


def error(result: np.ndarray, exact: np.ndarray) -> float:
    """`helpers.accuracy.error` of arrays."""
    return tensor_error(torch.from_numpy(np.ascontiguousarray(result)), torch.from_numpy(exact))


def normed(z: np.ndarray) -> np.ndarray:
    return torch.nn.functional.layer_norm(torch.from_numpy(z), z.shape[1:], eps=EPS).numpy()


def finished(z, bias=None, relu=False, added=None, eps=None) -> np.ndarray:
    """The steps after a product, in float64."""
    z = z if bias is None else z + bias
    z = np.maximum(z, 0) if relu else z
    z = z if added is None else z + added.astype(np.float64)
    return z if eps is None else normed(z)


def draw(rng, dtype, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def same_bits(op: str, rows: int, columns: int, dtype, **arguments) -> np.ndarray:
    """The result, which must not depend on the number of threads."""
    one, *others = (written(op, rows, columns, dtype, threads=threads, **arguments) for threads in (1, 2, 3))
    assert all(np.array_equal(one, other) for other in others)
    return one
