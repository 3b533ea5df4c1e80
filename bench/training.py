"""A training step of this package's networks beside that of the reference.

    python bench/training.py [--quick] [--only NAME ...] [--threads N] [--json FILE] [--device cpu|cuda]

A step is forward, loss, backward and PyTorch's fused Adam, the same for both, in float32, for four windows of random
features with random instances; features and labels are at hand. Sizes are the released ones. Both networks start with
the same weights, in one process, and take turns; nothing is timed before their losses and gradients agree (relative to
their norm: 1e-4 and 1e-2). Columns:

    ms      median, and the 20 % and 80 % point in the file of --json
    x ref   how many times faster than the reference
    MiB     most memory of a process of its own that makes two steps, with interpreter, PyTorch, weights and optimizer
            (cuda: of the GPU)
    of ref  as part of the reference's

--quick: fewer runs, and only BCNet and G-TAD for ActivityNet.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from support.environment import begin
from support.tables import print_table
from support.timing import alternate, memory_mib
from torch import Tensor, nn
from torch.utils.data import default_collate

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.config import ModelConfig
from bcnet_fast.errors import BackendError, InputError
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import proposal_map
from bcnet_fast.networks import reference
from bcnet_fast.networks import trainable as models
from bcnet_fast.presets import PRESETS
from bcnet_fast.progress import progress
from bcnet_fast.storage.output import write_json
from bcnet_fast.training.losses import bcnet_loss, map_loss
from bcnet_fast.training.targets import map_targets, window_targets

SEED, BATCH, LEARNING_RATE = 17, 4, 1e-4
VARIANTS = {"reference": reference.NETWORKS, "bcnet_fast": models.NETWORKS}
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-2
# Targets of issue 6, on two CPU threads: times faster, and part of the memory.
TARGETS = {"bcnet": (1.3, 0.5), "bmn": (5.0, 0.5), "gtad": (5.0, 0.5)}
CASES = {
    "bcnet thumos14": "BCNet, THUMOS14",
    "bmn activitynet13": "BMN, ActivityNet-1.3",
    "bmn thumos14": "BMN, THUMOS14",
    "gtad thumos14": "G-TAD, THUMOS14",
    "gtad activitynet13": "G-TAD, ActivityNet-1.3",
}
QUICK = ("bcnet thumos14", "gtad activitynet13")


def config_of(case: str) -> ModelConfig:
    system, preset = case.split()
    return PRESETS[system][preset].model


def instances(rng: np.random.Generator, config: ModelConfig) -> np.ndarray:
    """One to five in a window, some beyond its ends, from two snippets to half of the longest proposal."""
    count = rng.integers(1, 6)
    middle = rng.uniform(0, config.window, count)
    half = rng.uniform(1, config.max_duration / 4, count)
    return np.stack([middle - half, middle + half], axis=1)


def batch(config: ModelConfig, device: str) -> tuple[Tensor, Any, Callable[..., dict[str, Tensor]]]:
    """Features, targets and the loss of a network's output and targets."""
    rng = np.random.default_rng(SEED)
    shape = BATCH, config.feature_dim, config.window
    features = torch.from_numpy(np.maximum(rng.standard_normal(shape), 0).astype(np.float32)).to(device)
    if config.name == "bcnet":
        anchors = make_anchors(config.window, config.max_duration)
        made = [window_targets(instances(rng, config), anchors, config.window) for _ in range(BATCH)]
        loss = bcnet_loss
    else:
        cells = proposal_map(config)
        made = [map_targets(instances(rng, config), cells, config.window) for _ in range(BATCH)]
        loss = functools.partial(map_loss, valid=torch.from_numpy(cells.valid).to(device))
    targets = default_collate(made)
    return features, type(targets)(*(target.to(device) for target in targets)), loss


class Trainer:
    """A network with its optimizer; calling it makes one step."""

    def __init__(self, case: str, variant: str, device: str) -> None:
        config = config_of(case)
        torch.manual_seed(SEED)
        self.network: nn.Module = VARIANTS[variant][config.name](config).to(device).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), LEARNING_RATE, fused=True)
        self.features, self.targets, self.loss = batch(config, device)
        self.device = device

    def backward(self) -> float:
        """Leaves the gradients in the network."""
        torch.manual_seed(SEED)  # of dropout, and of the regression's sampling
        self.optimizer.zero_grad()
        loss = self.loss(self.network(self.features), self.targets)["total"]
        loss.backward()
        return float(loss.detach())

    def __call__(self) -> float:
        loss = self.backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return loss


def compare(case: str, trainers: dict[str, Trainer]) -> dict[str, float]:
    """The deviations of loss and gradient; BackendError where they are more than rounding."""
    ours, theirs = trainers["bcnet_fast"], trainers["reference"]
    found, expected = ours.backward(), theirs.backward()
    pairs = list(zip(ours.network.parameters(), theirs.network.parameters(), strict=True))
    square = sum(float((a.grad.double() - b.grad.double()).square().sum()) for a, b in pairs)
    norm = sum(float(b.grad.double().square().sum()) for _, b in pairs)
    errors = {"loss": abs(found - expected) / abs(expected), "gradient": (square / norm) ** 0.5}
    for (what, error), tolerance in zip(errors.items(), (LOSS_TOLERANCE, GRADIENT_TOLERANCE), strict=True):
        if not error <= tolerance:
            raise BackendError(f"{case}: the {what} is off by {error:.2e}, expected at most {tolerance:g}")
    return errors


def peak_mib(case: str, variant: str, device: str, threads: int) -> float | None:
    """Runs in a fresh process. The first step makes the optimizer's state, the second has it from its start."""
    torch.set_num_threads(threads)
    trainer = Trainer(case, variant, device)
    for _ in range(2):
        trainer()
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else memory_mib("VmHWM")


def measure(case: str, device: str, quick: bool) -> dict[str, Any]:
    peak = {}
    for variant in VARIANTS:
        # A forked process would start with the memory of this one.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak[variant] = pool.submit(peak_mib, case, variant, device, torch.get_num_threads()).result()
    trainers = {variant: Trainer(case, variant, device) for variant in VARIANTS}
    errors = compare(case, trainers)
    times = alternate(trainers, seconds=0, least_runs=2 if quick else 5)
    ours, theirs = "bcnet_fast", "reference"
    faster = times[theirs].median / times[ours].median
    share = None if peak[theirs] is None else peak[ours] / peak[theirs]
    least, most = TARGETS[case.split()[0]]
    return {
        "system": CASES[case],
        "batch": BATCH,
        "times_ms": {variant: timing._asdict() for variant, timing in times.items()},
        "times_reference": faster,
        "peak_mib": peak,
        "memory_share": share,
        "errors": errors,
        "targets": {"times_reference": least, "memory_share": most},
    }


def show(rows: list[dict[str, Any]]) -> None:
    header = ["system", "reference ms", "bcnet_fast ms", "x ref", "target", "reference MiB", "bcnet_fast MiB", "of ref"]
    table = []
    for row in rows:
        times = [f"{row['times_ms'][variant]['median']:.0f}" for variant in VARIANTS]
        peaks = ["" if row["peak_mib"][variant] is None else f"{row['peak_mib'][variant]:.0f}" for variant in VARIANTS]
        share = "" if row["memory_share"] is None else f"{row['memory_share']:.2f}"
        target = f">= {row['targets']['times_reference']:g}, <= {row['targets']['memory_share']:g}"
        table.append([row["system"], *times, f"{row['times_reference']:.2f}", target, *peaks, share])
    print_table(header, table)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of: {', '.join(CASES)}; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to run on")
    parser.add_argument("--threads", type=int, metavar="N", help="for all; default: as many as PyTorch takes")
    parser.add_argument("--quick", action="store_true", help="a minute")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: there is no CUDA device here")
    cases = args.only or list(QUICK if args.quick else CASES)
    if unknown := [case for case in cases if case not in CASES]:
        raise InputError(f"--only {unknown[0]!r}: expected some of {', '.join(map(repr, CASES))}")
    facts = begin(args.threads, [args.json], args.device)
    rows = []
    for case in progress(cases, len(cases), "systems"):
        rows.append(measure(case, args.device, args.quick))
        gc.collect()
    show(rows)
    if args.json:
        write_json(args.json, {"environment": facts, "rows": rows}, indent=1)
        print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    run(main)
