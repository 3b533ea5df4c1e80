"""The least time that each operator can take: its FLOPs and bytes against the rates of a GPU, or of this processor.

    python bench/roofline.py [--csv FILE] [--gpu-csv FILE]            about 10 s

The first file gets the floors of this processor (bench/results/roofline_<processor>.csv), the second those of the GPUs
(bench/results/roofline_gpus.csv), which are the same on every machine.

FLOPs are those of the exact algebra that the operator uses (a multiply-add counts 2, an exponential 1); bytes are those
of its inputs and outputs, each moved once. The floor is the longer of FLOPs / rate of matrix products and bytes / rate
of copying. No kernel is run on a GPU here: those rates are the vendor's, and the floors are predictions, not times.
They take inputs and outputs to lie in the GPU's memory; data still in its L2 cache can be read faster.

Rows "network" are for one window of a whole network, with all anchors: its matrix products, and one reading of its
weights. Everything else it does is left out, so these floors err towards too little.

Rates of dense products (where the vendor states the rate with sparsity alone, half of it), with float32 sums:

    RTX 2080 Ti  NVIDIA Turing GPU Architecture whitepaper (WP-09183-001), appendix A, reference clocks
    A100         NVIDIA A100 Tensor Core GPU datasheet, SXM, 40 GB
    H100         NVIDIA H100 Tensor Core GPU Architecture whitepaper, peak rates of SXM5; memory: its datasheet, SXM
    H200         NVIDIA H200 Tensor Core GPU datasheet, SXM; tensor-core rates halved
    B200         NVIDIA Blackwell datasheet, "Individual Blackwell GPU Specifications", HGX B200 (1000 W); tensor-core
                 rates halved. Other configurations differ: 8 TB/s of memory in GB200 and DGX B200
    L4           NVIDIA L4 Tensor Core GPU datasheet; tensor-core rates halved
    RTX 4090     NVIDIA Ada GPU Architecture whitepaper (v2.02), appendix A, table 2: the first number of each pair. The
                 rate of fp16 with float32 sums is half of that with fp16 sums on GeForce
    RTX 5090     NVIDIA RTX Blackwell GPU Architecture whitepaper (v1.1), table 3: as above

The processor's rates are measured: fp32 products of 1536 x 1536 matrices, and a copy into a new tensor that moves as
many bytes as the operator does (from and to counted), both with as many threads as PyTorch uses.
"""

from __future__ import annotations

import csv
import functools
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from support.environment import environment
from support.floors import network_work
from support.soft_nms_cases import MIN_SCORE, SIGMA, clustered
from support.tables import print_table
from support.timing import keep_freed_memory

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.config import ModelConfig
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import bmn_intervals, gtad_regions
from bcnet_fast.networks.reference import NETWORKS
from bcnet_fast.networks.reference.layers import shapes_only
from bcnet_fast.ops.sampling_plan import SamplingPlan, aligned_plan, interpolated_plan
from bcnet_fast.presets import DATA_SETS, PRESETS
from bcnet_fast.storage.output import atomic_text


class Gpu(NamedTuple):
    """Published rates: TFLOP/s of matrix products (tf32 is None where the device has none), GB/s of memory.

    device: the name that PyTorch reports, without "NVIDIA ". Cards of similar names have other rates.
    """

    fp32: float
    tf32: float | None
    fp16: float
    memory: float
    device: str


NAMES = {"bcnet": "BCNet", "bmn": "BMN", "gtad": "G-TAD", "thumos14": "THUMOS14", "activitynet13": "ActivityNet-1.3"}
DTYPES = {"fp32": 4, "tf32": 4, "fp16": 2}  # bytes of an element
GPUS = {
    "RTX 2080 Ti": Gpu(13.4, None, 53.8, 616, "GeForce RTX 2080 Ti"),
    "A100": Gpu(19.5, 156, 312, 1555, "A100-SXM4-40GB"),
    "H100": Gpu(66.9, 494.7, 989.4, 3350, "H100 80GB HBM3"),
    "H200": Gpu(67, 494.5, 989.5, 4800, "H200"),
    "B200": Gpu(75, 1100, 2250, 7700, "B200"),
    "L4": Gpu(30.3, 60, 121, 300, "L4"),
    "RTX 4090": Gpu(82.6, 82.6, 165.2, 1008, "GeForce RTX 4090"),
    "RTX 5090": Gpu(104.8, 104.8, 209.5, 1792, "GeForce RTX 5090"),
}


def known_gpu(device: str) -> Gpu | None:
    """The rates of the device with this name in PyTorch; None for one that is not listed."""
    return next((gpu for gpu in GPUS.values() if gpu.device == device.removeprefix("NVIDIA ")), None)


class Work(NamedTuple):
    """Work of one call: FLOPs that are, or could be, matrix products, and elements read and written."""

    flops: float
    elements: float
    index_bytes: float = 0.0  # data of one size for any dtype: integers, weights of plans, float64 results
    serial: bool = False  # a chain of steps, for one thread

    def bytes(self, itemsize: int) -> float:
        return self.elements * itemsize + self.index_bytes

    def floor_ms(self, tflops: float, gigabytes: float, itemsize: int) -> float:
        return max(self.flops / tflops * 1e-9, self.bytes(itemsize) / gigabytes * 1e-6)


def difference_attention(heads: int, tq: int, tk: int, d: int, dv: int) -> Work:
    flops = heads * tq * tk * (2 * d + 4 * dv + 1)
    return Work(flops, heads * (tq * d + tk * d + 2 * (tk + tq) * dv), heads * tq * 4)


def difference_attention_backward(heads: int, tq: int, tk: int, d: int, dv: int) -> Work:
    # One more logit product, two for each map gradient, value gradient, and one each for query and key.
    flops = heads * tq * tk * (6 * d + 8 * dv + 1)
    return Work(flops, heads * (2 * (tq + tk) * d + (4 * tq + 4 * tk) * dv), heads * tq * 4)


def _plan_bytes(plan: SamplingPlan) -> int:
    return 4 * (plan.first.numel() + plan.offsets.numel() + plan.weights.numel())


def anchor_sampling(plan: SamplingPlan, channels: int) -> Work:
    elements = len(plan.bins) * plan.length * channels + plan.first.numel() * channels
    return Work(2 * plan.taps * channels, elements, _plan_bytes(plan))


def anchor_projection(plan: SamplingPlan, channels: int, outputs: int) -> Work:
    """Work of the strategy "project"."""
    bins = plan.first.shape[1]
    flops = 2 * bins * plan.length * channels * outputs + 2 * plan.taps * outputs
    elements = len(plan.bins) * plan.length * channels + bins * channels * outputs + plan.anchors * outputs
    return Work(flops, elements, _plan_bytes(plan))


def anchor_projection_dense(plan: SamplingPlan, channels: int, outputs: int) -> Work:
    """Work of the public form: a matrix [T, N P] samples, and a convolution projects the stored samples."""
    bins = plan.first.shape[1]
    flops = 2 * bins * plan.anchors * channels * (plan.length + outputs)
    samples = bins * plan.anchors * channels
    elements = bins * plan.anchors * plan.length + 2 * samples + bins * channels * outputs + plan.anchors * outputs
    return Work(flops, elements)


def add_layer_norm(rows: int, size: int) -> Work:
    return Work(0, 3 * rows * size)


def add_layer_norm_backward(rows: int, size: int) -> Work:
    return Work(0, 3 * rows * size, rows * 4)


def match_proposals(windows: int, snippets: int, durations: int, anchors: int) -> Work:
    """Two boundaries, three anchor scores, anchors and table in; per possible pair three float64 and two int32 out."""
    pairs = sum(min(durations, snippets - 1 - start) for start in range(snippets))
    fixed = windows * (32 * pairs + 8) + 16 * anchors + 4 * snippets * durations
    return Work(0, windows * (2 * snippets + 3 * anchors), fixed)


def soft_nms(segments: np.ndarray, scores: np.ndarray, sigma: float, min_score: float) -> Work:
    """Work of Gaussian Soft-NMS on one set: operations on candidates in play that overlap a picked one, over all picks.

    A candidate takes 40 operations: 11 for the tIoU, 24 for the exponential, 5 for the score. Each counts as 2 FLOPs,
    because none may be fused to a multiply-add: the definition fixes every rounding.
    """
    (start, end), left, decays = segments.T, scores.astype(np.float64), 0
    while left.max(initial=0) >= min_score:
        top = left.argmax()
        left[top] = 0
        inter = np.minimum(end, end[top]) - np.maximum(start, start[top])
        overlaps = (inter > 0) & (left > 0)
        decays += np.count_nonzero(overlaps)
        tiou = inter[overlaps] / (end[overlaps] - start[overlaps] + end[top] - start[top] - inter[overlaps])
        left[overlaps] *= np.exp(-np.square(tiou) / sigma)
        left[left < min_score] = 0
    return Work(80 * decays, 0, segments.nbytes + scores.nbytes, serial=True)


def bcnet_plan() -> SamplingPlan:
    return interpolated_plan(make_anchors(256, 64), 256)


def bmn_plan() -> SamplingPlan:
    return interpolated_plan(bmn_intervals(100), 100)


def gtad_plan() -> SamplingPlan:
    return aligned_plan(gtad_regions(256, 64), 256)


def cases() -> Iterator[tuple[str, str, Work]]:
    """(operator, shape, work) of the shapes that BCNet, BMN and G-TAD have, for one window."""
    for name, work in (
        ("difference_attention", difference_attention),
        ("difference_attention backward", difference_attention_backward),
    ):
        yield name, "clip: 8 x 1218 x 1218 x 64", work(8, 1218, 1218, 64, 64)
        yield name, "frame: 8 x 256 x 256 x 64", work(8, 256, 256, 64, 64)
    yield "anchor_sampling", "BCNet: 1218 x 32 x 64", anchor_sampling(bcnet_plan(), 64)
    for shape, plan in (("BMN: 10000 x 32 x 256 -> 512", bmn_plan()), ("G-TAD: 16384 x 32 x 256 -> 512", gtad_plan())):
        yield "anchor_projection", shape, anchor_projection(plan, 256, 512)
        yield "anchor_projection, dense form", shape, anchor_projection_dense(plan, 256, 512)
    segments, scores = clustered(np.random.default_rng(0))
    yield "soft_nms (one of its sets)", "3000 candidates", soft_nms(segments, scores, SIGMA, MIN_SCORE)
    yield "match_proposals", "8 x 256 snippets", match_proposals(8, 256, 64, 1218)
    for rows, size in ((1218, 2048), (256, 400)):
        yield "add_layer_norm", f"{rows} x {size}", add_layer_norm(rows, size)
        yield "add_layer_norm backward", f"{rows} x {size}", add_layer_norm_backward(rows, size)


def networks() -> Iterator[tuple[str, str, Work]]:
    """The same for whole networks."""
    for system, data in itertools.product(PRESETS, DATA_SETS):
        yield "network", f"{NAMES[system]}, {NAMES[data]}", network(PRESETS[system][data].model)


def network(model: ModelConfig, windows: int = 1) -> Work:
    """The products of all windows, and one reading of the weights."""
    with shapes_only():
        weights = sum(parameter.numel() for parameter in NETWORKS[model.name](model).parameters())
    return Work(2 * windows * sum(network_work(model).values()), weights)


def best_seconds(call, runs: int = 7) -> float:
    call()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


@functools.cache
def cpu_tflops() -> float:
    a, b, out = (torch.randn(1536, 1536) for _ in range(3))
    return 2 * 1536**3 / best_seconds(lambda: torch.mm(a, b, out=out)) * 1e-12


@functools.cache
def cpu_gigabytes(moved: int) -> float:
    """GB/s of a copy into a new tensor, as operators make their outputs; `moved` counts bytes read and written."""
    source = torch.ones(max(1, moved // 8))
    return moved / best_seconds(source.clone, 15) * 1e-9


def cpu_floor_ms(work: Work) -> float:
    """The floor of float32 on this processor."""
    moved = int(work.bytes(4))
    threads = torch.get_num_threads() if work.serial else 1
    return work.floor_ms(cpu_tflops() / threads, cpu_gigabytes(moved), 4)


def gpu_floor_us(work: Work, gpu: Gpu, dtype: str) -> float:
    """The floor on a GPU; TF32 where it has none is float32, and a chain of steps is bound by its bytes alone."""
    tflops = getattr(gpu, dtype) or gpu.fp32
    return 1e3 * work._replace(flops=0 if work.serial else work.flops).floor_ms(tflops, gpu.memory, DTYPES[dtype])


def gpu_rows() -> list[list[Any]]:
    """The floors of each operator and network on each GPU, in microseconds."""
    return [
        [name, shape, gpu_name, *(gpu_floor_us(work, gpu, dtype) for dtype in DTYPES)]
        for name, shape, work in itertools.chain(cases(), networks())
        for gpu_name, gpu in GPUS.items()
    ]


def write_table(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    print(f"written: {path}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--csv", type=Path, help="write the floors of this processor to this file")
    parser.add_argument("--gpu-csv", type=Path, help="write the floors of the GPUs to this file")
    args = parser.parse_args(argv)

    keep_freed_memory()
    facts = environment()
    gpu_header = ["operator", "shape", "GPU", *(f"predicted floor {dtype} us" for dtype in DTYPES)]
    on_gpus = gpu_rows()
    print_table(gpu_header, on_gpus)
    print(
        f"\n{facts['device']}, {facts['threads']} threads, torch {facts['torch']}: {1e3 * cpu_tflops():.0f} GFLOP/s\n"
    )
    header = ["operator", "shape", "GFLOP", "MB fp32", "this CPU fp32 ms"]
    rows = [[n, shape, w.flops * 1e-9, w.bytes(4) * 1e-6, cpu_floor_ms(w)] for n, shape, w in cases()]
    print_table(header, rows)
    if args.csv:
        columns = ("device", "threads", "torch", "date")
        write_table(args.csv, [*header, *columns], [[*row, *(facts[c] for c in columns)] for row in rows])
    if args.gpu_csv:
        write_table(args.gpu_csv, gpu_header, on_gpus)
    return 0


if __name__ == "__main__":
    run(main)
