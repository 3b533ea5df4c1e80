"""Attention in C++ and its gradients, against float64, with every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.native_layers import BOUND, draw, error, every_dtype, every_set, module, tensor_error, within, written

from bcnet_fast.ops import reference

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
    # Products of whole numbers are exact, so only the softmax can be wrong.
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
    # A single key has weight 1, whatever its logit.
    (result,) = attention(np.full((3, 1), 1e4, dtype), key[:1] - 1e4, [value[:1]], 1, 1.0, 1, instructions)
    assert np.array_equal(result, value[:1].repeat(3, 0))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (33, 70, 5, 31), (13, 131, 64, 97), (1400, 3, 128, 33)])
@pytest.mark.parametrize("scale", [0.3, -0.4])
@every_dtype
@every_set
def test_attention_gradients(rng, instructions, dtype, shape, scale):
    """Maps lie in one block of rows or in several; heads fill a panel or do not."""
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
        outputs = dict(zip(("of_query", "of_key", "of_action", "of_background"), made, strict=True))
        options = {"threads": threads, "instruction_set": instructions}
        module.difference_attention_backward(*grads, *given, scale, **outputs, **options)
        results.append(made)
    for one, other, expected in zip(*results, exact, strict=True):
        assert np.array_equal(one, other)
        # With a single key, the gradients of query and key are differences of equal numbers.
        assert keys == 1 or tensor_error(torch.from_numpy(one), expected) < 4 * BOUND[dtype]
