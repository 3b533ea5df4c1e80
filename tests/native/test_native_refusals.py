"""Errors of the C++ layers: weights and arrays that do not fit, and too little memory."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.native_layers import EPS, draw, module
from helpers.sampling_plans import PLANS

from bcnet_fast.ops.anchor_groups import anchor_groups, packed_plan


def test_weights_that_do_not_fit_are_refused():
    weight = np.ones((64, 6), np.float32)
    for bad, options, message in (
        (weight[0], {}, r"PackedWeight: weight has shape \[6\], expected \[groups \* outputs, inputs\]"),
        (weight[:0], {}, r"PackedWeight: weight has shape \[0, 6\]"),
        (weight[:, :0], {}, r"PackedWeight: weight has shape \[64, 0\]"),
        (weight[None, None], {}, "PackedWeight: weight has shape .* expected .*groups"),
        (weight[None], {"groups": 2}, "PackedWeight: weight has shape .* expected .*groups"),
        (weight, {"groups": 0}, "PackedWeight: weight has shape .* expected .*groups"),
        (weight, {"groups": 5}, "PackedWeight: weight has shape .* expected .*groups"),
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
    with pytest.raises(ValueError, match="PackedWeight: weight has strides"):
        module.PackedWeight(odd)
    for bad in (weight.astype(np.float16), weight.astype(int), weight.tolist()):
        with pytest.raises(TypeError, match="PackedWeight"):
            module.PackedWeight(bad)
    parts, part = module.PackedWeight.unpacked(2, 70, 6), draw(np.random.default_rng(0), np.float32, 2, 32, 6)
    for bad, first, message in (
        (part, 16, "pack_outputs: first is 16 for outputs up to 48, expected both to be multiples of 32"),
        (part[:, :5], 0, "pack_outputs: first is 0 for outputs up to 5, expected both to be multiples of 32"),
        (part, 64, r"pack_outputs: weight has shape \[2, 32, 6\], expected outputs .* of the packed weight"),
        (part, -32, r"pack_outputs: weight has shape \[2, 32, 6\], expected outputs .* of the packed weight"),
        (part, 2**63 - 32, "pack_outputs: weight has shape .*, expected outputs .* of the packed weight"),
        (part[:1], 0, "pack_outputs: weight has shape .*, expected outputs .* of the packed weight"),
        (part[..., :5], 0, "pack_outputs: weight has shape .*, expected outputs .* of the packed weight"),
        (part.astype(np.float64), 0, "pack_outputs: the packed weight is float32, expected float64 to fit weight"),
        (part * np.float32(np.inf), 0, "pack_outputs: weight is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            parts.pack_outputs(bad, first)
    with pytest.raises(ValueError, match="unpacked: outputs is 0, expected"):
        module.PackedWeight.unpacked(2, 0, 6)
    packed = module.PackedWeight(weight)
    for first, last in ((0, 0), (32, 32), (-32, 32), (1, 64), (0, 33), (32, 96), (64, 32)):
        with pytest.raises(
            ValueError, match=rf"part: \[first, last\] is \[{first}, {last}\], expected multiples of 32"
        ):
            packed.part(first, last)
    with pytest.raises(ValueError, match=r"part: .* within 1 group"):
        module.PackedWeight(weight, 2).part(0, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"key": np.zeros((1, 2, 7, 5), np.float32)},
            r"key has shape \[1, 2, 7, 5\], expected \[1, 2, 7, 6\] to fit query",
        ),
        ({"key": np.zeros((1, 2, 0, 6), np.float32)}, "key has shape .*, not empty"),
        ({"query": np.zeros((2, 4, 6), np.float32)}, "query has shape .* expected .*B, H, T, D"),
        ({"value_background": np.zeros((1, 3, 7, 8), np.float32)}, "value_background has shape"),
        ({"value_action": np.zeros((1, 2, 7, 16), np.float32)[..., ::2]}, "value_action has strides"),
        ({"out_action": np.zeros((1, 2, 4, 7), np.float32)}, "out_action has shape"),
        ({"lse": np.zeros((1, 2, 5), np.float32)}, "lse has shape"),
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
    with pytest.raises(ValueError, match=r"runs is \[3, 0, 1\] in row 0, expected existing rows of x"):
        module.linear_runs(base[5:4:-1], np.array([[3, 0, 1]], np.int32), weight, out, threads=1)
    with pytest.raises(ValueError, match=r"x has shape .* not empty"):
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
            "plan": packed_plan(plan),
            "out": array(anchors, 7),
        },
        "project_runs": {
            "x": array(length, 3),
            "sources": array(5, dtype=np.int32),
            "weight": packed(7 * 5, 3, 5),
            "plan": packed_plan(plan),
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
        ("linear", {"x": array(5)}, r"x has shape \[5\]"),
        (
            "linear",
            {"x": array(4, 6)},
            r"x has shape \[4, 6\], expected \[4, 5\] to fit weight \(1 group of 6 outputs and 5 inputs\)",
        ),
        ("linear", {"x": array(4, 10)[:, ::2]}, "x has strides"),
        ("linear", {"x": array(5, 4).T}, "x has strides"),
        ("linear", {"x": array(4, 5)[::-1]}, "x has strides"),
        ("linear", {"x": np.broadcast_to(array(1, 5), (4, 5))}, "x has strides"),
        ("linear", {"out": array(3, 6)}, r"out has shape \[3, 6\]"),
        ("linear", {"out": array(6, 4).T}, "out has strides"),
        ("linear", {"out": fixed}, "out is read-only"),
        ("linear", {"weight": double}, "weight is float64, expected float32 or int8 to fit x"),
        ("linear", {"weight": packed(6, 5, 2)}, r"x has shape \[4, 5\]"),
        ("linear", {"bias": array(5)}, r"bias has shape \[5\], expected \[6\]"),
        ("linear", {"added": array(4, 5)}, r"added has shape \[4, 5\]"),
        ("linear", {"instruction_set": "mmx"}, "instruction_set is mmx"),
        ("feed_forward", {"x": array(4)}, "x has shape"),
        ("feed_forward", {"x": array(4, 7)}, "x has shape"),
        (
            "feed_forward",
            {"second": packed(6, 5)},
            "second is 1 group of 6 outputs and 5 inputs, expected 1 group with 7 inputs to fit first",
        ),
        ("feed_forward", {"second": packed(6, 7, int8=True)}, "second is int8, expected float32 to fit first"),
        ("feed_forward", {"second": packed(12, 7, 2)}, "second is 2 groups"),
        ("feed_forward", {"out": array(4, 7)}, "out has shape"),
        ("feed_forward", {"added": array(4, 7)}, "added has shape"),
        ("folded_feed_forward", {"attention": int8}, "attention is int8, expected float32 to fit x"),
        ("folded_feed_forward", {"second": double}, "second is float64"),
        (
            "folded_feed_forward",
            {"attention": packed(6, 5, 2)},
            "attention is 2 groups of 3 outputs and 5 inputs, expected 1 group",
        ),
        (
            "folded_feed_forward",
            {"folded": packed(8, 5)},
            "second is .*, expected 6 outputs to fit attention and 8 inputs to fit folded",
        ),
        ("folded_feed_forward", {"sums": array(6)}, "sums has shape"),
        ("folded_feed_forward", {"added": array(4, 7)}, "added has shape"),
        ("folded_feed_forward", {"first_of_added": array(4, 6)}, "first_of_added has shape"),
        ("convolution", {"x": array(4, 6)}, "x has shape"),
        ("convolution", {"weight": packed(6, 16)}, "weight is .*, expected inputs in a multiple of 3"),
        ("convolution", {"weight": packed(6, 15, int8=True)}, "weight is int8"),
        ("attention", {"query": array(4)}, "query has shape"),
        ("attention", {"key": array(0, 6)}, "key has shape"),
        ("attention", {"key": array(3, 7)}, "key has shape"),
        ("attention", {"heads": 0}, "heads is 0"),
        ("attention", {"heads": 4}, "heads is 4"),
        ("attention", {"values": []}, "values is a list of 0, expected 1 or 2 arrays"),
        ("attention", {"values": [array(3, 8)] * 3, "outputs": [array(4, 8)] * 3}, "values is a list of 3"),
        ("attention", {"values": [array(2, 8)]}, "values has shape"),
        ("attention", {"outputs": [array(4, 6)]}, "outputs has shape"),
        ("attention", {"scale": -1.0}, "scale is"),
        ("attention", {"scale": 0.0}, "scale is"),
        ("attention", {"scale": np.nan}, "scale is"),
        ("attention", {"scale": np.inf}, "scale is"),
        ("project_anchors", {"x": array(length, 4)}, "x has shape"),
        ("project_anchors", {"x": array(length - 1, 3)}, "plan is"),
        ("project_anchors", {"weight": packed(7 * 5, 3, 5, np.float64)}, "weight is float64"),
        ("project_anchors", {"weight": packed(7 * 5, 3, 5, int8=True)}, "weight is int8"),
        ("project_anchors", {"out": array(anchors, 8)}, "out has shape"),
        ("project_anchors", {"out": array(anchors + 1, 7)}, "plan is"),
        ("project_anchors", {"added": array(anchors, 8)}, "added has shape"),
        (
            "project_anchors",
            {"added": array(anchors, 7), "relu": True},
            "added is an array, expected none, because relu is true",
        ),
        ("project_anchors", {"bias": array(8)}, "bias has shape"),
        ("project_anchors", {"sources": array(4, dtype=np.int32)}, "sources has shape"),
        (
            "project_anchors",
            {"sources": np.full(5, -1, np.int32)},
            "sources is -1 for bin 0, expected a sequence from 0 to 0",
        ),
        (
            "project_anchors",
            {"sources": np.arange(5, dtype=np.int32) // 4},
            "x has shape .* expected equally many rows of 2 sequences",
        ),
        ("project_runs", {"x": array(length, 4)}, "x has shape"),
        ("project_runs", {"weight": packed(7 * 5, 3, 5, np.float64)}, "weight is float64"),
        ("project_runs", {"layer": packed(6, 7, dtype=np.float64)}, "layer is float64"),
        ("project_runs", {"layer": packed(6, 8)}, "layer is .*, expected 1 group with 7 inputs to fit weight"),
        ("project_runs", {"layer": packed(12, 7, 2)}, "layer is .*, expected 1 group with 7 inputs to fit weight"),
        ("project_runs", {"projected": array(7)}, "projected has shape"),
        ("project_runs", {"projected": array(anchors, 6)}, r"projected has shape .*, expected .* a multiple of 128"),
        ("project_runs", {"projected": array(anchors, 8)}, r"projected has shape .*, expected \[P, 7\]"),
        ("project_runs", {"projected": array(anchors + 1, 7)}, "plan is"),
        ("project_runs", {"runs": np.array([[anchors, 0, 1]], np.int32)}, "runs is .*, expected existing rows"),
        ("project_runs", {"out": array(7, 7)}, "out has shape"),
        ("project_runs", {"bias": array(8)}, "bias has shape"),
        ("project_runs", {"layer_bias": array(7)}, "bias has shape"),
        ("linear_runs", {"x": array(5)}, "x has shape"),
        ("linear_runs", {"x": array(8, 5)}, "runs is .*, expected existing rows"),
        ("linear_runs", {"runs": np.array([[0, 0, 1]], np.int32)}, r"runs has shape \[1, 3\], expected \[runs, 4\]"),
        ("linear_runs", {"x": array(9, 10)[:, ::2]}, "x has strides"),
        ("linear_runs", {"runs": array(2, 2, dtype=np.int32)}, "runs has shape"),
        ("linear_runs", {"runs": np.array([[-1, 0, 0, 1]], np.int32)}, "runs is .*, expected existing rows"),
        ("linear_runs", {"runs": np.array([[0, 9, 0, 1]], np.int32)}, "runs is .*, expected existing rows"),
        ("linear_runs", {"runs": np.array([[1, 1, 6, 2]], np.int32)}, "runs is .*, expected existing rows"),
        ("linear_runs", {"runs": np.array([[1, 1, 0, 0]], np.int32)}, "runs is .*, expected existing rows"),
        (
            "linear_runs",
            {"runs": np.array([[1, 1, 3, 2], [1, 1, 4, 1]], np.int32)},
            "runs is .* in row 1, expected .*each once",
        ),
        ("linear_runs", {"runs": np.array([[1, 1, -1, 2]], np.int32)}, "runs is .*, expected existing rows"),
        ("linear_runs", {"runs": np.array([[2**31 - 1, 0, 0, 1]], np.int32)}, "runs is .*, expected existing rows"),
        ("linear_runs", {"weight": packed(12, 5, 2, int8=True)}, "weight is int8"),
        ("linear_runs", {"weight": packed(12, 25, 2)}, "runs is .*, expected existing rows"),
        ("linear_runs", {"out": array(6, 6)}, "runs is .*, expected existing rows"),
        ("linear_runs", {"out": array(7, 7)}, "out has shape"),
        ("linear_runs", {"bias": array(7)}, "bias has shape"),
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


def test_plans_that_would_read_or_write_elsewhere_are_refused():
    plan = PLANS["bcnet"]()
    rows = sum(plan.bins) * plan.length

    def changed(name, place, value):
        array = getattr(anchor_groups(plan), name)
        array[place] = value
        return {name: array}

    groups = anchor_groups(plan)
    for changes, message in [
        ({"order": groups.order[:, 1:].copy()}, "order has shape .*, expected .groups, 8."),
        ({"step": groups.step[1:]}, "step has shape"),
        ({"offsets": groups.offsets[1:]}, "offsets has shape"),
        ({"weights": groups.weights[1:]}, "tap_weights has shape"),
        ({"rows": groups.rows[:, None].copy()}, "tap_rows has shape"),
        (changed("rows", -1, -1), "plan is inconsistent"),
        (changed("rows", 0, rows), "plan is inconsistent"),
        (changed("offsets", -1, len(groups.rows) + 1), "plan is inconsistent"),
        (changed("offsets", 5, len(groups.rows)), "plan is inconsistent"),
        (changed("offsets", 0, 1), "plan is inconsistent"),
        (changed("order", (0, 0), plan.anchors), "plan is inconsistent"),
        (changed("order", (0, 0), -1), "plan is inconsistent"),
        (changed("step", 0, -1), "plan is inconsistent"),
    ]:
        with pytest.raises(ValueError, match=f"^pack_plan: {message}"):
            module.pack_plan(*anchor_groups(plan)._replace(**changes), rows)
    taps = anchor_groups(plan)
    packed = module.pack_plan(*taps, rows)
    assert (packed.anchors, packed.rows) == (plan.anchors, rows)
    assert not any(array.flags.writeable for array in taps)


# Too little memory for the rows between two products, in threads that exist already; then enough again.
STARVED = """
import resource
import numpy as np
import torch
from bcnet_fast.ops import native

x, out = np.ones((200, 1), np.float32), np.full((200, 1), np.nan, np.float32)
small, large = (
    [native.module.PackedWeight(np.ones(s, np.float32)) for s in ((n, 1), (1, n))] for n in (1000, 400_000)
)
native.module.feed_forward(x, *small, out, threads=2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, used + 2**24))
for _ in range(2):
    try:
        native.module.feed_forward(x, *large, out, threads=2)
    except MemoryError:
        out[...] = np.nan
        native.module.feed_forward(x, *small, out, threads=2)
        print((out == 1000).all())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory the way Linux does")
def test_too_little_memory_is_an_error():
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "True"]), done.stderr


def test_no_function_takes_more_than_eight_positional_arguments():
    """Settings and outputs have names where they are given, so that none takes the place of another."""
    signatures = {
        line
        for name, function in vars(module).items()
        for line in (function.__doc__ or "").splitlines()
        if re.match(rf"(\d+\. )?{name}\(.*\) -> ", line)
    }
    assert len(signatures) > 40
    for signature in signatures:
        positional = signature.partition(", *, ")[0]
        assert len(re.findall(r"[(,] ?\w+: ", positional)) <= 8, signature
