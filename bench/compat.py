"""bcnet_fast.compat.nms_1d_cpu beside the compiled loop that it replaces.

    python bench/compat.py [--json FILE] [--pairs N]      needs a C++ compiler (c++, or the one that CXX names)

The loop is support/nms_1d_scalar.cpp: one segment after the other, in place, without PyTorch's checks around it.
Ours is the public function. Before anything is timed, both must have returned the same bits. Options are those of
ActionFormer and OpenTAD: tIoU 0.5 for hard decisions and 0.1 for the linear decay, sigma 0.5, min_score 0.001.

Both run in turn on one thread. Times are of the processor, which other work on the machine disturbs least; the ratio is
the median of those of the pairs. The rate is that of a large float32 product, before and after.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from support.environment import begin
from support.floors import cpu_tflops
from support.nms_1d_cases import Scalar, candidates, compile_scalar
from support.tables import print_table

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.compat import nms_1d_cpu
from bcnet_fast.errors import BackendError, InputError
from bcnet_fast.ops import native
from bcnet_fast.storage.output import write_json

SETS = ("long video", "one window")
SIZES = (100, 1000, 3000)
# Name of a method, and its options: iou_threshold, sigma, min_score, method, t1, t2.
METHODS = {
    "softnms, method 0 (hard)": (0.5, 0.5, 0.001, 0, 0.0, 0.0),
    "softnms, method 1 (linear)": (0.1, 0.5, 0.001, 1, 0.0, 0.0),
    "softnms, method 2 (Gaussian)": (0.1, 0.5, 0.001, 2, 0.0, 0.0),
    "softnms, method 3 (OpenTAD)": (0.1, 0.5, 0.001, 3, 0.2, 0.01),
}
LEAST_RUN = 3e-3  # seconds; shorter calls are repeated

Call = Callable[[], torch.Tensor]


def cases(scalar: Scalar) -> Iterator[tuple[str, Call, Call]]:
    """Function, our call, and the loop's, on one set."""
    segs, scores = scalar.segs, scalar.scores
    yield "nms", functools.partial(nms_1d_cpu.nms, segs, scores, 0.5), functools.partial(scalar.nms, 0.5)
    for name, options in METHODS.items():
        dets, expected = torch.zeros(2, len(scores), 3)
        ours, loop = nms_1d_cpu.softnms(segs, scores, dets, *options), scalar.softnms(expected, *options)
        if not torch.equal(ours, loop) or not torch.equal(dets, expected):
            raise BackendError(f"{name}: dets differ from those of the loop")
        yield (
            name,
            functools.partial(nms_1d_cpu.softnms, segs, scores, dets, *options),
            functools.partial(scalar.softnms, expected, *options),
        )


def run_ms(call: Call, repeats: int) -> float:
    began = time.thread_time()
    for _ in range(repeats):
        call()
    return 1e3 * (time.thread_time() - began) / repeats


def measure(ours: Call, loop: Call, pairs: int) -> dict[str, float]:
    calls = (ours, loop)
    repeats = [max(1, int(1e3 * LEAST_RUN / min(run_ms(call, 1) for _ in range(3)))) for call in calls]
    runs = [tuple(run_ms(call, n) for call, n in zip(calls, repeats, strict=True)) for _ in range(pairs)]
    ours_ms, loop_ms = (statistics.median(column) for column in zip(*runs, strict=True))
    return {"ours_ms": ours_ms, "loop_ms": loop_ms, "speedup": statistics.median(b / a for a, b in runs)}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--pairs", type=int, default=25, metavar="N", help="runs of each (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.pairs < 1:
        raise InputError(f"--pairs {args.pairs}: expected a number above 0")
    if native.module is None:
        raise BackendError(native.reason)
    facts = begin(1, [args.json]) | {"instruction_set": native.module.INSTRUCTION_SETS[0]}
    rates = [1e3 * cpu_tflops("fp32")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        library = compile_scalar(Path(folder))
        for name in SETS:
            for size in SIZES:
                for function, ours, loop in cases(Scalar(library, *candidates(name, size))):
                    found = ours()
                    if not torch.equal(found, loop()):
                        raise BackendError(f"{function}, {name}, {size}: results differ from those of the loop")
                    row = {"function": function, "set": name, "size": size, "kept": len(found)}
                    rows.append(row | measure(ours, loop, args.pairs))
    rates.append(1e3 * cpu_tflops("fp32"))
    print(f"{facts['instruction_set']}; float32 products: {rates[0]:.0f} GFLOP/s before, {rates[1]:.0f} after")
    columns = ("function", "set", "size", "kept", "loop_ms", "ours_ms", "speedup")
    print_table([*columns[:-3], "loop ms", "ours ms", "x"], [[row[column] for column in columns] for row in rows])
    if args.json:
        write_json(args.json, {"environment": facts, "rate_gflops": rates, "rows": rows}, indent=1)
        print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    run(main)
