"""The C++ layers that inference is made of, against float64, with every instruction set.

Outputs are NaN before and lie in a larger array, so that what is not written shows, and what is written beside.
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
    tensor_error,
    within,
    written,
)
from helpers.sampling_plans import PLANS

from bcnet_fast.ops import reference
from bcnet_fast.ops.anchor_groups import anchor_groups

# ---- Layers of float32 and float64


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
    # Here weights and what is folded were rounded too, and few columns may have a small deviation to be divided by.
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


# ---- 8 bits


def rounded_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of each weight and what one is worth, row by row."""
    largest = np.abs(weight).max(1)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    steps = (weight / scale[:, None]).astype(np.float64)
    return np.trunc(steps + np.copysign(0.5, steps)).astype(np.int64), scale


def rounded_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Numbers from 0 to 255, the one that means 0, what a step is worth, and where FMA decides on the rounding."""
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
    # The rounding itself: half a step at most, of which 127 are the largest weight and 255 the range of a row.
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


# ---- Attention

# heads, queries, keys, head size, value size; of keys, those around a panel, and with many more queries than keys.
ATTENTIONS = [
    (1, 1, 1, 1, 1),
    (2, 7, 1, 5, 3),
    (3, 1, 37, 8, 33),
    (1, 13, 31, 32, 31),
    (2, 33, 32, 13, 7),
    (1, 31, 33, 33, 65),
    (2, 1350, 5, 3, 4),
    (8, 256, 256, 50, 50),
]


def attended(query, key, values, heads, scale) -> list[np.ndarray]:
    query, key, *values = (
        torch.from_numpy(a.astype(np.float64)).unflatten(1, (heads, -1)).transpose(0, 1) for a in (query, key, *values)
    )
    weights = (query @ key.mT * scale).softmax(-1)
    return [(weights @ value).transpose(0, 1).flatten(1).numpy() for value in values]


def attention(query, key, values, heads, scale, threads, instructions) -> list[np.ndarray]:
    given = {"query": query, "key": key, "values": values, "heads": heads, "scale": scale}
    options = {"threads": threads, "instruction_set": instructions}
    columns = len(values) * values[0].shape[1]
    return np.split(written("attention", len(query), columns, query.dtype, **given, **options), len(values), 1)


@pytest.mark.parametrize("shape", ATTENTIONS, ids=lambda shape: "x".join(map(str, shape)))
@every_dtype
@every_set
def test_attention(rng, instructions, dtype, shape):
    heads, queries, keys, size, value_size = shape
    query, key = (within(draw(rng, dtype, n, heads * size)) for n in (queries, keys))
    values = [within(draw(rng, dtype, keys, heads * value_size)) for _ in range(2)]
    scale = size**-0.5
    two = attention(query, key, values, heads, scale, 2, instructions)
    for result, exact in zip(two, attended(query, key, values, heads, scale), strict=True):
        assert error(result, exact) < BOUND[dtype]
    for value, result in zip(values, two, strict=True):
        (one,) = attention(query, key, [value], heads, scale, 1, instructions)
        assert np.array_equal(one, result)
    for threads in (1, 3):
        again = attention(query, key, values, heads, scale, threads, instructions)
        assert all(np.array_equal(a, b) for a, b in zip(again, two, strict=True))


@every_dtype
@every_set
def test_attention_of_extreme_logits(rng, instructions, dtype):
    # Whole numbers, whose products are exact: what is left to be wrong is the softmax.
    key = rng.integers(-100, 101, (70, 1)).astype(dtype)
    key[3], key[66] = 100, -100
    query = np.array([[100], [-100], [1], [0], [-3]], dtype)
    value = draw(rng, dtype, 70, 5)
    (result,) = attention(query, key, [value], 1, 1.0, 2, instructions)
    (exact,) = attended(query, key, [value], 1, 1.0)
    assert error(result, exact) < BOUND[dtype]
    for logit in (1e4, -1e4):
        (result,) = attention(np.full((2, 1), logit, dtype), np.ones((70, 1), dtype), [value], 1, 1.0, 1, instructions)
        assert error(result, value.astype(np.float64).mean(0)[None].repeat(2, 0)) < BOUND[dtype]
    # One key is all there is, whatever its logit.
    (result,) = attention(np.full((3, 1), 1e4, dtype), key[:1] - 1e4, [value[:1]], 1, 1.0, 1, instructions)
    assert np.array_equal(result, value[:1].repeat(3, 0))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (33, 70, 5, 31), (13, 131, 64, 97), (1400, 3, 128, 33)])
@pytest.mark.parametrize("scale", [0.3, -0.4])
@every_dtype
@every_set
def test_attention_gradients(rng, instructions, dtype, shape, scale):
    """Of maps in one block of rows and in several, with heads that fill a panel and that do not."""
    queries, keys, size, value_size = shape
    sizes = [(queries, size), (keys, size), (keys, value_size), (keys, value_size)]
    given = [draw(rng, dtype, 1, 3, *s) for s in sizes]
    grads = [draw(rng, dtype, 1, 3, queries, value_size) for _ in range(2)]
    leaves = [torch.from_numpy(x).double().requires_grad_() for x in given]
    outputs = reference.difference_attention(*leaves, scale)
    exact = torch.autograd.grad(outputs, leaves, [torch.from_numpy(g).double() for g in grads])
    results = []
    for threads in (1, 3):
        made = [np.full((1, 3, *s), np.nan, dtype) for s in sizes]
        module.difference_attention_backward(
            *grads, *given, scale, *made, threads=threads, instruction_set=instructions
        )
        results.append(made)
    for one, other, expected in zip(*results, exact, strict=True):
        assert np.array_equal(one, other)
        # With a single key, the gradients of query and key are differences of equal numbers.
        assert keys == 1 or tensor_error(torch.from_numpy(one), expected) < 4 * BOUND[dtype]


# ---- Projection of anchors


@pytest.mark.parametrize("name", PLANS)
@every_dtype
@every_set
def test_project_anchors(rng, instructions, dtype, name):
    plan = PLANS[name]().to(dtype=torch.float64 if dtype is np.float64 else torch.float32)
    groups = list(anchor_groups(plan))
    dense = plan.dense().double().numpy()
    sources = np.repeat(np.arange(len(plan.bins), dtype=np.int32), plan.bins)
    for inputs, outputs in ((1, 1), (13, 31), (32, 32), (5, 67)):
        x = draw(rng, dtype, len(plan.bins) * plan.length, inputs)
        weight = draw(rng, dtype, dense.shape[1] * outputs, inputs)
        packed = module.PackedWeight(weight, dense.shape[1])
        by_bin = weight.reshape(-1, outputs, inputs).astype(np.float64)
        sequences = x.reshape(len(plan.bins), plan.length, inputs)[sources].astype(np.float64)
        exact = np.einsum("pnt,nto->po", dense, np.einsum("ntc,noc->nto", sequences, by_bin))
        bias = draw(rng, dtype, outputs)
        for options in ({}, {"added": draw(rng, dtype, plan.anchors, outputs)}, {"bias": bias, "relu": True}):
            results = []
            for threads in (1, 2, 3):
                frame = np.full((plan.anchors + 2, outputs), np.nan, dtype)
                given = {"threads": threads, "instruction_set": instructions, **options}
                module.project_anchors(x, sources, packed, *groups, frame[1:-1], **given)
                results.append(frame[1:-1].copy())
                assert np.isnan(frame[[0, -1]]).all()
            assert all(np.array_equal(result, results[0]) for result in results)
            assert error(results[0], finished(exact, **options)) < BOUND[dtype]


@every_dtype
@every_set
def test_project_runs(rng, instructions, dtype):
    """A layer on projected anchors has the same bits for any number of columns at a time, and of threads."""
    plan = PLANS["gtad-unequal"]().to(dtype=torch.float64 if dtype is np.float64 else torch.float32)
    groups = list(anchor_groups(plan))
    sources = np.repeat(np.arange(len(plan.bins), dtype=np.int32), plan.bins)
    inputs, columns, bins = 3, 2 * module.RUN_PART + 37, len(sources)
    x = draw(rng, dtype, len(plan.bins) * plan.length, inputs)
    weight, bias = module.PackedWeight(draw(rng, dtype, bins * columns, inputs), bins), draw(rng, dtype, columns)
    anchors = np.empty((plan.anchors, columns), dtype)
    module.project_anchors(x, sources, weight, *groups, anchors, bias=bias, relu=True, threads=2)
    runs = np.array([[7, 0, 1], [100, 1, 65], [0, 70, 7]], np.int32)
    taken = np.concatenate([np.arange(begin, begin + count) for begin, _, count in runs])
    places = np.concatenate([np.arange(begin, begin + count) for _, begin, count in runs])
    for outputs in (1, 33, 64):
        layer = draw(rng, dtype, outputs, columns)
        exact = anchors[taken].astype(np.float64) @ layer.T.astype(np.float64)
        packed = module.PackedWeight(layer)
        for layer_bias in (None, draw(rng, dtype, outputs)):
            results = []
            for at_a_time, threads in ((module.RUN_PART, 1), (2 * module.RUN_PART, 3), (columns, 2)):
                frame = np.full((79, outputs + 2), np.nan, dtype)
                out, projected = frame[1:-1, 1:-1], np.full((plan.anchors, at_a_time), np.nan, dtype)
                options = {"bias": bias, "layer_bias": layer_bias, "threads": threads, "instruction_set": instructions}
                module.project_runs(x, sources, weight, *groups, projected, runs, packed, out, **options)
                results.append(out[places])
                out[places] = np.nan
                assert np.isnan(frame).all()
            assert all(np.array_equal(result, results[0]) for result in results)
            assert error(results[0], finished(exact, bias=layer_bias, relu=True)) < BOUND[dtype]


# ---- Layers on runs of rows


@pytest.mark.parametrize(("columns", "outputs"), [(1, 1), (13, 33), (32, 67), (128, 128)])
@every_dtype
@every_set
def test_linear_runs(rng, instructions, dtype, columns, outputs):
    """Three groups that each take a row of their own and the two after it."""
    groups, inputs = 3, 3 * columns
    x, weight = draw(rng, dtype, 300, columns), draw(rng, dtype, groups * outputs, inputs)
    bias, packed = draw(rng, dtype, outputs), module.PackedWeight(weight, groups)
    runs = np.array([[200, 0, 7, 0, 1], [4, 4, 90, 1, 14], [31, 0, 35, 20, 100], [9, 285, 1, 120, 13]], np.int32)
    runs = np.concatenate([runs, [[290, 297, 0, 139, 1]]]).astype(np.int32)
    taken = np.concatenate([run[:groups, None] + np.arange(run[-1]) for run in runs], axis=1)
    places = np.concatenate([np.arange(begin, begin + count) for *_, begin, count in runs])
    side_by_side = np.lib.stride_tricks.sliding_window_view(x.ravel(), inputs)[::columns].astype(np.float64)
    by_group = weight.reshape(groups, outputs, inputs)
    exact = sum(side_by_side[rows] @ w.T for rows, w in zip(taken, by_group, strict=True))
    for options in ({}, {"relu": True}, {"bias": bias, "relu": True}):
        results = []
        for threads in (1, 2, 3):
            frame = np.full((142, outputs + 5), np.nan, dtype)
            out = frame[1:-1, 3:-2]
            given = {"threads": threads, "instruction_set": instructions, **options}
            module.linear_runs(x, runs, packed, out, **given)
            results.append(out[places].copy())
            out[places] = np.nan
            assert np.isnan(frame).all()
        assert all(np.array_equal(result, results[0]) for result in results)
        assert error(results[0], finished(exact, **options)) < BOUND[dtype]
    module.linear_runs(x, runs[:0], packed, out, threads=2, instruction_set=instructions)
    assert np.isnan(frame).all()
