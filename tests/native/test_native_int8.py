"""C++ layers with weights of 8 bits: exact arithmetic of rounded numbers, with every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.native_layers import (
    BOUND,
    EPS,
    draw,
    error,
    every_set,
    every_shape,
    finished,
    module,
    same_bits,
    within,
    written,
)


def rounded_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of each weight, and the size of a step, row by row."""
    largest = np.abs(weight).max(1)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    steps = (weight / scale[:, None]).astype(np.float64)
    return np.trunc(steps + np.copysign(0.5, steps)).astype(np.int64), scale


def rounded_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Numbers from 0 to 255, the zero point, the size of a step, and where FMA decides the rounding."""
    lowest, highest = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    scale = (highest - lowest) / np.float32(255)
    scale = np.where(scale > 0, scale, np.float32(1))
    zero = np.floor(-lowest * (1 / scale) + np.float32(0.5)).astype(np.int64)
    places = x.astype(np.float64) / scale[:, None] + zero[:, None] + 0.5
    return np.clip(np.floor(places), 0, 255).astype(np.int64), zero, scale, np.abs(places - np.round(places)) < 1e-3


def rounds_clearly(x: np.ndarray) -> np.ndarray:
    """x with zeros where a number lies half-way between two steps."""
    while (unclear := rounded_rows(x)[3] & (x != 0)).any():
        x = np.where(unclear, np.float32(0), x)
    return x


@every_shape
@every_set
def test_int8_is_exact_arithmetic_of_rounded_numbers(rng, instructions, shape):
    rows, inputs, outputs = shape
    x, weight = draw(rng, np.float32, rows, inputs), draw(rng, np.float32, outputs, inputs)
    weight *= np.exp(draw(rng, np.float32, outputs, 1) * 3)
    x *= np.exp(draw(rng, np.float32, rows, 1) * 3)
    x[rows // 2] = 0
    x[rows // 3] = np.abs(x[rows // 3])
    x[rows // 4] = -np.abs(x[rows // 4])
    x[-1] = 3.7
    weight[outputs // 2] = 0
    x = rounds_clearly(x)
    numbers, zero, scale, _ = rounded_rows(x)
    steps, worth = rounded_weight(weight)
    exact = ((numbers - zero[:, None]) @ steps.T) * scale[:, None].astype(np.float64) * worth
    packed = module.PackedWeight(weight, int8=True)
    assert packed.int8
    for relu in (False, True):
        given = {"x": within(x), "weight": packed, "relu": relu, "instruction_set": instructions}
        result = written("linear", rows, outputs, np.float32, **given, threads=2)
        wanted = np.maximum(exact, 0) if relu else exact
        # Three roundings: of the sum, of the product of both scales, and of theirs.
        assert (np.abs(result - wanted) <= 2 * np.finfo(np.float32).eps * np.abs(wanted)).all()
    # The rounding itself is at most half a step. The largest weight has 127 steps, and the range of a row 255.
    assert error(exact, x @ weight.T.astype(np.float64)) < 0.03


@every_set
def test_int8_goes_with_all_that_follows(rng, instructions):
    rows, inputs, outputs, groups = 67, 45, 38, 2
    x = rounds_clearly(draw(rng, np.float32, rows * groups, inputs)).reshape(rows, groups * inputs)
    weight, bias = draw(rng, np.float32, groups * outputs, inputs), draw(rng, np.float32, groups * outputs)
    options = {"bias": bias, "relu": True, "added": draw(rng, np.float32, rows, groups * outputs), "eps": EPS}
    numbers, zero, scale, _ = rounded_rows(x.reshape(rows * groups, inputs))
    steps, worth = rounded_weight(weight)
    values = ((numbers - zero[:, None]) * scale[:, None].astype(np.float64)).reshape(rows, groups, inputs)
    weights = (steps * worth[:, None].astype(np.float64)).reshape(groups, outputs, inputs)
    exact = finished(np.einsum("rgi,goi->rgo", values, weights).reshape(rows, -1), **options)
    given = {"x": x, "weight": module.PackedWeight(weight, groups, int8=True), "instruction_set": instructions}
    result = same_bits("linear", rows, groups * outputs, np.float32, **given, **options)
    assert error(result, exact) < BOUND[np.float32]


@pytest.mark.parametrize("int8", [False, True])
@every_set
def test_feed_forward_has_the_bits_of_two_linear_layers(rng, instructions, int8):
    x = draw(rng, np.float32, 131, 61)
    first, second = (module.PackedWeight(draw(rng, np.float32, *s), int8=int8) for s in ((99, 61), (61, 99)))
    options, end = {"threads": 2, "instruction_set": instructions}, {"added": x, "eps": EPS}
    hidden = written("linear", 131, 99, np.float32, x=x, weight=first, relu=True, **options)
    apart = written("linear", 131, 61, np.float32, x=hidden, weight=second, **end, **options)
    given = {"x": x, "first": first, "second": second, "instruction_set": instructions}
    assert np.array_equal(same_bits("feed_forward", 131, 61, np.float32, **given, **end), apart)


@every_set
def test_int8_of_the_smallest_and_the_largest_numbers(instructions):
    # Steps below the smallest normal number have no inverse: such rows and weights count as zeros.
    x = np.array([[1e-44, -2e-40], [3e38, -3e38], [1e-30, 2e-30]], np.float32)
    weight = np.array([[1, 1], [1e-44, 3e-43]], np.float32)
    packed = module.PackedWeight(weight, int8=True)
    result = written("linear", 3, 2, np.float32, x=x, weight=packed, threads=1, instruction_set=instructions)
    assert not result[0].any() and not result[2, 1]
    assert abs(result[2, 0] / 3e-30 - 1) < 0.01
    assert not np.isfinite(result[1]).any()  # whose range is infinite


@every_set
def test_int8_sums_fit_up_to_the_largest_depth(instructions):
    depth = 66_311  # times 255 * 127
    x, weight = np.ones((1, depth), np.float32), np.ones((1, depth), np.float32)
    for sign in (1, -1):
        packed = module.PackedWeight(sign * weight, int8=True)
        result = written("linear", 1, 1, np.float32, x=x, weight=packed, threads=1, instruction_set=instructions)
        assert abs(result[0, 0] / (sign * depth) - 1) < 1e-6
    with pytest.raises(
        ValueError, match=r"PackedWeight: weight has shape \[1, 66312\], expected at most 66311 inputs for int8"
    ):
        module.PackedWeight(np.ones((1, depth + 1), np.float32), int8=True)
