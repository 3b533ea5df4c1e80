"""bench/roofline.py: the published rates, the floors that follow from them, and the committed table of floors."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import roofline

BENCH = Path(roofline.__file__).parent


def test_narrower_products_are_never_slower():
    for gpu in roofline.GPUS.values():
        assert 0 < gpu.fp32 <= (gpu.tf32 or gpu.fp32) <= gpu.fp16
        assert gpu.memory > 0


def test_floors_by_hand():
    # 2 GFLOP and a million elements: bound by products at every precision.
    work = roofline.Work(2e9, 1e6)
    h200 = roofline.GPUS["H200"]
    assert roofline.gpu_floor_us(work, h200, "fp32") == pytest.approx(2e9 / 67e12 * 1e6)
    assert roofline.gpu_floor_us(work, h200, "fp16") == pytest.approx(2e9 / 989.5e12 * 1e6)
    # Three matrices of 1218 x 2048 float32 numbers: bound by the memory of 7.7 TB/s.
    layer_norm = roofline.add_layer_norm(1218, 2048)
    assert roofline.gpu_floor_us(layer_norm, roofline.GPUS["B200"], "fp32") == pytest.approx(29_933_568 / 7.7e6)
    # Without TF32, its floor is that of float32.
    turing = roofline.GPUS["RTX 2080 Ti"]
    assert roofline.gpu_floor_us(work, turing, "tf32") == roofline.gpu_floor_us(work, turing, "fp32")
    # A chain of steps counts its bytes alone.
    assert roofline.gpu_floor_us(roofline.Work(1e15, 0, 4800, serial=True), h200, "fp32") == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", None),
    ],
)
def test_cards_of_similar_names_have_other_rates(device, name):
    assert roofline.known_gpu(device) == (roofline.GPUS[name] if name else None)


@pytest.mark.slow
def test_committed_table_is_what_the_script_computes():
    with (BENCH / "results" / "roofline_gpus.csv").open(newline="", encoding="utf-8") as file:
        committed = list(csv.reader(file))[1:]
    computed = roofline.gpu_rows()
    assert [row[:3] for row in committed] == [row[:3] for row in computed]
    for row, expected in zip(committed, computed, strict=True):
        assert [float(cell) for cell in row[3:]] == pytest.approx(expected[3:], rel=1e-3)
        assert all(float(cell) > 0 for cell in row[3:])
