"""What the C++ layers refuse: weights and arrays that do not fit, and a process without memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from test_native_layers import EPS, GROUPS, draw, module
from test_sampling_plan import PLANS


def test_weights_that_do_not_fit_are_refused():
    weight = np.ones((64, 6), np.float32)
    for bad, options, message in (
        (weight[0], {}, r"PackedWeight: weight is \[6\], expected \[groups \* outputs, inputs\]"),
        (weight[:0], {}, r"PackedWeight: weight is \[0, 6\]"),
        (weight[:, :0], {}, r"PackedWeight: weight is \[64, 0\]"),
        (weight[None, None], {}, "PackedWeight: weight is .* expected .*groups"),
        (weight[None], {"groups": 2}, "PackedWeight: weight is .* expected .*groups"),
        (weight, {"groups": 0}, "PackedWeight: weight is .* expected .*groups"),
        (weight, {"groups": 5}, "PackedWeight: weight is .* expected .*groups"),
        (weight.astype(np.float64), {"int8": True}, "PackedWeight: weight is float64, expected float32 for int8"),
    ):
        with pytest.raises(ValueError, match=message):
            module.PackedWeight(bad, **options)
    for value in (np.nan, np.inf, -np.inf):
        bad = weight.copy()
        bad[-1, -1] = value
        for options in ({}, {"int8": True}):
            with pytest.raises(ValueError, match="PackedWeight: weight is not finite"):
                module.PackedWeight(bad, **options)
    odd = np.zeros((64, 25), np.uint8)[:, :24].view(np.float32)  # rows begin inside of an element
    with pytest.raises(ValueError, match="PackedWeight: weight is strided"):
        module.PackedWeight(odd)
    for bad in (weight.astype(np.float16), weight.astype(int), weight.tolist()):
        with pytest.raises(TypeError, match="PackedWeight"):
            module.PackedWeight(bad)
    parts, part = module.PackedWeight.unpacked(2, 70, 6), draw(np.random.default_rng(0), np.float32, 2, 32, 6)
    for bad, first, message in (
        (part, 16, "pack_outputs: first is 16 to 48, expected multiples of 32"),
        (part[:, :5], 0, "pack_outputs: first is 0 to 5, expected multiples of 32"),
        (part, 64, r"pack_outputs: weight is \[2, 32, 6\], expected outputs that the packed one has"),
        (part, -32, r"pack_outputs: weight is \[2, 32, 6\], expected outputs that the packed one has"),
        (part, 2**63 - 32, "pack_outputs: weight is .*, expected outputs that the packed one has"),
        (part[:1], 0, "pack_outputs: weight is .*, expected outputs that the packed one has"),
        (part[..., :5], 0, "pack_outputs: weight is .*, expected outputs that the packed one has"),
        (part.astype(np.float64), 0, "pack_outputs: a weight is of another kind, expected float64"),
        (part * np.float32(np.inf), 0, "pack_outputs: weight is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            parts.pack_outputs(bad, first)
    with pytest.raises(ValueError, match="unpacked: a size is 0, expected"):
        module.PackedWeight.unpacked(2, 0, 6)
    packed = module.PackedWeight(weight)
    for first, last in ((0, 0), (32, 32), (-32, 32), (1, 64), (0, 33), (32, 96), (64, 32)):
        with pytest.raises(ValueError, match=f"part: first or last is {first}, {last}, expected multiples of 32"):
            packed.part(first, last)
    with pytest.raises(ValueError, match=r"part: .* of one group"):
        module.PackedWeight(weight, 2).part(0, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": np.zeros((1, 2, 7, 5), np.float32)}, r"key is \[1, 2, 7, 5\], expected sizes that fit"),
        ({"key": np.zeros((1, 2, 0, 6), np.float32)}, "a sequence is .*, not empty"),
        ({"query": np.zeros((2, 4, 6), np.float32)}, "a sequence is .* expected .*B, H, T, D"),
        ({"value_background": np.zeros((1, 3, 7, 8), np.float32)}, "value_background is"),
        ({"value_action": np.zeros((1, 2, 7, 16), np.float32)[..., ::2]}, "value_action is strided"),
        ({"out_action": np.zeros((1, 2, 4, 7), np.float32)}, "out_action is"),
        ({"lse": np.zeros((1, 2, 5), np.float32)}, "lse is"),
        ({"scale": float("inf")}, "scale is inf"),
    ],
)
def test_heads_that_do_not_fit_are_refused(changes, message):
    shapes = {"query": (4, 6), "key": (7, 6), "value_action": (7, 8), "value_background": (7, 8)}
    shapes |= {"out_action": (4, 8), "out_background": (4, 8), "lse": (4,)}
    given = {name: np.zeros((1, 2, *shape), np.float32) for name, shape in shapes.items()}
    given |= {"scale": 1.0, "threads": 1}
    module.difference_attention(**given)
    with pytest.raises(ValueError, match=message):
        module.difference_attention(**given | changes)


def test_the_stride_of_a_single_row_is_not_used():
    base, weight = np.zeros((9, 8), np.float32), module.PackedWeight(np.ones((6, 8), np.float32))
    out = np.zeros((6, 6), np.float32)
    with pytest.raises(ValueError, match="runs is outside"):
        module.linear_runs(base[5:4:-1], np.array([[3, 0, 1]], np.int32), weight, out, threads=1)
    with pytest.raises(ValueError, match=r"x is .* not empty"):
        module.linear_runs(base[:0], np.array([[0, 0, 1]], np.int32), weight, out, threads=1)


def test_arrays_that_do_not_fit_are_refused():
    def array(*shape, dtype=np.float32):
        return np.zeros(shape, dtype)

    def packed(outputs, inputs, groups=1, dtype=np.float32, int8=False):
        return module.PackedWeight(array(outputs, inputs, dtype=dtype), groups, int8)

    fixed = array(4, 6)
    fixed.flags.writeable = False
    double, int8 = packed(6, 5, dtype=np.float64), packed(6, 5, int8=True)
    convolved = packed(6, 15)
    plan = PLANS["bcnet"]()
    of_plan = {argument: getattr(plan, name).numpy() for name, argument in GROUPS.items()}
    anchors, length = plan.anchors, plan.length
    usual = {
        "linear": {"x": array(4, 5), "weight": packed(6, 5), "out": array(4, 6)},
        "feed_forward": {"x": array(4, 5), "first": packed(7, 5), "second": packed(6, 7), "out": array(4, 6)},
        "folded_feed_forward": {
            "x": array(4, 5),
            "attention": packed(6, 5),
            "folded": packed(7, 5),
            "sums": array(7),
            "second": packed(6, 7),
            "added": array(4, 6),
            "first_of_added": array(4, 7),
            "out": array(4, 6),
            "eps": EPS,
        },
        "convolution": {"x": array(4, 5), "weight": convolved, "out": array(4, 6)},
        "attention": {
            "query": array(4, 6),
            "key": array(3, 6),
            "values": [array(3, 8)],
            "outputs": [array(4, 8)],
            "heads": 2,
            "scale": 1.0,
        },
        "project_anchors": {
            "x": array(length, 3),
            "sources": array(5, dtype=np.int32),
            "weight": packed(7 * 5, 3, 5),
            **of_plan,
            "out": array(anchors, 7),
        },
        "project_runs": {
            "x": array(length, 3),
            "sources": array(5, dtype=np.int32),
            "weight": packed(7 * 5, 3, 5),
            **of_plan,
            "projected": array(anchors, 7),
            "runs": np.array([[1, 0, 4], [5, 4, 3]], np.int32),
            "layer": packed(6, 7),
            "out": array(7, 6),
        },
        "linear_runs": {
            "x": array(9, 5),
            "runs": np.array([[0, 2, 0, 4], [4, 6, 4, 3]], np.int32),
            "weight": packed(12, 5, 2),
            "out": array(7, 6),
        },
    }
    cases = [
        ("linear", {"x": array(5)}, r"x is \[5\]"),
        ("linear", {"x": array(4, 6)}, r"x is \[4, 6\], expected rows that lie together, \[4, 5\]"),
        ("linear", {"x": array(4, 10)[:, ::2]}, "x is strided"),
        ("linear", {"x": array(5, 4).T}, "x is strided"),
        ("linear", {"x": array(4, 5)[::-1]}, "x is strided"),
        ("linear", {"x": np.broadcast_to(array(1, 5), (4, 5))}, "x is strided"),
        ("linear", {"out": array(3, 6)}, r"out is \[3, 6\]"),
        ("linear", {"out": array(6, 4).T}, "out is strided"),
        ("linear", {"out": fixed}, "out is read-only"),
        ("linear", {"weight": double}, "a weight is of another kind, expected float32"),
        ("linear", {"weight": packed(6, 5, 2)}, r"x is \[4, 5\]"),
        ("linear", {"bias": array(5)}, r"bias is \[5\], expected \[6\]"),
        ("linear", {"added": array(4, 5)}, r"added is \[4, 5\]"),
        ("linear", {"instruction_set": "mmx"}, "instruction_set is mmx"),
        ("feed_forward", {"x": array(4)}, "x is"),
        ("feed_forward", {"x": array(4, 7)}, "x is"),
        ("feed_forward", {"second": packed(6, 5)}, "second is unlike"),
        ("feed_forward", {"second": packed(6, 7, int8=True)}, "second is unlike"),
        ("feed_forward", {"second": packed(12, 7, 2)}, "second is unlike"),
        ("feed_forward", {"out": array(4, 7)}, "out is"),
        ("feed_forward", {"added": array(4, 7)}, "added is"),
        ("folded_feed_forward", {"attention": int8}, "a weight is of another kind"),
        ("folded_feed_forward", {"second": double}, "a weight is of another kind"),
        ("folded_feed_forward", {"attention": packed(6, 5, 2)}, "a weight is of groups"),
        ("folded_feed_forward", {"folded": packed(8, 5)}, "the weights is of other sizes"),
        ("folded_feed_forward", {"sums": array(6)}, "sums is"),
        ("folded_feed_forward", {"added": array(4, 7)}, "added is"),
        ("folded_feed_forward", {"first_of_added": array(4, 6)}, "first_of_added is"),
        ("convolution", {"x": array(4, 6)}, "x is"),
        ("convolution", {"weight": packed(6, 16)}, "weight is of other inputs"),
        ("convolution", {"weight": packed(6, 15, int8=True)}, "a weight is of another kind"),
        ("attention", {"query": array(4)}, "query or key is"),
        ("attention", {"key": array(0, 6)}, "key is"),
        ("attention", {"key": array(3, 7)}, "key is"),
        ("attention", {"heads": 0}, "heads is 0"),
        ("attention", {"heads": 4}, "heads is 4"),
        ("attention", {"values": []}, "values is"),
        ("attention", {"values": [array(3, 8)] * 3, "outputs": [array(4, 8)] * 3}, "values is"),
        ("attention", {"values": [array(2, 8)]}, "values is"),
        ("attention", {"outputs": [array(4, 6)]}, "outputs is"),
        ("attention", {"scale": -1.0}, "scale is"),
        ("attention", {"scale": 0.0}, "scale is"),
        ("attention", {"scale": np.nan}, "scale is"),
        ("attention", {"scale": np.inf}, "scale is"),
        ("project_anchors", {"x": array(length, 4)}, "x is"),
        ("project_anchors", {"x": array(length - 1, 3)}, "the plan is"),
        ("project_anchors", {"weight": packed(7 * 5, 3, 5, np.float64)}, "a weight is of another kind"),
        ("project_anchors", {"weight": packed(7 * 5, 3, 5, int8=True)}, "a weight is of another kind"),
        ("project_anchors", {"out": array(anchors, 8)}, "out is"),
        ("project_anchors", {"out": array(anchors + 1, 7)}, "the plan is"),
        ("project_anchors", {"added": array(anchors, 8)}, "added is"),
        ("project_anchors", {"added": array(anchors, 7), "relu": True}, "added is given, expected none with ReLU"),
        ("project_anchors", {"bias": array(8)}, "bias is"),
        ("project_anchors", {"sources": array(4, dtype=np.int32)}, "sources is"),
        ("project_anchors", {"sources": np.full(5, -1, np.int32)}, "sources is"),
        ("project_anchors", {"sources": np.arange(5, dtype=np.int32) // 4}, "x is .*as many rows of each sequence"),
        ("project_runs", {"x": array(length, 4)}, "x is"),
        ("project_runs", {"weight": packed(7 * 5, 3, 5, np.float64)}, "a weight is of another kind"),
        ("project_runs", {"layer": packed(6, 7, dtype=np.float64)}, "a weight is of another kind"),
        ("project_runs", {"layer": packed(6, 8)}, "layer is unlike"),
        ("project_runs", {"layer": packed(12, 7, 2)}, "layer is unlike"),
        ("project_runs", {"projected": array(7)}, "projected is"),
        ("project_runs", {"projected": array(anchors, 6)}, r"projected is .*, expected .* a multiple of 128"),
        ("project_runs", {"projected": array(anchors, 8)}, r"projected is .*, expected all outputs of the weight"),
        ("project_runs", {"projected": array(anchors + 1, 7)}, "the plan is"),
        ("project_runs", {"runs": np.array([[anchors, 0, 1]], np.int32)}, "runs is outside"),
        ("project_runs", {"out": array(7, 7)}, "out is"),
        ("project_runs", {"bias": array(8)}, "bias is"),
        ("project_runs", {"layer_bias": array(7)}, "bias is"),
        ("linear_runs", {"x": array(5)}, "x is"),
        ("linear_runs", {"x": array(8, 5)}, "runs is outside"),
        ("linear_runs", {"runs": np.array([[0, 0, 1]], np.int32)}, r"runs is \[1, 3\], expected \[runs, 4\]"),
        ("linear_runs", {"x": array(9, 10)[:, ::2]}, "x is strided"),
        ("linear_runs", {"runs": array(2, 2, dtype=np.int32)}, "runs is"),
        ("linear_runs", {"runs": np.array([[-1, 0, 0, 1]], np.int32)}, "runs is outside"),
        ("linear_runs", {"runs": np.array([[0, 9, 0, 1]], np.int32)}, "runs is outside"),
        ("linear_runs", {"runs": np.array([[1, 1, 6, 2]], np.int32)}, "runs is outside"),
        ("linear_runs", {"runs": np.array([[1, 1, 0, 0]], np.int32)}, "runs is outside"),
        ("linear_runs", {"runs": np.array([[1, 1, 3, 2], [1, 1, 4, 1]], np.int32)}, "runs is outside, .*each once"),
        ("linear_runs", {"runs": np.array([[1, 1, -1, 2]], np.int32)}, "runs is outside"),
        ("linear_runs", {"runs": np.array([[2**31 - 1, 0, 0, 1]], np.int32)}, "runs is outside"),
        ("linear_runs", {"weight": packed(12, 5, 2, int8=True)}, "a weight is of another kind"),
        ("linear_runs", {"weight": packed(12, 25, 2)}, "runs is outside"),
        ("linear_runs", {"out": array(6, 6)}, "runs is outside"),
        ("linear_runs", {"out": array(7, 7)}, "out is"),
        ("linear_runs", {"bias": array(7)}, "bias is"),
    ]
    for op, changes, message in cases:
        with pytest.raises(ValueError, match=f"^{op}: {message}"):
            getattr(module, op)(**{**usual[op], "threads": 1, **changes})
    for op, arguments in usual.items():
        getattr(module, op)(**arguments, threads=1)
        for name, value in arguments.items():
            if isinstance(value, np.ndarray):
                with pytest.raises(TypeError, match=f"^{op}"):
                    getattr(module, op)(**{**arguments, name: value.astype(np.float16)}, threads=1)


# Too little memory for the rows between two products, in threads that exist already; then enough again.
STARVED = """
import resource
import numpy as np
import torch
from bcnet_fast import _native

x, out = np.ones((200, 1), np.float32), np.full((200, 1), np.nan, np.float32)
small, large = (
    [_native.module.PackedWeight(np.ones(s, np.float32)) for s in ((n, 1), (1, n))] for n in (1000, 400_000)
)
_native.module.feed_forward(x, *small, out, threads=2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, used + 2**24))
for _ in range(2):
    try:
        _native.module.feed_forward(x, *large, out, threads=2)
    except MemoryError:
        out[...] = np.nan
        _native.module.feed_forward(x, *small, out, threads=2)
        print((out == 1000).all())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory the way Linux does")
def test_too_little_memory_is_an_error():
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "True"]), done.stderr
