"""Compile every Triton kernel ahead of time for every target, and report what the compiler made of it. Needs no GPU.

Rows of bench/results/aot.csv: kernel x dtype x size x shipped variant x target, with registers per thread, spilled
bytes, shared memory, the blocks that fit a multiprocessor, and the counts of the instructions that decide the speed:
tensor-core products and 128-bit loads. Exit code 1 when a variant spills or does not fit a target it is shipped for.

    python bench/aot.py                               all of it (up to 20 minutes on 2 cores)
    python bench/aot.py --targets 80 90 --kernels difference_attention

Times are not measured here and cannot be derived from these figures.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# The interpreter replaces the compiler: it must be off before triton is imported.
os.environ["TRITON_INTERPRET"] = "0"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import triton  # noqa: E402
from bcnet_fast.kernels._common import TARGETS, Launch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from bcnet_fast._cli import Parser, progress, run  # noqa: E402
from bcnet_fast.files import atomic_text  # noqa: E402
from bcnet_fast.kernels import anchor_sampling, difference_attention  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "aot.csv"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Per multiprocessor: KiB of shared memory that one block may use, KiB in all, warps (CUDA C++ Programming Guide,
# technical specifications). All have 65,536 registers.
LIMITS = {
    75: (64, 64, 32),
    80: (163, 164, 64),
    86: (99, 100, 48),
    89: (99, 100, 48),
    90: (227, 228, 64),
    100: (227, 228, 64),
    120: (99, 100, 48),
}
# Matched in the machine code (SASS): warp products, warpgroup products (wgmma), fifth-generation products (tcgen05).
INSTRUCTIONS = {
    "mma": r"\b[HIQ]MMA\b",
    "wgmma": r"\b[HIQ]GMMA\b",
    "tcgen05": r"\bUTC\w*MMA\b",
    "load128": r"\b(?:LDG|LDGSTS)\S*\.128\b",
}
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class Case(NamedTuple):
    """One launch to compile: what the table calls it, and the launch on the device "meta"."""

    kernel: str
    dtype: str
    size: str
    launch: Launch


def _difference_attention(target: int) -> Iterator[Case]:
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for dtype in (torch.float32,) if tf32 else TYPES:
            # BCNet's heads, the largest heads, and heads that do not fill their block (masked loads).
            for d, dv in ((64, 64), (128, 128), (48, 32)):

                def stream(size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
                    return torch.empty(8, 1218, 8, size, dtype=dtype, device="meta").transpose(1, 2)

                inputs = (stream(d), stream(d), stream(dv), stream(dv))
                outputs = (stream(dv), stream(dv), torch.empty(8, 8, 1218, device="meta"))
                grads = (stream(dv), stream(dv))
                forward = difference_attention.forward_launch(*inputs, *outputs, 0.125, target)
                by_query, by_key = difference_attention.backward_launches(
                    *grads, *inputs, *outputs, *inputs, 0.125, target
                )
                for name, launch in (("forward", forward), ("backward_query", by_query), ("backward_key", by_key)):
                    for config in difference_attention.variants(name, inputs[0], inputs[2], target):
                        dtype_name = "tf32" if tf32 else TYPES[dtype]
                        case = Case(
                            f"difference_attention_{name}", dtype_name, f"{d}/{dv}", launch._replace(config=config)
                        )
                        yield case


def _anchor_sampling(target: int) -> Iterator[Case]:
    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    # G-TAD's sizes, and BCNet's with a projection of the kind. Other rows are padded to multiples of 16.
    for channels, outputs, bins in ((256, 512, (16, 16)), (64, 64, (32,))):
        batch, sources, anchors, length, all_bins = 8, len(bins), 1218, 256, sum(bins)
        weights = empty(99999, dtype=torch.float32)
        plan = empty(anchors, all_bins), empty(anchors * all_bins + 1), weights
        by_snippet = empty(all_bins * length + 1), empty(99999), weights
        order = empty(anchors)
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            for dtype in (torch.float32,) if tf32 else TYPES:
                rows, sampled = (
                    empty(batch, *s, channels, dtype=dtype) for s in ((sources, length), (anchors, all_bins))
                )
                projected, out = (empty(batch, *s, outputs, dtype=dtype) for s in ((all_bins, length), (anchors,)))
                weight, bias = empty(all_bins, channels, outputs, dtype=dtype), empty(outputs, dtype=dtype)
                launches = {
                    "projection": anchor_sampling.projection_launch(
                        rows, weight, *plan, order, bins, bias, True, out, target
                    )
                }
                if not tf32:  # the others make no products
                    launches |= {
                        "forward": anchor_sampling.sampling_launches(rows, *plan, bins, sampled, target)[0],
                        "backward": anchor_sampling.sampling_backward_launches(
                            sampled, *by_snippet, bins, rows, target
                        )[0],
                        "gather": anchor_sampling.gather_launch(projected, *plan, order, bias, True, out, target),
                        "gather_backward": anchor_sampling.gather_backward_launch(out, *by_snippet, projected, target),
                    }
                for name, launch in launches.items():
                    for config in anchor_sampling.variants(name, dtype, target):
                        dtype_name = "tf32" if tf32 else TYPES[dtype]
                        size = f"{channels}/{outputs}"
                        yield Case(f"anchor_sampling_{name}", dtype_name, size, launch._replace(config=config))


# A further operator: a generator like the ones above, named here.
KERNELS: dict[str, Callable[[int], Iterator[Case]]] = {
    "difference_attention": _difference_attention,
    "anchor_sampling": _anchor_sampling,
}


def compile_launch(launch: Launch, target: int) -> Any:
    """What Triton's own launcher would compile for these arguments: 1 as a constant, multiples of 16 as such."""
    kernel = launch.kernel
    values = {**launch.arguments, **launch.config.tiles}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + ("i32" if value.dtype == torch.int32 else TYPES[value.dtype])
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": launch.config.num_warps, "num_stages": launch.config.num_stages},
    )


def inspect_binary(binary: bytes) -> dict[str, int]:
    """Registers per thread, bytes spilled to the stack, and the instruction counts of one compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        usage, code = (
            subprocess.run([TOOLS / "cuobjdump", flag, path], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    found = {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "spill_bytes": int(re.search(r"STACK:(\d+)", usage).group(1)),
    }
    return found | {name: len(re.findall(pattern, code)) for name, pattern in INSTRUCTIONS.items()}


def blocks_per_multiprocessor(target: int, registers: int, num_warps: int, shared: int) -> int:
    """How many blocks of this size are resident at once; 0 when one does not fit."""
    block_kib, total_kib, warps = LIMITS[target]
    if shared > block_kib * 1024:
        return 0
    # Registers are handed out to warps in units of 256; from 80 on, each block costs 1 KiB of shared memory more.
    warp_registers = -(-registers * 32 // 256) * 256
    reserved = 1024 if target >= 80 else 0
    return min(65536 // (warp_registers * num_warps), warps // num_warps, total_kib * 1024 // max(1, shared + reserved))


def measure(job: tuple[str, int, int]) -> dict[str, Any]:
    """One row of the table: case `index` of `family` for `target`."""
    family, target, index = job
    case = next(itertools.islice(KERNELS[family](target), index, None))
    config = case.launch.config
    compiled = compile_launch(case.launch, target)
    found = inspect_binary(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    return {
        "kernel": case.kernel,
        "dtype": case.dtype,
        "size": case.size,
        "tiles": "x".join(str(v) for v in config.tiles.values()),
        "warps": config.num_warps,
        "stages": config.num_stages,
        "target": f"sm_{target}",
        "registers": found["registers"],
        "spill_bytes": found["spill_bytes"],
        "shared_bytes": shared,
        "blocks_per_sm": blocks_per_multiprocessor(target, found["registers"], config.num_warps, shared),
        **{name: found[name] for name in INSTRUCTIONS},
        "triton": triton.__version__,
    }


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--kernels", nargs="+", choices=list(KERNELS), default=list(KERNELS), help="operators to compile"
    )
    parser.add_argument("--targets", nargs="+", type=int, choices=TARGETS, default=list(TARGETS), help="capabilities")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilations at the same time")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="file to write; '-' writes none")
    args = parser.parse_args(argv)

    jobs = [(k, t, i) for k in args.kernels for t in args.targets for i, _ in enumerate(KERNELS[k](t))]
    with ProcessPoolExecutor(args.jobs) as pool:
        rows = list(progress(pool.map(measure, jobs), len(jobs), "kernels"))

    widths = [max(len(str(r[c])) for r in [*rows, {c: c for c in rows[0]}]) for c in rows[0]]
    for row in [{c: c for c in rows[0]}, *rows]:
        print("  ".join(str(v).ljust(w) for v, w in zip(row.values(), widths, strict=True)))
    bad = [r for r in rows if r["spill_bytes"] or not r["blocks_per_sm"]]
    print(f"{len(rows)} compiled, {len(bad)} of them spill or do not fit")
    if str(args.csv) != "-":
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with atomic_text(args.csv) as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 1 if bad else 0


if __name__ == "__main__":
    run(main)
