"""The C++ layers that inference is made of, against float64, with every instruction set.

Outputs start as NaN inside a larger array, so missing writes and writes beside them show.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.native_layers import (
    BOUND,
    EPS,
    SHAPES,
    draw,
    error,
    every_dtype,
    every_set,
    every_shape,
    finished,
    module,
    normed,
    same_bits,
    within,
    written,
)


@every_shape
@every_dtype
@every_set
def test_linear(rng, instructions, dtype, shape):
    rows, inputs, outputs = shape
    x, weight = within(draw(rng, dtype, rows, inputs)), draw(rng, dtype, outputs, inputs)
    bias, added = draw(rng, dtype, outputs), within(draw(rng, dtype, rows, outputs))
    product = x.astype(np.float64) @ weight.T.astype(np.float64)
    packed = module.PackedWeight(weight)
    assert (packed.groups, packed.outputs, packed.inputs, packed.int8) == (1, outputs, inputs, False)
    given = {"x": x, "weight": packed, "threads": 2, "instruction_set": instructions}
    options = [{}, {"relu": True}, {"bias": bias}, {"bias": bias, "relu": True}, {"added": added}]
    if outputs > 1:  # LayerNorm of one column leaves nothing but rounding errors
        options += [{"eps": EPS}, {"bias": bias, "relu": True, "added": added, "eps": EPS}]
    for chosen in options:
        result = written("linear", rows, outputs, dtype, **given, **chosen)
        assert error(result, finished(product, **chosen)) < BOUND[dtype], chosen.keys()


@every_dtype
@every_set
def test_linear_of_groups(rng, instructions, dtype):
    rows, groups, inputs, outputs = 14, 3, 11, 35
    x, weight = draw(rng, dtype, rows, groups, inputs), draw(rng, dtype, groups, outputs, inputs)
    bias, added = draw(rng, dtype, groups * outputs), within(draw(rng, dtype, rows, groups * outputs))
    options = {"bias": bias, "relu": True, "added": added, "eps": EPS}
    product = np.einsum("rgi,goi->rgo", x.astype(np.float64), weight.astype(np.float64))
    packed = module.PackedWeight(weight.reshape(-1, inputs), groups)
    assert (packed.groups, packed.outputs, packed.inputs) == (groups, outputs, inputs)
    given = {"x": within(x.reshape(rows, -1)), "weight": packed, "threads": 2, "instruction_set": instructions}
    result = written("linear", rows, groups * outputs, dtype, **given, **options)
    assert error(result, finished(product.reshape(rows, -1), **options)) < BOUND[dtype]


@every_shape
@every_dtype
@every_set
def test_feed_forward(rng, instructions, dtype, shape):
    rows, columns, hidden = shape
    x, added = (within(draw(rng, dtype, rows, columns)) for _ in range(2))
    first, second = draw(rng, dtype, hidden, columns), draw(rng, dtype, columns, hidden)
    product = np.maximum(x.astype(np.float64) @ first.T, 0) @ second.T.astype(np.float64)
    given = {"x": x, "first": module.PackedWeight(first), "second": module.PackedWeight(second), "threads": 2}
    for options in ({}, {"added": added}, {"added": added, "eps": EPS})[: 2 if columns == 1 else 3]:
        result = written("feed_forward", rows, columns, dtype, **given, **options, instruction_set=instructions)
        assert error(result, finished(product, **options)) < BOUND[dtype], options.keys()


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[1] > 1], ids=lambda shape: "x".join(map(str, shape)))
@every_dtype
@every_set
def test_folded_feed_forward(rng, instructions, dtype, shape):
    rows, columns, hidden = shape
    x, added = within(draw(rng, dtype, rows, columns + 2)), within(draw(rng, dtype, rows, columns))
    shapes = (columns, columns + 2), (hidden, columns), (columns, hidden)
    attention, first, second = (draw(rng, np.float64, *s) / s[1] ** 0.5 for s in shapes)
    y = normed(x @ attention.T + added)
    exact = normed(np.maximum(y @ first.T, 0) @ second.T + y)
    weights = {"attention": attention, "folded": first @ attention, "second": second}
    given = {name: module.PackedWeight(weight.astype(dtype)) for name, weight in weights.items()}
    given |= {"x": x, "added": added, "sums": first.sum(1).astype(dtype), "eps": EPS, "threads": 2}
    given["first_of_added"] = within((added @ first.T).astype(dtype))
    result = written("folded_feed_forward", rows, columns, dtype, **given, instruction_set=instructions)
    # Here the weights and folded terms were rounded too, and few columns may have a small deviation to divide by.
    assert error(result, exact) < 4 * BOUND[dtype]


def layouts(x: np.ndarray) -> dict[str, np.ndarray]:
    """[rows, channels] as arrays of any strides."""
    spread = np.full((len(x) * 2, x.shape[1] * 3), np.nan, x.dtype)[::2, ::3]
    spread[...] = x
    return {
        "rows": within(x),
        "channels first": within(np.ascontiguousarray(x.T)).T,
        "spread": spread,
        "backwards": x[::-1].copy()[::-1],
    }


@pytest.mark.parametrize(
    ("rows", "channels", "outputs", "groups"),
    [(1, 1, 1, 1), (2, 1, 3, 1), (3, 4, 6, 2), (37, 12, 35, 1), (131, 21, 99, 3), (64, 64, 64, 4), (256, 400, 128, 1)],
)
@every_dtype
@every_set
def test_convolution(rng, instructions, dtype, rows, channels, outputs, groups):
    x, weight = draw(rng, dtype, rows, channels), draw(rng, dtype, outputs, channels // groups, 3)
    bias, added = draw(rng, dtype, outputs), within(draw(rng, dtype, rows, outputs))
    exact = (torch.from_numpy(array).double() for array in (x.T.copy(), weight))
    product = torch.nn.functional.conv1d(*exact, padding=1, groups=groups).numpy().T.copy()
    packed = module.PackedWeight(weight.transpose(0, 2, 1).reshape(outputs, -1).copy(), groups)
    given = {"weight": packed, "threads": 2, "instruction_set": instructions}
    for name, layout in layouts(x).items():
        for options in ({}, {"relu": True}, {"bias": bias, "relu": True, "added": added}):
            result = written("convolution", rows, outputs, dtype, x=layout, **given, **options)
            assert error(result, finished(product, **options)) < BOUND[dtype], (name, options.keys())


@every_dtype
@every_set
def test_layers_have_the_same_bits_for_any_number_of_threads(rng, instructions, dtype):
    def packed(outputs: int, inputs: int, groups: int = 1):
        return module.PackedWeight(draw(rng, dtype, outputs, inputs), groups)

    for rows in (1, 2, 131):
        wide, narrow = draw(rng, dtype, rows, 300), draw(rng, dtype, rows, 37)
        given = {"x": wide, "instruction_set": instructions}
        same_bits("linear", rows, 37, dtype, **given, weight=packed(37, 300), eps=EPS)
        networks = {"second": packed(300, 37), "added": wide, "eps": EPS}
        same_bits("feed_forward", rows, 300, dtype, **given, **networks, first=packed(37, 300))
        networks |= {
            "attention": packed(300, 300),
            "folded": packed(37, 300),
            "sums": narrow[0],
            "first_of_added": narrow,
        }
        same_bits("folded_feed_forward", rows, 300, dtype, **given, **networks)
        same_bits("convolution", rows, 36, dtype, **given, weight=packed(36, 450, 2), relu=True)


@every_dtype
@every_set
def test_no_rows_and_no_threads(rng, instructions, dtype):
    weight = module.PackedWeight(draw(rng, dtype, 6, 6))
    key = draw(rng, dtype, 2, 6)
    for rows, threads in ((0, 2), (3, 0), (3, -1)):
        x = draw(rng, dtype, rows, 6)
        calls = {
            "linear": {"x": x, "weight": weight},
            "convolution": {"x": x[:, :2], "weight": weight},
            "attention": {"query": x, "key": key, "values": [key], "heads": 2, "scale": 1.0},
        }
        for op, given in calls.items():
            given["instruction_set"] = instructions
            one, other = (written(op, rows, 6, dtype, **given, threads=n) for n in (1, threads))
            assert np.array_equal(one, other)


@every_dtype
@every_set
def test_layer_norm_of_equal_elements(instructions, dtype):
    for columns in (1, 2, 31, 400):
        given = {"weight": module.PackedWeight(np.ones((columns, 1), dtype)), "eps": EPS, "threads": 1}
        for value in (0.0, 1.0, -3.7, 1e3):
            x = np.full((3, 1), value, dtype)
            result = written("linear", 3, columns, dtype, x=x, **given, instruction_set=instructions)
            # The deviation is 0, so that all there is are the roundings of the mean, over sqrt(EPS).
            assert np.abs(result).max() <= columns * np.finfo(dtype).eps * abs(value) / EPS**0.5


@pytest.mark.parametrize("int8", [False, True])
@every_set
def test_bad_values_stay_in_their_row(rng, instructions, int8):
    x, weight = draw(rng, np.float32, 40, 70), draw(rng, np.float32, 50, 70)
    bad = x.copy()
    bad[3, 0], bad[20, 69], bad[39, 30], bad[39, 31] = np.nan, np.nan, np.inf, -np.inf
    given = {"weight": module.PackedWeight(weight, int8=int8), "threads": 1, "instruction_set": instructions}
    for options in ({"relu": True}, {"eps": EPS}):
        clean, result = (written("linear", 40, 50, np.float32, x=rows, **given, **options) for rows in (x, bad))
        assert np.isnan(result[[3, 20]]).all() and np.isnan(result[39]).any()
        rest = np.delete(np.arange(40), [3, 20, 39])
        assert np.array_equal(result[rest], clean[rest])


@pytest.mark.parametrize("int8", [False, True])
def test_part_is_the_weight_of_those_rows(rng, int8):
    for outputs, cuts in ((64, [(0, 32), (32, 64), (0, 64)]), (75, [(32, 75), (64, 75), (32, 64)])):
        weight, x = draw(rng, np.float32, outputs, 37), draw(rng, np.float32, 9, 37)
        whole = module.PackedWeight(weight, int8=int8)
        for first, last in cuts:
            part, alone = whole.part(first, last), module.PackedWeight(weight[first:last], int8=int8)
            facts = [(w.groups, w.outputs, w.inputs, w.int8, w.nbytes) for w in (part, alone)]
            assert facts[0] == facts[1]
            weights = part, alone, part.part(0, last - first)
            results = [written("linear", 9, last - first, np.float32, x=x, weight=w, threads=1) for w in weights]
            assert all(np.array_equal(result, results[0]) for result in results[1:])
    kept = module.PackedWeight(weight, int8=int8).part(32, 64)  # the whole is gone
    result = written("linear", 9, 32, np.float32, x=x, weight=kept, threads=1)
    assert error(result, x @ weight[32:64].T.astype(np.float64)) < (0.03 if int8 else BOUND[np.float32])


@pytest.mark.parametrize("int8", [False, True])
def test_weights_are_packed_from_any_strides(rng, int8):
    groups, outputs, inputs = 3, 35, 11
    rows = draw(rng, np.float32, 9, groups * inputs)
    stored = draw(rng, np.float32, outputs, inputs, groups)[::-1]  # a group's weights lie apart
    options = {"int8": int8, "threads": 2}
    by_group = stored.transpose(2, 0, 1)
    plain = by_group.reshape(-1, inputs)
    packed = [module.PackedWeight(weight, groups, **options) for weight in (plain.copy(), plain.copy("F"))]
    packed.append(module.PackedWeight(by_group, **options))
    results = [written("linear", 9, groups * outputs, np.float32, x=rows, weight=w, threads=1) for w in packed]
    assert all(np.array_equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("outputs", [32, 71, 160])
@every_dtype
def test_a_weight_can_be_packed_some_outputs_at_a_time(rng, dtype, outputs):
    groups, inputs, rows = 3, 11, 7
    weight, x = draw(rng, dtype, groups, outputs, inputs), draw(rng, dtype, rows, groups * inputs)
    packed = module.PackedWeight.unpacked(groups, outputs, inputs, dtype is np.float64)
    for first in range(0, outputs, 64):
        packed.pack_outputs(weight[:, first : first + 64], first, threads=2)
    given = {"x": x, "threads": 1}
    found, expected = (
        written("linear", rows, groups * outputs, dtype, weight=w, **given)
        for w in (packed, module.PackedWeight(weight))
    )
    assert np.array_equal(found, expected)
