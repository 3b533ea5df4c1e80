"""No operator waits for the device: its launches follow from shapes alone, and can be made for tensors without values.

On the device "meta" a tensor has a shape and no values: whatever would read one back raises. `soft_nms` is left out:
the length of its output is data, and its docstring says that it waits.
"""

from __future__ import annotations

import pytest
import torch
from helpers.sampling_plans import PLANS

from bcnet_fast.ops import add_layer_norm, anchor_sampling, difference_attention, match_proposals, reference
from bcnet_fast.ops.reference import most_pairs

pytest.importorskip("triton", minversion="3.2")
common = pytest.importorskip("bcnet_fast.kernels._common")
# `from bcnet_fast.ops import name` gives the function, which hides its module.
MODULES = {f.__name__: __import__(f.__module__, fromlist=["_"]) for f in (
    add_layer_norm, anchor_sampling, difference_attention, match_proposals
)}  # fmt: skip


def meta(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def difference_attention_calls(module):
    query, key, *values = meta(2, 8, 77, 64), *(meta(2, 8, 99, 64) for _ in range(3))
    outputs = module._run(query, key, *values, None)
    yield 1
    module._run_backward(*outputs[:2], (query, key, *values), outputs, None)
    yield 2


def anchor_sampling_calls(module):
    plan = PLANS["gtad"]().to("meta")
    sources, length, bins = len(plan.bins), plan.length, sum(plan.bins)
    features, weight = meta(2, sources, 48, length), meta(bins, 48, 32)
    sampled = module._run_sampling(features, *plan.pack())
    yield sources
    module._run_sampling_backward(sampled, *plan.pack())
    yield sources
    for project_first in (True, False):
        out = module._run_projection(features, weight, meta(32), *plan.pack(), True, project_first)
        yield 1
    module._run_projection_backward(out, features, weight, *plan.pack())
    yield 1


def add_layer_norm_calls(module):
    out, rstd = module._run(meta(3, 77, 400), meta(3, 77, 400), 1e-5)
    yield 1
    module._run_backward(meta(3, 77, 400), out, rstd)
    yield 1


def match_proposals_calls(module):
    scores = [meta(4, 256) for _ in range(2)] + [meta(4, 1218) for _ in range(3)]
    anchors, table = meta(1218, 2, dtype=torch.int64), meta(256, 64, dtype=torch.int32)
    found = module._run(scores, anchors, table, None, [0.7, 0.9, 0.8], None, False)
    assert found[0].shape == (4, most_pairs(256, 64), 2)
    yield 1


@pytest.mark.parametrize("name", MODULES)
def test_operators_launch_without_reading_values(monkeypatch, name):
    launches = []
    monkeypatch.setattr(MODULES[name], "choose", lambda *_: "triton")
    monkeypatch.setattr(common.Launch, "run", lambda launch: launches.append(launch))
    for expected in globals()[f"{name}_calls"](MODULES[name]):
        # The number counts, too: the purpose of a kernel is to be one launch.
        assert len(launches) == expected
        launches.clear()


def test_reference_of_match_proposals_reads_no_values():
    scores = [meta(4, 256) for _ in range(2)] + [meta(4, 1218) for _ in range(3)]
    tables = meta(1218, 2, dtype=torch.int64), meta(256, 64, dtype=torch.int32)
    found = reference.match_proposals(
        *scores, *tables, meta(4, dtype=torch.int64), boundary_threshold=0.7, min_classification=0.9,
        min_regression=0.8, max_snippets=60.0, clamp_boundaries=True,
    )  # fmt: skip
    assert found[1].shape == (4, most_pairs(256, 64))
