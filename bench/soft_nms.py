"""Soft-NMS: this package beside a scalar C++ loop as public systems compile it, and beside the loop in plain Python.

    python bench/soft_nms.py [--csv FILE]            needs a C++ compiler (c++, or the one that CXX names)

"native" and "scalar C++" are the compiled functions themselves; "ops.soft_nms" is the public function, with its checks
and PyTorch's dispatch around the native one. All run in this process, on the same inputs, in turn. Before anything is
timed, all must have picked the same segments in the same order, with scores equal to 1e-6. Gaussian, sigma 0.5,
min_score 0.001, until no candidate is left.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from support.environment import environment
from support.soft_nms_cases import EPSILON, MIN_SCORE, SIGMA, Scalar, clustered, compile_scalar, dense, python_loop
from support.tables import print_table, write_csv
from support.timing import alternate

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError
from bcnet_fast.ops import native, soft_nms, use_backend


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
        kernel = partial(
            native.module.soft_nms,
            *arrays,
            method=0,
            sigma=SIGMA,
            threshold_low=0.0,
            threshold_high=0.0,
            min_score=MIN_SCORE,
            max_proposals=-1,
            length_epsilon=EPSILON[dtype],
            threads=count,
        )
        scalar = Scalar(library, segments, scores, offsets)
        (_, picked, indices), (expected, expected_scores) = public(), scalar()
        if not torch.equal(indices, expected) or not torch.allclose(picked, expected_scores, rtol=0, atol=1e-6):
            raise BackendError(f"{name}: native and scalar code do not pick the same")
        calls = {"native": kernel, "ops.soft_nms": public, "scalar C++": scalar}
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
    if native.module is None:
        raise BackendError(native.reason)

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
    print(f"{record['device']}, {native.module.INSTRUCTION_SETS[0]}, torch {record['torch']}; all picked alike")
    header = ["input", "dtype", "backend", "threads", "median ms", "20 %", "80 %", "x scalar", "native is x faster"]
    print_table(header, [row for row, _ in rows])
    if arguments.csv:
        write_csv(arguments.csv, [row for _, row in rows])
    return 0


if __name__ == "__main__":
    run(main)
