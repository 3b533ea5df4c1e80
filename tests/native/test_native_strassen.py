"""Products of float32 by Strassen's algorithm, against float64, with every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.native_layers import (
    BOUND,
    EPS,
    draw,
    error,
    every_set,
    finished,
    module,
    normed,
    same_bits,
    within,
    written,
)

# Twice that of plain products: sums of quarters are longer, and errors of their products add up. On normal numbers they
# are 6e-7 of all results in float32 at any depth, where those of plain products are 3e-7.
STRASSEN_BOUND = 2 * BOUND[np.float32]
# rows, inputs, outputs: around pairs of rows and of panels, tiles of pairs, and parts of the depth.
SHAPES = [
    (1, 2, 64),
    (2, 2, 63),
    (2, 4, 64),
    (3, 34, 65),
    (23, 510, 128),
    (24, 512, 97),
    (25, 514, 131),
    (51, 1030, 200),
    (97, 2, 400),
    (256, 400, 400),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def packed(weight: np.ndarray, groups: int = 1):
    return module.PackedWeight(weight, groups, strassen=True)


@every_shape
@every_set
def test_linear(rng, instructions, shape):
    rows, inputs, outputs = shape
    x, weight = within(draw(rng, np.float32, rows, inputs)), draw(rng, np.float32, outputs, inputs)
    bias, added = draw(rng, np.float32, outputs), within(draw(rng, np.float32, rows, outputs))
    product = x.astype(np.float64) @ weight.T.astype(np.float64)
    given = {"x": x, "weight": packed(weight), "threads": 2, "instruction_set": instructions}
    for chosen in ({}, {"relu": True}, {"bias": bias, "relu": True, "added": added, "eps": EPS}):
        result = written("linear", rows, outputs, np.float32, **given, **chosen)
        assert error(result, finished(product, **chosen)) < STRASSEN_BOUND, chosen.keys()


@every_set
def test_groups_and_parts(rng, instructions):
    rows, groups, inputs, outputs = 29, 3, 22, 131
    x, weight = draw(rng, np.float32, rows, groups, inputs), draw(rng, np.float32, groups, outputs, inputs)
    product = np.einsum("rgi,goi->rgo", x.astype(np.float64), weight.astype(np.float64)).reshape(rows, -1)
    given = {"threads": 2, "instruction_set": instructions}
    whole = packed(weight.reshape(-1, inputs), groups)
    result = written("linear", rows, groups * outputs, np.float32, x=x.reshape(rows, -1).copy(), weight=whole, **given)
    assert error(result, product) < STRASSEN_BOUND
    part = packed(weight[0]).part(32, outputs)  # which has partners of its own
    result = written("linear", rows, outputs - 32, np.float32, x=within(x[:, 0]), weight=part, **given)
    assert error(result, product[:, 32:outputs]) < STRASSEN_BOUND


@pytest.mark.parametrize("shape", [(31, 66, 130), (2, 64, 600), (200, 514, 64), (643, 64, 130)], ids=str)
@every_set
def test_feed_forward_networks(rng, instructions, shape):
    rows, columns, hidden = shape
    x, added = (within(draw(rng, np.float32, rows, columns)) for _ in range(2))
    attention, first, second = (
        draw(rng, np.float64, *s) / s[1] ** 0.5 for s in ((columns, columns), (hidden, columns), (columns, hidden))
    )
    options = {"added": added, "threads": 2, "eps": EPS, "instruction_set": instructions}
    weights = {"first": packed(first.astype(np.float32)), "second": packed(second.astype(np.float32))}
    result = written("feed_forward", rows, columns, np.float32, x=x, **weights, **options)
    exact = normed(np.maximum(x @ first.T, 0) @ second.T + added)
    assert error(result, exact) < 2 * STRASSEN_BOUND

    y = normed(x @ attention.T + added)
    folded = {"attention": attention, "folded": first @ attention, "second": second}
    given = {name: packed(weight.astype(np.float32)) for name, weight in folded.items()}
    given |= {"sums": first.sum(1).astype(np.float32), "first_of_added": within((added @ first.T).astype(np.float32))}
    result = written("folded_feed_forward", rows, columns, np.float32, x=x, **given, **options)
    assert error(result, normed(np.maximum(y @ first.T, 0) @ second.T + y)) < 4 * STRASSEN_BOUND


@every_set
def test_a_row_depends_on_its_pair_alone(rng, instructions):
    """Results therefore have the same bits for any number of threads, and NaN spreads no further."""
    rows, inputs, outputs = 131, 300, 150
    x, weight = draw(rng, np.float32, rows, inputs), packed(draw(rng, np.float32, outputs, inputs))
    given = {"weight": weight, "relu": True, "instruction_set": instructions}
    whole = same_bits("linear", rows, outputs, np.float32, x=x, **given)
    for first, last in ((0, 2), (40, 62), (100, rows)):
        some = written("linear", last - first, outputs, np.float32, x=x[first:last], threads=1, **given)
        assert np.array_equal(some, whole[first:last])
    rest = np.delete(np.arange(rows), [16, 17])
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[17, 3] = value
        result = written("linear", rows, outputs, np.float32, x=bad, threads=2, **given)
        assert not np.isfinite(result[17][result[17] != 0]).any()
        assert np.array_equal(result[rest], whole[rest])


@every_set
def test_errors_are_relative_to_the_larger_row_of_a_pair(rng, instructions):
    x, weight = draw(rng, np.float32, 40, 512), draw(rng, np.float32, 256, 512)
    x[::2] *= 1e-4
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    result = written("linear", 40, 256, np.float32, x=x, weight=packed(weight), threads=2, instruction_set=instructions)
    assert error(result[1::2], exact[1::2]) < STRASSEN_BOUND
    assert error(result[::2], exact[::2]) < 1e4 * STRASSEN_BOUND


@every_set
def test_networks_have_the_same_bits_for_any_number_of_threads(rng, instructions):
    rows, columns, hidden = 271, 66, 150
    x, more = draw(rng, np.float32, rows, columns), draw(rng, np.float32, rows, hidden)
    first, second = draw(rng, np.float32, hidden, columns), draw(rng, np.float32, columns, hidden)
    given = {"x": x, "added": x, "eps": EPS, "instruction_set": instructions}
    for one, other in ((packed(first), packed(second)), (module.PackedWeight(first), packed(second))):
        same_bits("feed_forward", rows, columns, np.float32, **given, first=one, second=other)
    given |= {"attention": packed(draw(rng, np.float32, columns, columns)), "folded": packed(first), "sums": more[0]}
    same_bits("folded_feed_forward", rows, columns, np.float32, **given, second=packed(second), first_of_added=more)


def test_what_it_is_not_for(rng):
    for dtype, inputs, options in ((np.float32, 7, {}), (np.float32, 8, {"int8": True}), (np.float64, 8, {})):
        with pytest.raises(ValueError, match="float32 and an even number of inputs"):
            module.PackedWeight(draw(rng, dtype, 64, inputs), strassen=True, **options)
