"""Compile every kernel ahead of time for every target, and report the compiler's results. Needs no GPU.

Rows of bench/results/aot.csv: kernel x dtype x size x shipped variant x target, with registers per thread, spilled
bytes, shared memory, the blocks that fit a multiprocessor, and the counts of the instructions that decide the speed:
tensor-core products and 128-bit loads. Exit code 1 when a variant spills or does not fit a target it is shipped for.
Triton kernels are compiled here; those in CUDA C++ are read from the extension (BCNET_FAST_CUDA=1 pip install -e .).

    python bench/aot.py                               all of it (up to 20 minutes on 2 cores)
    python bench/aot.py --targets 80 90 --kernels difference_attention

Each version of Triton compiles the same kernels to other code. bench/results/aot_triton_versions.csv counts, for each
version, operator and target, the variants that compile, spill, or do not fit. With each version installed in turn:

    python bench/aot.py --kernels difference_attention anchor_sampling add_layer_norm match_proposals \
        --targets 75 80 90 100 120 --csv - --summary bench/results/aot_triton_versions.csv

This replaces the rows of the installed version and leaves the others. Times are not measured here and cannot be derived
from these figures. Needs Triton 3.2 or later, whose compiler is called directly.
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

import torch
import triton
from bcnet_fast.kernels._common import SHARED_KIB, TARGETS, Launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError
from bcnet_fast.kernels import add_layer_norm, anchor_sampling, difference_attention, match_proposals
from bcnet_fast.ops import native
from bcnet_fast.ops.reference import most_pairs
from bcnet_fast.ops.sampling_plan import SamplingPlan
from bcnet_fast.progress import progress
from bcnet_fast.storage.output import atomic_text

OLDEST_TRITON = (3, 2)
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
COMPILER = f"triton {triton.__version__}"
RESULTS = Path(__file__).with_name("results") / "aot.csv"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Per multiprocessor: KiB of shared memory, warps, and blocks (CUDA C++ Programming Guide, technical specifications).
# All have 65,536 registers.
LIMITS = {
    75: (64, 32, 16),
    80: (164, 64, 32),
    86: (100, 48, 16),
    89: (100, 48, 24),
    90: (228, 64, 32),
    100: (228, 64, 32),
    120: (100, 48, 24),
}
# Matched in the machine code (SASS): warp products, warpgroup products (wgmma), fifth-generation products (tcgen05).
INSTRUCTIONS = {
    "mma": r"\b[HIQ]MMA\b",
    "wgmma": r"\b[HIQ]GMMA\b",
    "tcgen05": r"\bUTC\w*MMA\b",
    "load128": r"\b(?:LDG|LDGSTS)\S*\.128\b",
}
FIGURES = ("registers", "spill_bytes", "shared_bytes", "blocks_per_sm", *INSTRUCTIONS)
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
POINTERS = {**TYPES, torch.float64: "fp64", torch.int32: "i32", torch.int64: "i64"}


class Case(NamedTuple):
    """One launch to compile: its names in the table, and the launch on the device "meta"."""

    kernel: str
    dtype: str
    size: str
    launch: Launch


def _difference_attention(target: int) -> Iterator[Case]:
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for dtype in (torch.float32,) if tf32 else TYPES:
            # The sizes that heads are padded to.
            for d, dv in ((64, 64), (128, 128)):

                def stream(size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
                    return torch.empty(8, 1218, 8, size, dtype=dtype, device="meta").transpose(1, 2)

                inputs = (stream(d), stream(d), stream(dv), stream(dv))
                outputs = (stream(dv), stream(dv), torch.empty(8, 8, 1218, device="meta"))
                grads = (stream(dv), stream(dv))
                forward = difference_attention.forward_launch(inputs, outputs, 0.125, target)
                by_query, by_key = difference_attention.backward_launches(inputs, outputs, grads, inputs, 0.125, target)
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
        matrix = empty(anchors, all_bins), empty(anchors * all_bins + 1), weights
        transpose = empty(all_bins * length + 1), empty(99999), weights
        plan = SamplingPlan(length, bins, 9, *matrix, *transpose, order=empty(160, 8))
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            for dtype in (torch.float32,) if tf32 else TYPES:
                rows, sampled = (
                    empty(batch, *s, channels, dtype=dtype) for s in ((sources, length), (anchors, all_bins))
                )
                projected = empty(all_bins, batch, length, outputs, dtype=dtype)
                by_bin, out = (empty(batch, *s, outputs, dtype=dtype) for s in ((all_bins, length), (anchors,)))
                weight, bias = empty(all_bins, channels, outputs, dtype=dtype), empty(outputs, dtype=dtype)
                launches = {
                    "projection": anchor_sampling.projection_launch(rows, weight, plan, bias, True, out, target)
                }
                if not tf32:  # the others make no products
                    launches |= {
                        "forward": anchor_sampling.sampling_launches(rows, plan, sampled, target)[0],
                        "backward": anchor_sampling.sampling_backward_launches(sampled, plan, rows, target)[0],
                        "gather": anchor_sampling.gather_launch(projected, plan, bias, True, out, target),
                        "gather_backward": anchor_sampling.gather_backward_launch(out, plan, by_bin, target),
                    }
                for name, launch in launches.items():
                    for config in anchor_sampling.variants(name, dtype, target):
                        dtype_name = "tf32" if tf32 else TYPES[dtype]
                        size = f"{channels}/{outputs}"
                        yield Case(f"anchor_sampling_{name}", dtype_name, size, launch._replace(config=config))


def _add_layer_norm(target: int) -> Iterator[Case]:
    # Every block filled, but 400 is BCNet's width; 401 has no alignment; the last is read in several steps.
    widths = [400 if block == 512 else block for block in add_layer_norm.CONFIGS]
    for dtype in TYPES:
        for width in (*widths, 401, 2 * add_layer_norm.LARGEST):
            rows = torch.empty(1218, width, dtype=dtype, device="meta")
            rstd = torch.empty(1218, device="meta")
            forward = add_layer_norm.forward_launch(rows, rows, rows, rstd, 1e-5)
            backward = add_layer_norm.backward_launch(rows, rows, rstd, rows)
            for name, launch in (("forward", forward), ("backward", backward)):
                if target in launch.config.targets:
                    yield Case(f"add_layer_norm_{name}", TYPES[dtype], str(width), launch)


def _match_proposals(target: int) -> Iterator[Case]:
    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    for dtype in (*TYPES, torch.float64):
        # THUMOS14 as infer calls it, and ActivityNet-1.3 as the public release is repeated.
        for snippets, durations, anchors, clamp in ((256, 64, 1218, False), (100, 100, 1326, True)):
            rows = most_pairs(snippets, durations)
            frames = [empty(8, snippets, dtype=dtype) for _ in range(2)]
            scores = [empty(8, anchors, dtype=dtype) for _ in range(3)]
            table, lengths = empty(snippets, durations, dtype=torch.int32), empty(8, dtype=torch.int64)
            outputs = (
                empty(8, rows, 2, dtype=torch.float64),
                empty(8, rows, dtype=torch.float64),
                empty(8, rows, 2, dtype=torch.int32),
                lengths,
            )
            tables = empty(anchors, 2, dtype=torch.float64), table, None if clamp else lengths
            launch = match_proposals.match_launch(
                (*frames, *scores), tables, outputs, boundary_threshold=0.7, min_classification=0.9,
                min_regression=0.8, max_snippets=60.0, clamp_boundaries=clamp,
            )  # fmt: skip
            yield Case("match_proposals", POINTERS[dtype], f"{snippets}/{durations}", launch)


# A further operator: a generator like the ones above, named here.
KERNELS: dict[str, Callable[[int], Iterator[Case]]] = {
    "difference_attention": _difference_attention,
    "anchor_sampling": _anchor_sampling,
    "add_layer_norm": _add_layer_norm,
    "match_proposals": _match_proposals,
}


def compile_launch(launch: Launch, target: int) -> Any:
    """Compile as Triton's own launcher would for these arguments: 1 as a constant, multiples of 16 as such."""
    kernel = launch.kernel
    values = {**launch.arguments, **launch.config.tiles}
    signature, constants, divisible = {}, {}, []
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        specialized = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (specialized and value == 1):
            constants[index] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + POINTERS[value.dtype]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or (specialized and value % 16 == 0):
            divisible.append(index)
    return triton.compile(
        _source(kernel, signature, constants, divisible),
        target=GPUTarget("cuda", target, 32),
        options=launch.options,
    )


def _source(kernel: Any, signature: dict[str, str], constants: dict[int, Any], divisible: list[int]) -> ASTSource:
    """The compiler's input: types by name, constants by index, and the indices of multiples of 16."""
    names = [parameter.name for parameter in kernel.params]
    if TRITON < (3, 3):
        from triton.backends.compiler import AttrsDescriptor

        attributes = AttrsDescriptor.from_hints(dict.fromkeys(divisible, 16))
        return ASTSource(kernel, signature, {names[i]: value for i, value in constants.items()}, attributes)
    types = {name: signature.get(name, "constexpr") for name in names}
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    return ASTSource(kernel, types, {(i,): value for i, value in constants.items()}, attributes)


def inspect_binary(binary: bytes) -> dict[str, int]:
    """Registers per thread, bytes spilled to the stack, and the instruction counts of one compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        usage, code = (
            subprocess.run([TOOLS / "cuobjdump", flag, path], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    return figures(usage, code)


def figures(usage: str, code: str) -> dict[str, int]:
    """Figures from cuobjdump's report on the resources of one kernel, and from its machine code."""
    found = {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "spill_bytes": int(re.search(r"STACK:(\d+)", usage).group(1)),
    }
    return found | {name: len(re.findall(pattern, code)) for name, pattern in INSTRUCTIONS.items()}


def blocks_per_multiprocessor(target: int, registers: int, num_warps: int, shared: int) -> int:
    """How many blocks of this size are resident at once; 0 when one does not fit."""
    total_kib, warps, blocks = LIMITS[target]
    if shared > SHARED_KIB[target] * 1024:
        return 0
    # Registers are handed out to warps in units of 256; from 80 on, each block costs 1 KiB of shared memory more.
    warp_registers = -(-registers * 32 // 256) * 256
    reserved = 1024 if target >= 80 else 0
    by_registers = 65536 // (warp_registers * num_warps)
    return min(by_registers, warps // num_warps, blocks, total_kib * 1024 // max(1, shared + reserved))


def measure(job: tuple[str, int, int]) -> dict[str, Any]:
    """One row of the table: case `index` of `family` for `target`."""
    family, target, index = job
    case = next(itertools.islice(KERNELS[family](target), index, None))
    config = case.launch.config
    row = {
        "kernel": case.kernel,
        "dtype": case.dtype,
        "size": case.size,
        "tiles": "x".join(str(v) for v in config.tiles.values()),
        "warps": config.num_warps,
        "stages": config.num_stages,
        "target": f"sm_{target}",
        **dict.fromkeys(FIGURES, ""),
        "compiler": COMPILER,
    }
    try:
        compiled = compile_launch(case.launch, target)
    except Exception as error:  # of many types: a failed pass in C++ can be an IndexError
        print(f"{row['kernel']} {case.dtype} {case.size} {row['tiles']} sm_{target}: {error}", file=sys.stderr)
        return row
    found = inspect_binary(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    blocks = blocks_per_multiprocessor(target, found["registers"], config.num_warps, shared)
    return row | found | {"shared_bytes": shared, "blocks_per_sm": blocks}


def inspect_extension(path: str) -> dict[tuple[int, str], dict[str, int]]:
    """The figures of every kernel in a compiled extension, by target and mangled name."""
    texts: dict[tuple[int, str], list[str]] = {}
    for flag in ("-res-usage", "-sass"):
        report = subprocess.run([TOOLS / "cuobjdump", flag, path], capture_output=True, text=True, check=True).stdout
        for part in report.split("arch = sm_")[1:]:
            for function in re.split(r"Function\s*:?\s*", part)[1:]:
                name = re.match(r"\w+", function).group()
                texts.setdefault((int(re.match(r"\d+", part).group()), name), []).append(function)
    return {key: figures(*text) for key, text in texts.items()}


def cuda_soft_nms(targets: list[int]) -> Iterator[dict[str, Any]]:
    """The rows of the CUDA extension's kernel, by the largest number of candidates in a set."""
    module, reason = native.cuda()
    if module is None:
        raise BackendError(reason)
    kernels = inspect_extension(module.__file__)
    plans = {"fp32": ("f", module.plan_soft_nms_float32), "fp64": ("d", module.plan_soft_nms_float64)}
    for dtype, (letter, plan) in plans.items():
        for target in targets:
            marker = f"soft_nms_kernelI{letter}E"
            found = next(kernel for (at, name), kernel in kernels.items() if at == target and marker in name)
            for candidates in (120, 1000, 4000, 20000):
                launch = plan(candidates, 1, candidates, SHARED_KIB[target] * 1024)
                warps = launch.threads // 32
                yield {
                    "kernel": "soft_nms",
                    "dtype": dtype,
                    "size": candidates,
                    "tiles": "",
                    "warps": warps,
                    "stages": "",
                    "target": f"sm_{target}",
                    "registers": found["registers"],
                    "spill_bytes": found["spill_bytes"],
                    "shared_bytes": launch.shared_bytes,
                    "blocks_per_sm": blocks_per_multiprocessor(target, found["registers"], warps, launch.shared_bytes),
                    **{name: found[name] for name in INSTRUCTIONS},
                    "compiler": module.COMPILER,
                }


# A further operator in CUDA C++: a generator like the one above, named here.
CUDA_KERNELS: dict[str, Callable[[list[int]], Iterator[dict[str, Any]]]] = {"soft_nms": cuda_soft_nms}


def known_targets() -> set[int]:
    """The compute capabilities that the assemblers inside this Triton know."""
    reports = [
        subprocess.run([assembler, "--help"], capture_output=True, text=True, check=True).stdout
        for assembler in TOOLS.glob("ptxas*")
    ]
    return {int(target) for report in reports for target in re.findall(r"\bsm_(\d+)", report)}


def is_bad(row: dict[str, Any]) -> bool:
    """Whether a variant does not compile, spills, or does not fit a multiprocessor."""
    return row["registers"] == "" or row["spill_bytes"] > 0 or row["blocks_per_sm"] == 0


def summarize(rows: list[dict[str, Any]], families: list[str], targets: list[int]) -> list[dict[str, Any]]:
    """One row for each operator and target: how many of its variants compile, spill, and do not fit."""
    summary = []
    for family, target in itertools.product(families, targets):
        own = [r for r in rows if r["kernel"].startswith(family) and r["target"] == f"sm_{target}"]
        compiled = [r for r in own if r["registers"] != ""]
        spilled = [r["spill_bytes"] for r in compiled if r["spill_bytes"]]
        failed = sorted({r["dtype"] for r in own if r["registers"] == ""})
        notes = [f"does not compile: {', '.join(failed)}"] if failed else []
        notes += [f"spills at most {max(spilled)} bytes a thread"] if spilled else []
        notes += [] if own else ["not a target of this Triton"]
        summary.append(
            {
                "compiler": COMPILER,
                "kernel": family,
                "target": f"sm_{target}",
                "variants": len(own),
                "compiled": len(compiled),
                "spilling": len(spilled),
                "not_fitting": sum(r["blocks_per_sm"] == 0 for r in compiled),
                "note": "; ".join(notes),
            }
        )
    return summary


def merge_summary(path: Path, summary: list[dict[str, Any]]) -> None:
    """Write the rows to `path`, in the place of those of the same compiler, operator and target."""
    keys = ("compiler", "kernel", "target")
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = {tuple(r[k] for k in keys): r for r in csv.DictReader(file)}
    rows |= {tuple(r[k] for k in keys): r for r in summary}
    write_rows(path, sorted(rows.values(), key=lambda r: (r["compiler"], r["kernel"], int(r["target"][3:]))))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_text(path) as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    families = [*KERNELS, *CUDA_KERNELS]
    parser.add_argument("--kernels", nargs="+", choices=families, default=families, help="operators to compile")
    parser.add_argument("--targets", nargs="+", type=int, choices=TARGETS, default=list(TARGETS), help="capabilities")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilations at the same time")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="file to write; '-' writes none")
    parser.add_argument("--summary", type=Path, help="file to merge the counts of this version of Triton into")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise BackendError("TRITON_INTERPRET is set, expected it unset: Triton's interpreter replaces its compiler")
    if TRITON < OLDEST_TRITON:
        raise BackendError(f"needs Triton {'.'.join(map(str, OLDEST_TRITON))}, found {triton.__version__}")

    rows = [row for name, generate in CUDA_KERNELS.items() if name in args.kernels for row in generate(args.targets)]
    triton_kernels = [name for name in KERNELS if name in args.kernels]
    known = known_targets()
    jobs = [(k, t, i) for k in triton_kernels for t in args.targets if t in known for i, _ in enumerate(KERNELS[k](t))]
    with ProcessPoolExecutor(args.jobs) as pool:
        rows = [*progress(pool.map(measure, jobs), len(jobs), "kernels"), *rows]

    widths = [max(len(str(r[c])) for r in [*rows, {c: c for c in rows[0]}]) for c in rows[0]]
    for row in [{c: c for c in rows[0]}, *rows]:
        print("  ".join(str(v).ljust(w) for v, w in zip(row.values(), widths, strict=True)))
    for target in args.targets:
        if target not in known:
            print(f"sm_{target} is not a target of {COMPILER}")
    bad = sum(map(is_bad, rows))
    print(f"{len(rows)} variants, {bad} of them do not compile, spill, or do not fit")
    if str(args.csv) != "-":
        write_rows(args.csv, rows)
    if args.summary:
        merge_summary(args.summary, summarize(rows, triton_kernels, args.targets))
    return 1 if bad else 0


if __name__ == "__main__":
    run(main)
