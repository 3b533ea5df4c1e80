"""bench/aot.py: launches compile without a GPU, and the results of every version of Triton are counted."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest
from helpers.paths import ROOT

VERSIONS = ROOT / "bench" / "results" / "aot_triton_versions.csv"
COMPILE = """
import aot, json, subprocess, tempfile
launches = ("add_layer_norm", 90), ("anchor_sampling", 75), ("difference_attention", 90)
rows = [aot.measure((family, target, 0)) for family, target in launches]
ptx = aot.compile_launch(next(aot.KERNELS["add_layer_norm"](90)).launch, 90).asm["ptx"]
matching = aot.compile_launch(list(aot.KERNELS["match_proposals"](90))[4].launch, 90).asm["cubin"]
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(matching)
    file.flush()
    code = subprocess.run([aot.TOOLS / "cuobjdump", "-sass", file.name], check=True, capture_output=True, text=True)
print(json.dumps([rows, ptx, ["DMUL" in code.stdout, "DFMA" in code.stdout]]))
"""
ROW = {"kernel": "add_layer_norm_forward", "dtype": "fp16", "target": "sm_75"}
ROW |= {"registers": 40, "spill_bytes": 0, "blocks_per_sm": 4}
ROWS = [ROW, ROW | {"spill_bytes": 8}, ROW | {"blocks_per_sm": 0}, ROW | {"dtype": "bf16", "registers": ""}]


def run(code: str) -> object:
    """Output of `code` as JSON, in a process whose Triton is the compiler and not the interpreter."""
    pytest.importorskip("triton", minversion="3.2")
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "bench",
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "TRITON_DEFAULT_FP_FUSION" not in result.stderr  # Triton 3.9 warns unless the kernel states its choice.
    return json.loads(result.stdout)


def test_launches_compile_without_a_gpu():
    (layer_norm, projection, attention), ptx, (products, fused) = run(COMPILE)
    assert layer_norm["kernel"] == "add_layer_norm_forward" and layer_norm["target"] == "sm_90"
    assert projection["kernel"] == "anchor_sampling_projection" and projection["target"] == "sm_75"
    assert attention["kernel"] == "difference_attention_forward" and attention["wgmma"] > 0
    for row in (layer_norm, projection, attention):
        assert row["dtype"] == "fp16" and row["registers"] > 0 and row["load128"] > 0
        assert row["spill_bytes"] == 0 and row["blocks_per_sm"] > 0
    assert ".target sm_90" in ptx and "fma.rn.f32" in ptx
    assert products and not fused  # match_proposals has the bits of the CPU


def test_summary_keeps_the_rows_of_other_versions(tmp_path, monkeypatch):
    aot = pytest.importorskip("aot", reason="needs Triton")
    path, family = tmp_path / "summary.csv", ["add_layer_norm"]
    aot.merge_summary(path, aot.summarize(ROWS, family, [75, 120]))
    monkeypatch.setattr(aot, "COMPILER", "triton 3.2.0")
    for rows in (ROWS[:1], ROWS[:2]):
        aot.merge_summary(path, aot.summarize(rows, family, [75]))
    assert sum(map(aot.is_bad, ROWS)) == 3
    with path.open(newline="", encoding="utf-8") as file:
        old, mine, unknown = csv.DictReader(file)
    counts = ("variants", "compiled", "spilling", "not_fitting")
    assert old["compiler"] == "triton 3.2.0" and [old[c] for c in counts] == ["2", "2", "1", "0"]
    assert [mine[c] for c in counts] == ["4", "3", "1", "1"]
    assert mine["note"] == "does not compile: bf16; spills at most 8 bytes a thread"
    assert unknown["target"] == "sm_120" and unknown["note"] == "not a target of this Triton"


def test_variants_fit_with_every_version_of_triton_in_the_table():
    with VERSIONS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counted = {row["compiler"].rpartition(".")[0] for row in rows}
    assert counted >= {f"triton 3.{minor}" for minor in range(2, 10)}
    assert all(row["not_fitting"] == "0" for row in rows)
    # Only bfloat16 on Turing, which has no such instructions, and only with the oldest version.
    failing = {(r["compiler"], r["target"], r["note"]) for r in rows if int(r["compiled"]) < int(r["variants"])}
    assert failing == {("triton 3.2.0", "sm_75", "does not compile: bf16")}
    unknown = {(r["compiler"], r["target"]) for r in rows if r["variants"] == "0"}
    assert unknown == {("triton 3.2.0", "sm_100"), ("triton 3.2.0", "sm_120")}
