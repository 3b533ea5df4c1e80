"""Projection of anchors in C++, and layers on runs of their rows, against float64, with every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.native_layers import BOUND, draw, error, every_dtype, every_set, finished, module
from helpers.sampling_plans import PLANS

from bcnet_fast.ops.anchor_groups import packed_plan


@pytest.mark.parametrize("name", PLANS)
@every_dtype
@every_set
def test_project_anchors(rng, instructions, dtype, name):
    plan = PLANS[name]().to(dtype=torch.float64 if dtype is np.float64 else torch.float32)
    of_plan = packed_plan(plan)
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
                module.project_anchors(x, sources, packed, of_plan, frame[1:-1], **given)
                results.append(frame[1:-1].copy())
                assert np.isnan(frame[[0, -1]]).all()
            assert all(np.array_equal(result, results[0]) for result in results)
            assert error(results[0], finished(exact, **options)) < BOUND[dtype]


@every_dtype
@every_set
def test_project_runs(rng, instructions, dtype):
    """A layer on projected anchors has the same bits for any number of columns at a time, and of threads."""
    plan = PLANS["gtad-unequal"]().to(dtype=torch.float64 if dtype is np.float64 else torch.float32)
    of_plan = packed_plan(plan)
    sources = np.repeat(np.arange(len(plan.bins), dtype=np.int32), plan.bins)
    inputs, columns, bins = 3, 2 * module.RUN_PART + 37, len(sources)
    x = draw(rng, dtype, len(plan.bins) * plan.length, inputs)
    weight, bias = module.PackedWeight(draw(rng, dtype, bins * columns, inputs), bins), draw(rng, dtype, columns)
    anchors = np.empty((plan.anchors, columns), dtype)
    module.project_anchors(x, sources, weight, of_plan, anchors, bias=bias, relu=True, threads=2)
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
                module.project_runs(x, sources, weight, of_plan, projected, runs, packed, out, **options)
                results.append(out[places])
                out[places] = np.nan
                assert np.isnan(frame).all()
            assert all(np.array_equal(result, results[0]) for result in results)
            assert error(results[0], finished(exact, bias=layer_bias, relu=True)) < BOUND[dtype]


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
