"""Each operator beside its reference, torch.compile of the reference, and common alternatives.

    python bench/ops.py [--quick] [--only NAME ...] [--json FILE] [--plot FILE.png] [--device cpu|cuda]

Everything runs in this process, on the same inputs, in turn, and is timed only after the results of a case agree. Freed
memory is kept for the next call. Columns: median, 20 % and 80 % of the times; peak memory beyond the inputs; the ratio
to the reference; the floor of bench/roofline.py in percent of the median; on a CPU, the same for the C++ kernel alone.

--quick leaves out torch.compile and the dense forms of BMN and G-TAD, which take minutes.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any, NamedTuple

import numpy as np
import roofline
import torch
import torch.nn.functional as F
from support import charts, soft_nms_cases
from support.environment import environment
from support.plain_match import match_one_window, search
from support.tables import print_table
from support.timing import Timing, alternate, keep_freed_memory, memory_mib, summarize, timed_extension

from bcnet_fast import ops
from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError
from bcnet_fast.geometry.anchors import make_anchors, matching_table
from bcnet_fast.networks.reference.dense_sampling import sampling_weights
from bcnet_fast.ops import native, reference
from bcnet_fast.ops.sampling_plan import SamplingPlan
from bcnet_fast.progress import progress
from bcnet_fast.results.figure import require_picture_name
from bcnet_fast.storage.output import write_json

Call = Callable[[], Any]


class Case(NamedTuple):
    """One operator at one shape.

    variants are functions that prepare constants, such as a dense sampling matrix, and return the call;
    "bcnet_fast" and "reference" are among them. `tolerance` is that of their results, relative to the largest value.
    """

    operator: str
    mode: str
    shape: str
    work: roofline.Work
    variants: dict[str, Callable[[], Call]]
    tolerance: float = 1e-4


def compiled(function: Callable, *arguments: Any) -> Callable[[], Call]:
    return lambda: functools.partial(torch.compile(function), *arguments)


@functools.cache
def gradient(shape: torch.Size, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, device=device)


def with_gradients(function: Callable, leaves: list[torch.Tensor], *others: Any) -> Callable[[], Call]:
    """A call of the function and of its backward."""

    def call():
        outputs = function(*leaves, *others)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return outputs, torch.autograd.grad(outputs, leaves, [gradient(o.shape, o.device) for o in outputs])

    return lambda: call


def attention_cases(device: str) -> Iterator[Case]:
    def twice(query, key, value_action, value_background):
        attend = F.scaled_dot_product_attention
        return attend(query, key, value_action), attend(query, key, value_background)

    def side_by_side(query, key, value_action, value_background):
        size = query.shape[-1]
        values = torch.cat([value_action, value_background], -1)
        if device == "cpu":  # whose fused attention wants heads of one size
            query, key = F.pad(query, (0, size)), F.pad(key, (0, size))
        return F.scaled_dot_product_attention(query, key, values, scale=size**-0.5).split(size, -1)

    for name, length in (("clip", 1218), ("frame", 256)):
        tensors = [torch.randn(1, length, 8, 64, device=device).transpose(1, 2) for _ in range(4)]
        leaves = [t.detach().requires_grad_() for t in tensors]
        forward, backward = (
            work(8, length, length, 64, 64)
            for work in (roofline.difference_attention, roofline.difference_attention_backward)
        )
        both = roofline.Work(*(sum(pair) for pair in zip(forward, backward, strict=True)))
        functions = {
            "bcnet_fast": ops.difference_attention,
            "reference": reference.difference_attention,
            "two SDPA calls": twice,
            "one SDPA call, values side by side": side_by_side,
        }
        for mode, work in (("forward", forward), ("forward + backward", both)):
            training = mode != "forward"
            variants = {
                n: with_gradients(f, leaves) if training else lambda f=f, t=tensors: functools.partial(f, *t)
                for n, f in functions.items()
            }
            if training:
                variants["torch.compile"] = with_gradients(torch.compile(reference.difference_attention), leaves)
            else:
                variants["torch.compile"] = compiled(reference.difference_attention, *tensors)
            yield Case("difference_attention", mode, f"{name}: 8 x {length} x {length} x 64", work, variants)


def bags(plan: SamplingPlan, merged: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The plan for embedding_bag: rows of a table, where each bag begins, weights. A bag is a bin, merged an anchor."""
    count = plan.offsets.diff().long()
    cell = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    snippet = plan.first.flatten()[cell] + torch.arange(plan.taps, device=count.device) - plan.offsets[cell]
    bins = plan.first.shape[1]
    if merged:
        return snippet + cell % bins * plan.length, plan.offsets[:-1:bins].long(), plan.weights
    return snippet.long(), plan.offsets[:-1].long(), plan.weights


def sampling_cases(device: str) -> Iterator[Case]:
    plan = roofline.bcnet_plan().to(device)
    features = torch.randn(1, 64, 256, device=device)

    def dense():
        weights = sampling_weights(make_anchors(256, 64), 256, 32, 3)
        matrix = torch.from_numpy(weights).flatten(1).to(device)  # [T, N * P]
        return lambda: (features @ matrix).view(1, 64, 32, -1).permute(0, 3, 2, 1).contiguous()

    def embedding_bag():
        rows, begins, weights = bags(plan, merged=False)

        def call():
            table = features[0].mT.contiguous()
            sampled = F.embedding_bag(rows, table, begins, mode="sum", per_sample_weights=weights)
            return sampled.view(1, plan.anchors, 32, 64)

        return call

    arguments = features[:, None].mT, plan
    yield Case(
        "anchor_sampling",
        "forward",
        "BCNet: 1218 x 32 x 64",
        roofline.anchor_sampling(plan, 64),
        {
            "bcnet_fast": lambda: functools.partial(ops.anchor_sampling, features, plan),
            "reference": lambda: functools.partial(reference.anchor_sampling, *arguments),
            "torch.compile": compiled(reference.anchor_sampling, *arguments),
            "dense matrix": dense,
            "embedding_bag": embedding_bag,
        },
    )


def projection_cases(device: str) -> Iterator[Case]:
    """BMN's boundary-matching layer with its 3-D convolution, G-TAD's alignment with the convolution after it."""
    for name, make in (("BMN", roofline.bmn_plan), ("G-TAD", roofline.gtad_plan)):
        plan = make().to(device)
        bins, sources = plan.first.shape[1], len(plan.bins)
        features = torch.randn(1, *([sources] if sources > 1 else []), 256, plan.length, device=device)
        weight = torch.randn(bins, 256, 512, device=device) / 90
        bias = torch.randn(512, device=device)
        rows = (features if sources > 1 else features[:, None]).mT
        arguments = rows, weight, bias, plan, True

        def fast(features=features, plan=plan, weight=weight, bias=bias, strategy="auto"):
            return ops.anchor_projection(features, plan, weight, bias, relu=True, strategy=strategy)

        def dense(rows=rows, plan=plan, weight=weight, bias=bias, bins=bins):
            matrices = plan.dense().permute(1, 2, 0).split(plan.bins)  # [bins of a source, T, P] each
            matrices = [m.transpose(0, 1).flatten(1).contiguous() for m in matrices]
            kernel = weight.permute(2, 1, 0)[..., None].contiguous()  # [O, C, N, 1]

            def call():
                sampled = [
                    (rows[0, s].mT @ m).view(256, count, -1)
                    for s, (m, count) in enumerate(zip(matrices, plan.bins, strict=True))
                ]
                sampled = torch.cat(sampled, 1) if len(sampled) > 1 else sampled[0]
                return F.conv2d(sampled[None], kernel, bias).relu_()[:, :, 0].mT

            return call

        def embedding_bag(rows=rows, plan=plan, weight=weight, bias=bias):
            places, begins, weights = bags(plan, merged=True)

            def call():
                projected = torch.cat([r @ w for r, w in zip(rows[0], weight.split(plan.bins), strict=True)])
                table = projected.flatten(0, 1)
                out = F.embedding_bag(places, table, begins, mode="sum", per_sample_weights=weights)
                return (out + bias).relu_()[None]

            return call

        variants = {
            "bcnet_fast": lambda call=fast: call,
            "bcnet_fast, gather first": lambda call=fast: functools.partial(call, strategy="gather"),
            "reference": lambda a=arguments: functools.partial(reference.anchor_projection, *a),
            "torch.compile": compiled(reference.anchor_projection, *arguments),
            "dense matrix and convolution": dense,
            "embedding_bag": embedding_bag,
        }
        shape = f"{name}: {plan.anchors} x {bins} x 256 -> 512"
        yield Case("anchor_projection", "forward", shape, roofline.anchor_projection(plan, 256, 512), variants)


def norm_cases(device: str) -> Iterator[Case]:
    for rows, size in ((1218, 2048), (256, 400)):
        x, residual = torch.randn(2, 1, rows, size, device=device)
        leaves = [t.detach().requires_grad_() for t in (x, residual)]
        functions = {
            "bcnet_fast": ops.add_layer_norm,
            "reference": reference.add_layer_norm,
            "layer_norm(x + residual)": lambda x, r: F.layer_norm(x + r, x.shape[-1:]),
        }
        forward, backward = roofline.add_layer_norm(rows, size), roofline.add_layer_norm_backward(rows, size)
        variants = {n: lambda f=f, x=x, r=residual: functools.partial(f, x, r) for n, f in functions.items()}
        variants["torch.compile"] = compiled(reference.add_layer_norm, x, residual)
        yield Case("add_layer_norm", "forward", f"{rows} x {size}", forward, variants)
        variants = {n: with_gradients(f, leaves) for n, f in functions.items()}
        variants["torch.compile"] = with_gradients(torch.compile(reference.add_layer_norm), leaves)
        both = roofline.Work(*(sum(pair) for pair in zip(forward, backward, strict=True)))
        yield Case("add_layer_norm", "forward + backward", f"{rows} x {size}", both, variants)


def match_cases(device: str) -> Iterator[Case]:
    anchors = torch.from_numpy(make_anchors(256, 64).astype(np.int64)).to(device)
    table = torch.from_numpy(matching_table(256, 64).copy()).to(device)
    for windows in (1, 8, 64):
        # About as many boundaries as a trained network gives: every third snippet is a peak, few are certain.
        start, end = torch.rand(2, windows, 256, device=device) ** 3
        scores = torch.rand(3, windows, len(anchors), device=device)
        arguments = start, end, *scores, anchors, table, None
        options = {
            "boundary_threshold": 0.7, "min_classification": 0.9, "min_regression": 0.8, "max_snippets": None,
            "clamp_boundaries": False,
        }  # fmt: skip

        def loop(arguments=arguments):
            columns = [t.double().cpu().numpy() for t in arguments[:5]]
            known = arguments[5].tolist()

            def call():
                matching = search(known)
                return [match_one_window(*window, known, matching, 64) for window in zip(*columns, strict=True)]

            return call

        def fast(arguments=arguments):
            return lambda: ops.match_proposals(*arguments[:-1])

        variants = {
            "bcnet_fast": fast,
            "reference": lambda a=arguments, o=options: functools.partial(reference.match_proposals, *a, **o),
            "torch.compile": compiled(functools.partial(reference.match_proposals, **options), *arguments),
            "Python loop": loop,
        }
        work = roofline.match_proposals(windows, 256, 64, len(anchors))
        yield Case("match_proposals", "forward", f"{windows} x 256 snippets", work, variants, 1e-12)


def soft_nms_sets(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    sigma, least = soft_nms_cases.SIGMA, soft_nms_cases.MIN_SCORE
    for name, inputs in (("long video", soft_nms_cases.clustered(rng)), ("dense window", soft_nms_cases.dense(rng))):
        segments, scores = (torch.from_numpy(a).float() for a in inputs)
        given = segments.to(device), scores.to(device)
        arrays = segments.numpy(), scores.numpy(), np.array([0, len(scores)])
        epsilon = soft_nms_cases.EPSILON[torch.float32]
        options = {
            "method": "gaussian", "sigma": sigma, "threshold_low": 0.0, "threshold_high": 0.0, "min_score": least,
            "max_proposals": None, "length_epsilon": epsilon,
        }  # fmt: skip

        def fast(given=given):
            return lambda: ops.soft_nms(*given, sigma=sigma, min_score=least)[:0:-1]

        def scalar(segments=segments, scores=scores):
            with tempfile.TemporaryDirectory() as folder:
                library = soft_nms_cases.compile_scalar(Path(folder))
            return soft_nms_cases.Scalar(library, segments, scores, [0, len(scores)])

        variants = {
            "bcnet_fast": fast,
            "reference": lambda a=arrays, o=options: functools.partial(reference.soft_nms, *a, **o),
            "scalar C++": scalar,
            "Python loop": lambda s=segments, c=scores, e=epsilon: functools.partial(
                soft_nms_cases.python_loop, s.tolist(), c.tolist(), e
            ),
        }
        work = roofline.soft_nms(*arrays[:2], sigma, least)
        yield Case("soft_nms", "forward", f"{name}: {len(scores)}", work, variants)


FAMILIES: dict[str, Callable[[str], Iterator[Case]]] = {
    "difference_attention": attention_cases,
    "anchor_sampling": sampling_cases,
    "anchor_projection": projection_cases,
    "add_layer_norm": norm_cases,
    "match_proposals": match_cases,
    "soft_nms": soft_nms_sets,
}
SLOW = ("torch.compile", "dense matrix and convolution", "bcnet_fast, gather first")


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result.detach().cpu().double()]
    if isinstance(result, np.ndarray):
        return [torch.from_numpy(result).double()]
    return [tensor for part in result for tensor in _tensors(part)]


def check(case: Case, results: dict[str, Any]) -> None:
    """Raise BackendError where a variant gives something else than the reference."""
    expected = _tensors(results["reference"])
    for name, result in results.items():
        if name == "Python loop":  # gives lists, and for Soft-NMS in float64; compared in the tests
            continue
        for found, wanted in zip(_tensors(result), expected, strict=True):
            error = float((found - wanted).abs().max()) if wanted.numel() else 0.0
            if found.shape != wanted.shape or not error <= case.tolerance * float(wanted.abs().max()):
                raise BackendError(f"{case.operator} {case.shape}, {name}: differs from the reference by {error:.2e}")


def prepare(make: Callable[[], Call], device: str) -> tuple[Call, Any, float | None]:
    """(the call, its first result, the most MiB of memory that both took), None where that cannot be told."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call = make()
        result = call()
        return call, result, (torch.cuda.max_memory_allocated() - before) / 2**20
    if not sys.platform.startswith("linux"):
        call = make()
        return call, call(), None
    # Return freed memory to the system, then reset the peak.
    ctypes.CDLL(None).malloc_trim(0)
    before = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call = make()
    result = call()
    return call, result, memory_mib("VmHWM") - before


def measure(case: Case, device: str, quick: bool) -> list[dict[str, Any]]:
    """Check and time all variants of a case; one row of the table each."""
    calls, results, peaks = {}, {}, {}
    for name, make in case.variants.items():
        if not (quick and name in SLOW):
            calls[name], results[name], peaks[name] = prepare(make, device)
    check(case, results)
    del results
    timings = time_on_cuda(calls) if device == "cuda" else alternate(calls, seconds=0.5 if quick else 2.0)
    floor = floor_ms(case.work, device)
    # Projections are PyTorch's products in part.
    whole = device == "cpu" and case.operator != "anchor_projection"
    kernel = kernel_ms(calls["bcnet_fast"]) if whole else None
    return [
        {
            "operator": case.operator,
            "mode": case.mode,
            "shape": case.shape,
            "variant": name,
            "median_ms": timing.median,
            "p20_ms": timing.p20,
            "p80_ms": timing.p80,
            "peak_mib": None if name == "torch.compile" else peaks[name],  # its own is that of the compiler
            "times_reference": timings["reference"].median / timing.median,
            "bytes": case.work.bytes(4),
            "floor_percent": None
            if floor is None or not name.startswith("bcnet_fast")
            else 100 * floor / timing.median,
            "kernel_ms": kernel if name == "bcnet_fast" else None,
            "kernel_floor_percent": 100 * floor / kernel if name == "bcnet_fast" and floor and kernel else None,
        }
        for name, timing in timings.items()
    ]


def kernel_ms(call: Call) -> float | None:
    """Time of a call on the CPU in the native extension; None where it runs nothing there."""
    if native.module is None:
        return None
    seconds, totals, until = [], [], time.perf_counter() + 0.3
    names = [name for name in dir(native.module) if isinstance(getattr(native.module, name), BuiltinFunctionType)]
    with timed_extension(names, lambda _name, taken, *_, **__: seconds.append(taken)):
        while len(totals) < 3 or time.perf_counter() < until:
            seconds.clear()
            call()
            totals.append(sum(seconds))
    return 1e3 * statistics.median(totals) or None


def floor_ms(work: roofline.Work, device: str) -> float | None:
    """The floor in float32, None on a GPU whose rates bench/roofline.py does not have."""
    if device == "cpu":
        return roofline.cpu_floor_ms(work)
    gpu = roofline.known_gpu(torch.cuda.get_device_name())
    return roofline.gpu_floor_us(work, gpu, "fp32") / 1e3 if gpu else None


def time_on_cuda(calls: dict[str, Call]) -> dict[str, Timing]:
    from triton.testing import do_bench

    return {name: summarize(do_bench(call, return_mode="all")) for name, call in calls.items()}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="operators to time")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to run on")
    parser.add_argument("--quick", action="store_true", help="leave out what takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the chart there (.png, .svg or .pdf)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: there is no CUDA device here")
    if args.plot:
        require_picture_name(args.plot)

    keep_freed_memory()
    torch.manual_seed(0)
    cases = [case for family in args.only for case in FAMILIES[family](args.device)]
    rows = [row for case in progress(cases, len(cases), "cases") for row in measure(case, args.device, args.quick)]
    facts = environment(args.device)
    print(f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}; results agree")
    header = ["operator", "mode", "shape", "variant", "median ms", "20 %", "80 %", "peak MiB", "x reference", "% floor"]
    header += ["kernel ms", "% floor"]
    figures = ("median_ms", "p20_ms", "p80_ms", "peak_mib", "times_reference", "floor_percent")
    figures += ("kernel_ms", "kernel_floor_percent")
    names = ("operator", "mode", "shape", "variant")
    shown = [[row[n] for n in names] + ["" if row[f] is None else f"{row[f]:.3g}" for f in figures] for row in rows]
    print_table(header, shown)
    if args.json:
        write_json(args.json, {"environment": facts, "rows": rows})
        print(f"written: {args.json}")
    if args.plot:
        charts.operators(rows, facts, args.plot)
        print(f"written: {args.plot}")
    return 0


if __name__ == "__main__":
    run(main)
