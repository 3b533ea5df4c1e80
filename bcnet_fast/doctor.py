"""Report what was built, which backend each operator uses and why, and whether every backend is correct.

    python -m bcnet_fast.doctor

Plain text for bug reports. Exit code: 0 success, 1 a usable backend gives a wrong result.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from . import __version__, ops
from .cli.parser import command_parser, run
from .errors import BackendError
from .geometry.proposal_map import bmn_intervals
from .ops import backends as ops_backends
from .ops import native, reference
from .ops.sampling_plan import interpolated_plan
from .text import count

PACKAGES = ("torch", "triton", "numpy", "h5py", "safetensors", "matplotlib", "tensorboard")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """Name of the processor, as the operating system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def facts() -> Iterator[tuple[str, str]]:
    """Names and values that describe installation and machine."""
    yield "bcnet_fast", f"{__version__}, in {Path(__file__).parent}"
    yield "python", f"{platform.python_version()}, {platform.platform()}"
    for package in PACKAGES:
        yield package, _version(package)
    yield "processor", f"{cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            memory = device.total_memory / 2**30
            yield f"cuda:{index}", f"{device.name}, sm_{device.major}{device.minor}, {memory:.0f} GiB"
        yield "cuda", f"{torch.version.cuda}"
    else:
        built = f"torch was built for CUDA {torch.version.cuda}, but there is no device" if torch.version.cuda else ""
        yield "cuda", f"none ({built or 'torch was built without CUDA'})"
    if native.module is None:
        yield "native extension", f"no: {native.reason}"
    else:
        sets = ", ".join(native.module.INSTRUCTION_SETS)
        yield (
            "native extension",
            f"yes, built by {native.module.COMPILER}; instruction sets: {sets} (the first is used)",
        )
    module, reason = native.cuda()
    if module is None:
        yield "CUDA extension", f"no: {reason}"
    else:
        yield "CUDA extension", f"yes, built by {module.COMPILER}"
    yield ops_backends.VARIABLE, os.environ.get(ops_backends.VARIABLE, "not set (auto)")


def _check_soft_nms(device: torch.device) -> float:
    """Largest error of scores against the reference in float64; infinite if other segments are kept."""
    rng = np.random.default_rng(0)
    start, length = rng.uniform(0, 100, 300), rng.exponential(5, 300)
    segments, scores = np.stack([start, start + length], 1), rng.random(300)
    indices, expected = reference.soft_nms(
        segments, scores, np.array([0, 300]), method="gaussian", sigma=0.5, threshold_low=0.0, threshold_high=0.0,
        min_score=0.001, max_proposals=None, length_epsilon=0.0,
    )  # fmt: skip
    found = ops.soft_nms(*(torch.from_numpy(a).to(device) for a in (segments, scores)), min_score=0.001)
    if found[2].tolist() != indices.tolist():
        return float("inf")
    return float(np.abs(found[1].cpu().numpy() - expected).max())


def _check_difference_attention(device: torch.device) -> float:
    """Largest error of float32 outputs against the reference in float64."""
    generator = torch.Generator().manual_seed(0)
    query, key, action, background = (
        torch.randn(1, 2, 33, 64, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    expected = reference.difference_attention(query, key, action, background)
    query, key, action, background = (t.float().to(device) for t in (query, key, action, background))
    found = ops.difference_attention(query, key, action, background)
    return max(float((f.cpu() - e).abs().max()) for f, e in zip(found, expected, strict=True))


def _check_anchor_sampling(device: torch.device) -> float:
    """Largest error of BMN sampling and of both projections in float32 against dense float64."""
    generator = torch.Generator().manual_seed(0)
    plan = interpolated_plan(bmn_intervals(13), 13, 4, 3)
    features, weight = (torch.randn(shape, generator=generator) for shape in ((1, 9, 13), (4, 9, 7)))
    sampled = torch.einsum("pnt,bct->bpnc", plan.dense().double(), features.double())
    projected = torch.einsum("bpnc,nco->bpo", sampled, weight.double())
    given = features.to(device), plan.to(device), weight.to(device)
    found = [ops.anchor_projection(*given, strategy=strategy) for strategy in ("project", "gather")]
    errors = [found[0].cpu() - projected, found[1].cpu() - projected, ops.anchor_sampling(*given[:2]).cpu() - sampled]
    return max(float(error.abs().max()) for error in errors)


def _check_add_layer_norm(device: torch.device) -> float:
    """Largest error of float32 output and gradient against the reference in float64."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(33, 400, generator=generator, dtype=torch.float64) for _ in range(3)]

    def run(function, x, residual, grad):
        x = x.requires_grad_()
        out = function(x, residual)
        return out.detach(), *torch.autograd.grad(out, x, grad)

    found = run(ops.add_layer_norm, *(t.to(device, torch.float32) for t in given))
    expected = run(reference.add_layer_norm, *given)
    return max(float((f.cpu() - e).abs().max()) for f, e in zip(found, expected, strict=True))


def _check_match_proposals(device: torch.device) -> float:
    """Largest error of segments and scores against the reference; infinite if other pairs are found."""
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.rand(2, 60, generator=generator) for _ in range(2))
    classification, regression, background = (torch.rand(2, 9, generator=generator) for _ in range(3))
    anchors, table = torch.arange(18.0).view(9, 2), (torch.arange(60 * 31) % 9).int().view(60, 31)
    inputs = (start, end, classification, regression, background, anchors, table)
    lengths = torch.tensor([60, 41])
    expected = reference.match_proposals(
        *inputs, lengths=lengths, boundary_threshold=0.7, min_classification=0.5, min_regression=0.5,
        max_snippets=None, clamp_boundaries=False,
    )  # fmt: skip
    found = ops.match_proposals(
        *(t.to(device) for t in inputs), lengths=lengths.to(device), min_classification=0.5, min_regression=0.5
    )
    found = [t.cpu() for t in found]
    if not (torch.equal(found[2], expected[2]) and torch.equal(found[3], expected[3])):
        return float("inf")
    return max(float((f - e).abs().max()) for f, e in zip(found[:2], expected[:2], strict=True))


# Operator -> function that returns its largest error on a device with the active backend, and the allowed error.
CHECKS: dict[str, tuple[Callable[[torch.device], float], float]] = {
    "soft_nms": (_check_soft_nms, 1e-12),
    "difference_attention": (_check_difference_attention, 1e-5),
    "anchor_sampling": (_check_anchor_sampling, 1e-4),
    "add_layer_norm": (_check_add_layer_norm, 1e-5),
    "match_proposals": (_check_match_proposals, 0.0),
}


def backends() -> Iterator[tuple[str, str, str, str]]:
    """Yield (operator, device, backend, remark) of every backend; for a usable one the remark is its self-test."""
    for op, preference in ops_backends.PREFERENCE.items():
        for kind, names in preference.items():
            device = torch.device(kind)
            if kind == "cuda" and not torch.cuda.is_available():
                yield op, kind, " > ".join(names), "no CUDA device"
                continue
            try:
                chosen = ops_backends.choose(op, device)
            except BackendError as error:
                chosen = None
                yield op, kind, "none", str(error)
            for name in names:
                remark = ops_backends.unusable(op, name, device) or _self_test(op, name, device)
                yield op, kind, name + (" (chosen)" if name == chosen else ""), remark


def _self_test(op: str, backend: str, device: torch.device) -> str:
    check, allowed = CHECKS[op]
    try:
        with ops_backends.use_backend(backend):
            error = check(device)
    except Exception as failure:  # Any failure of a backend belongs in the report.
        return f"FAIL, {type(failure).__name__}: {failure}"
    return f"{'PASS' if error <= allowed else 'FAIL'}, largest error {error:.1e} (allowed {allowed:.0e})"


def main(argv: list[str] | None = None) -> int:
    command_parser("doctor", __doc__).parse_args(argv)
    rows = list(facts())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print()
    found = list(backends())
    widths = [max(len(row[i]) for row in found) for i in range(3)]
    for *cells, remark in found:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)), remark, sep="  ")
    failed = [row for row in found if row[3].startswith("FAIL")]
    if failed:
        print(f"\n{count(len(failed), 'usable backend')} gave a wrong result", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
