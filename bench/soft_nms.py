"""Soft-NMS: this package beside a scalar C++ loop as public systems compile it, and beside the loop in plain Python.

    python bench/soft_nms.py [--csv FILE]            needs a C++ compiler (c++, or the one that CXX names)

"native" and "scalar C++" are the compiled functions themselves; "ops.soft_nms" is the public function, with its checks
and PyTorch's dispatch around the native one. All run in this process, on the same inputs, in turn. Before anything is
timed, all must have picked the same segments in the same order, with scores equal to 1e-6. Gaussian, sigma 0.5,
min_score 0.001, until no candidate is left.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import alternate, environment, print_table, write_csv  # noqa: E402

from bcnet_fast.cli.parser import Parser, run  # noqa: E402
from bcnet_fast.errors import BackendError, InputError  # noqa: E402
from bcnet_fast.ops import native as _native  # noqa: E402
from bcnet_fast.ops import soft_nms, use_backend  # noqa: E402

SIGMA, MIN_SCORE = 0.5, 0.001
EPSILON = {torch.float32: 1e-6, torch.float64: 0.0}


def compile_scalar(folder: Path) -> ctypes.CDLL:
    """Build soft_nms_scalar.cpp as a shared library, with the optimisation that setuptools gives public extensions."""
    library = folder / "soft_nms_scalar.so"
    source = Path(__file__).with_name("soft_nms_scalar.cpp")
    command = [os.environ.get("CXX", "c++"), "-O3", "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(library)]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"{source}: expected a C++ compiler to build the baseline with, found: {error}") from error
    loaded = ctypes.CDLL(str(library))
    for name, number in (("float", ctypes.c_float), ("double", ctypes.c_double)):
        function = getattr(loaded, f"soft_nms_scalar_{name}")
        pointer = ctypes.c_void_p
        function.argtypes = [pointer, pointer, ctypes.c_int64, ctypes.c_int, *[number] * 4, *[pointer] * 5]
        function.restype = ctypes.c_int64
    return loaded


class Scalar:
    """The scalar loop on one input; its memory is taken beforehand."""

    def __init__(self, library: ctypes.CDLL, segments: torch.Tensor, scores: torch.Tensor, offsets: list[int]) -> None:
        name = "float" if scores.dtype == torch.float32 else "double"
        self.function = getattr(library, f"soft_nms_scalar_{name}")
        self.inputs, self.offsets, self.epsilon = (segments, scores), offsets, EPSILON[scores.dtype]
        self.work = [torch.empty_like(scores) for _ in range(4)]  # start, end, score, area
        self.index = torch.empty(len(scores), dtype=torch.int64)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        indices, scores = [], []
        for first, last in itertools.pairwise(self.offsets):
            pointers = [t[first:].data_ptr() for t in (*self.work, self.index)]
            inputs = [t[first:].data_ptr() for t in self.inputs]
            options = 0, SIGMA, 0.0, MIN_SCORE, self.epsilon
            picks = self.function(*inputs, last - first, *options, *pointers)
            indices.append(first + self.index[first : first + picks])
            scores.append(self.work[2][first : first + picks])
        return torch.cat(indices), torch.cat(scores)


def python_loop(
    segments: list[list[float]],
    scores: list[float],
    epsilon: float,
    sigma: float = SIGMA,
    min_score: float = MIN_SCORE,
    most: int | None = None,
    iou_threshold: tuple[float, float] = (0.0, 0.0),
) -> tuple[list[int], list[float]]:
    """The same in plain Python, as the research code of BSN, BMN and BCNet writes it; `most` picks, or all.

    Others decay where their tIoU is above low + (high - low) * length of what is picked.
    """
    low, slope = iou_threshold[0], iou_threshold[1] - iou_threshold[0]
    start, end, score = [s for s, _ in segments], [e for _, e in segments], list(scores)
    index = list(range(len(scores)))
    indices, picked = [], []
    while score and len(picked) != most:
        top = score.index(max(score))
        if score[top] < min_score:
            break
        s, e, _, i = (column.pop(top) for column in (start, end, score, index))
        indices.append(i)
        picked.append(_)
        kept = []
        for j in range(len(score)):
            inter = max(0.0, min(e, end[j]) - max(s, start[j]))
            tiou = inter / ((e - s) + (end[j] - start[j]) - inter + 2 * epsilon)
            if tiou > low + slope * (e - s):
                score[j] *= math.exp(-(tiou * tiou) / sigma)
            if score[j] >= min_score:
                kept.append(j)
        if len(kept) < len(score):
            start, end, score, index = ([column[j] for j in kept] for column in (start, end, score, index))
    return indices, picked


def clustered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """3000 proposals over two minutes, 0.5 to 30 s long: a long video."""
    start, length = rng.uniform(0, 100, 3000), np.exp(rng.uniform(np.log(0.5), np.log(30), 3000))
    return np.stack([start, start + length], 1), rng.random(3000)


def dense(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """3500 proposals on the grid of one window of 256 snippets, 1 to 64 long: what BCNet gives for one window."""
    start, length = rng.integers(0, 256, 3500), rng.integers(1, 65, 3500)
    return np.stack([start, np.minimum(start + length, 256)], 1).astype(float), rng.random(3500) ** 2


def measure(library, name, inputs, offsets, dtype, threads, with_python):
    """Check that all pick the same, time them, and give the rows of the table and of the CSV."""
    segments, scores = (torch.from_numpy(a).to(dtype) for a in inputs)
    sets = torch.tensor(offsets)
    rows = []
    for count in threads:
        torch.set_num_threads(count)

        def public():
            with use_backend("native"):
                return soft_nms(segments, scores, sigma=SIGMA, min_score=MIN_SCORE, offsets=sets)

        arrays = segments.numpy(), scores.numpy(), sets.numpy()
        options = 0, SIGMA, 0.0, 0.0, MIN_SCORE, -1, EPSILON[dtype], count
        native = partial(_native.module.soft_nms, *arrays, *options)
        scalar = Scalar(library, segments, scores, offsets)
        (_, picked, indices), (expected, expected_scores) = public(), scalar()
        if not torch.equal(indices, expected) or not torch.allclose(picked, expected_scores, rtol=0, atol=1e-6):
            raise BackendError(f"{name}: native and scalar code do not pick the same")
        calls = {"native": native, "ops.soft_nms": public, "scalar C++": scalar}
        if with_python and count == 1:
            arguments = segments.tolist(), scores.tolist(), EPSILON[dtype]
            if dtype == torch.float64:
                found, found_scores = python_loop(*arguments)
                if found != indices.tolist() or not np.allclose(found_scores, picked, rtol=0, atol=1e-6):
                    raise BackendError(f"{name}: native code and Python loop do not pick the same")
            calls["Python loop"] = lambda arguments=arguments: python_loop(*arguments)
        timings = alternate(calls)
        for backend, timing in timings.items():
            speedup = timings["scalar C++"].median / timing.median
            slower = timing.median / timings["native"].median
            shape = f"{name}: {len(sets) - 1} x {len(scores) // (len(sets) - 1)}, {len(indices)} picks"
            dtype_name = str(dtype).removeprefix("torch.")
            shown = 1 if backend in ("scalar C++", "Python loop") else count
            rows.append(
                (
                    [shape, dtype_name, backend, shown, timing.median, timing.p20, timing.p80, speedup, slower],
                    environment()
                    | {"op": "soft_nms", "backend": backend, "mode": "forward", "dtype": dtype_name, "shape": shape}
                    | {"median_ms": timing.median, "p20_ms": timing.p20, "p80_ms": timing.p80, "speedup": speedup}
                    | {"threads": shown},
                )
            )
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads for the batched case, beside 1")
    arguments = parser.parse_args(argv)
    if _native.module is None:
        raise BackendError(_native.reason)

    rng = np.random.default_rng(0)
    videos = [clustered(rng) for _ in range(200)]
    small = [(segments[:500], scores[:500]) for segments, scores in videos]
    batch = tuple(np.concatenate(parts) for parts in zip(*small, strict=True))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        library = compile_scalar(Path(folder))
        one = [1]
        for name, inputs in (("long video", videos[0]), ("dense window", dense(rng))):
            for dtype in (torch.float32, torch.float64):
                rows += measure(library, name, inputs, [0, len(inputs[1])], dtype, one, with_python=True)
        offsets = list(range(0, len(batch[1]) + 1, 500))
        both = sorted({1, arguments.threads})
        rows += measure(library, "batch", batch, offsets, torch.float32, both, with_python=False)
    record = environment()
    print(f"{record['device']}, {_native.module.INSTRUCTION_SETS[0]}, torch {record['torch']}; all picked alike")
    header = ["input", "dtype", "backend", "threads", "median ms", "20 %", "80 %", "x scalar", "native is x faster"]
    print_table(header, [row for row, _ in rows])
    if arguments.csv:
        write_csv(arguments.csv, [row for _, row in rows])
    return 0


if __name__ == "__main__":
    run(main)
