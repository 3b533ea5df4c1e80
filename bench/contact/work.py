"""The work that users do: proposals of whole videos, and training."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from training import Trainer as PlainTrainer
from training import batch, compare

import bcnet_fast
from bcnet_fast import profiling, train
from bcnet_fast.data.annotations import VideoAnnotation
from bcnet_fast.data.features import open_features
from bcnet_fast.data.synthetic import SyntheticConfig, SyntheticVideo, make_videos, write_dataset
from bcnet_fast.data.timing import TimeResolver
from bcnet_fast.evaluation import average_recall
from bcnet_fast.inference.predict import Failure, predict
from bcnet_fast.ops.precision import gpu_products
from bcnet_fast.presets import PRESETS
from bcnet_fast.protocols import DEFAULT
from bcnet_fast.training.trainer import Trainer

from .context import Context
from .measuring import precisions
from .networks import checkpoint, config_of

VIDEOS, SEED = 20, 11
TIOU = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = 1.0  # by how much average recall may differ from that of float64


def videos(context: Context) -> None:
    bundled = Path(str(resources.files("bcnet_fast") / "assets" / "demo.safetensors"))
    config = bcnet_fast.load(bundled, device="cpu").config
    folder, truth = _dataset(context, "bundled", config.model.feature_dim)
    exact = _proposals(context, bundled, folder, truth, "fp64")[0]
    expected = _recall(truth, exact)
    context.fact("fp64: AR@100, %", expected)
    for precision in ("fp32", "bf16") if context.small else precisions(context, "fp32", "tf32", "fp16", "bf16"):
        context.attempt(
            f"bundled, {precision}", _bundled, context, bundled, folder, truth, precision, exact, expected, seconds=3
        )
    if not context.small:
        large, annotations = _dataset(context, "large", config_of(context, "bcnet").model.feature_dim)
        for precision in precisions(context, "fp16", "fp32"):
            path = checkpoint(context, "bcnet")
            context.attempt(
                f"THUMOS14 sizes, {precision}", _large, context, path, large, annotations, precision, seconds=5
            )
    context.note("Stages wait for the device at their end, so their sum is more than the same work takes unwatched.")


def _dataset(context: Context, name: str, channels: int) -> tuple[Path, dict[str, VideoAnnotation]]:
    made = list(make_videos(VIDEOS, seed=SEED, subset="test", config=SyntheticConfig(feature_dim=channels)))
    folder, _ = write_dataset(context.work(name), made)
    return folder, {video.annotation.id: video.annotation for video in made}


def _proposals(
    context: Context, path: Path, folder: Path, truth: dict[str, VideoAnnotation], precision: str
) -> tuple[dict[str, np.ndarray], profiling.Profile, float]:
    """Segments and scores of each video, the stages that made them, and the seconds without being watched."""
    model = bcnet_fast.load(path, device=context.device, precision=precision)
    archive = open_features(folder, feature_dim=model.config.model.feature_dim)
    times = TimeResolver(model.config, table=truth)

    def run() -> dict[str, np.ndarray]:
        found = {}
        for result in predict(model, archive, archive.ids, times, DEFAULT):
            if isinstance(result, Failure):
                raise RuntimeError(result.reason)
            found[result.video] = np.column_stack([result.segments, result.scores])
        return found

    if not context.small:
        run()  # graphs are captured, kernels compiled
    with profiling.record() as profile:
        found = run()
    if context.small:
        return found, profile, 0.0
    started = time.perf_counter()
    run()
    return found, profile, time.perf_counter() - started


def _recall(truth: dict[str, VideoAnnotation], found: dict[str, np.ndarray]) -> float:
    return 100 * average_recall(truth, found, tiou_thresholds=TIOU, max_proposals=100).at(100)


def _bundled(
    context: Context,
    path: Path,
    folder: Path,
    truth: dict[str, VideoAnnotation],
    precision: str,
    exact: dict[str, np.ndarray],
    expected: float,
) -> None:
    found, profile, seconds = _proposals(context, path, folder, truth, precision)
    recall, kept = _recall(truth, found), _overlap(found, exact)
    _stages(context, "bundled", precision, profile, seconds)
    context.fact(f"{precision}: AR@100, %", recall)
    context.fact(f"{precision}: of the 100 best proposals of float64, %", kept)
    off = abs(recall - expected)
    context.check(off <= RECALL_POINTS, f"{precision}: AR@100 differs from float64 by {off:.2f} points")
    least = 99.0 if precision == "fp32" else 90.0
    context.check(kept >= least, f"{precision}: {kept:.1f} % of the 100 best proposals are those of float64")


def _overlap(found: dict[str, np.ndarray], exact: dict[str, np.ndarray], near_s: float = 0.16) -> float:
    """Percent of the 100 best of each video that are among the 100 best of the other, to half a snippet."""
    shares = []
    for video, rows in exact.items():
        one, other = rows[:100, None, :2], found[video][None, :100, :2]
        shares.append((np.abs(one - other).max(axis=2) < near_s).any(axis=1).mean() if len(rows) else 1.0)
    return 100 * float(np.mean(shares))


def _large(context: Context, path: Path, folder: Path, truth: dict[str, VideoAnnotation], precision: str) -> None:
    _, profile, seconds = _proposals(context, path, folder, truth, precision)
    _stages(context, "THUMOS14 sizes, random", precision, profile, seconds)


def _stages(context: Context, network: str, precision: str, profile: profiling.Profile, seconds: float) -> None:
    totals: dict[tuple[int, str], list[float]] = {}
    for event in sorted(profile.events, key=lambda event: (event.start, event.depth)):
        total = totals.setdefault((event.depth, event.name), [0, 0.0])
        total[0] += 1
        total[1] += event.end - event.start
    first = {"network": network, "precision": precision}
    if seconds:
        context.fact(f"{network}, {precision}: ms without being watched", 1e3 * seconds)
    whole = profile.seconds or 1.0
    context.row(**first, stage="(all)", calls=1, ms=1e3 * whole, **{"share, %": 100.0})
    for (depth, name), (calls, taken) in totals.items():
        stage = "> " * depth + name
        context.row(**first, stage=stage, calls=calls, ms=1e3 * taken, **{"share, %": 100 * taken / whole})


def training_steps(context: Context) -> None:
    """Losses stay finite, the first one is that of the reference, and the memory is recorded."""
    for system, preset in (("bcnet", "thumos14"), ("bmn", "activitynet13"), ("gtad", "activitynet13")):
        preset = "synthetic" if context.small else preset
        for precision in precisions(context, "fp32", "tf32", "bf16"):
            context.attempt(f"{system}, {precision}", _five_steps, context, system, preset, precision, seconds=4)
    context.attempt("the reference", _first_step, context, "synthetic" if context.small else "thumos14", seconds=5)


def _five_steps(context: Context, system: str, preset: str, precision: str) -> None:
    config = PRESETS[system][preset].override({"train": {"precision": precision}}, "first contact")
    device = torch.device(context.device, 0) if context.device == "cuda" else torch.device("cpu")
    trainer = Trainer(config, DEFAULT.losses, device)
    features, targets, _ = batch(config.model, context.device)
    cells = targets.anchor_action if hasattr(targets, "anchor_action") else targets.action
    draws = torch.rand(2, len(features), *cells.shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    if context.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    losses, times = [], []
    for _ in range(5):
        started = time.perf_counter()
        loss = trainer.backward(features, targets, draws, [len(features)])["total"]
        trainer.step()
        losses.append(float(loss.detach()))
        times.append(1e3 * (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated() / 2**20 if context.device == "cuda" else None
    context.row(
        **{"network": system, "precision": precision, "windows": len(features), "first loss": losses[0]},
        **{"fifth loss": losses[-1], "first step ms": times[0], "best step ms": min(times[1:]), "peak MiB": peak},
    )
    finite = all(np.isfinite(losses)) and all(bool(p.isfinite().all()) for p in trainer.network.parameters())
    context.check(finite, f"{system}, {precision}: losses {losses}, or weights, are not finite")
    context.check(losses[-1] < losses[0], f"{system}, {precision}: the loss of one batch grew from {losses}")


def _first_step(context: Context, preset: str) -> None:
    """Loss and gradients of BCNet's training network beside those of the plain reference, in float32."""
    case = f"bcnet {preset}"
    with gpu_products():
        trainers = {variant: PlainTrainer(case, variant, context.device) for variant in ("bcnet_fast", "reference")}
        errors = compare(case, trainers)
    for name, error in errors.items():
        context.fact(f"BCNet, fp32: {name} beside the reference, relative error", error)


def training_epochs(context: Context) -> None:
    """Two epochs at once, and one, stopped, then the other: the same log and the same weights."""
    folder = context.work("training")
    kind = SyntheticConfig()

    def made() -> Iterator[SyntheticVideo]:
        for subset, count in (("training", 6 if context.small else 24), ("validation", 2 if context.small else 8)):
            yield from make_videos(count, seed=0, subset=subset, config=kind)

    features, annotations = write_dataset(folder, made())

    def epochs(name: str, count: int, *flags: str) -> tuple[list[dict[str, str]], dict[str, torch.Tensor]]:
        output = folder / name
        arguments = {"--preset": "synthetic", "--features": features, "--annotations": annotations, "--output": output}
        arguments |= {"--device": context.device, "--set": f"train.epochs={count}"}
        started = time.perf_counter()
        code = train.main([*(str(part) for pair in arguments.items() for part in pair), *flags])
        if code:
            raise RuntimeError(f"train ended with {code}")
        with open(output / "log.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        context.fact(f"seconds, {name}, up to epoch {count}", time.perf_counter() - started)
        return rows, load_file(output / "last.safetensors")

    if context.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    whole, weights = epochs("whole", 2)
    if context.device == "cuda":
        context.fact("most memory, MiB", torch.cuda.max_memory_allocated() / 2**20)
        context.fact("memory after it, MiB", torch.cuda.memory_allocated() / 2**20)
    for row in whole:
        values = {name: float(value) for name, value in row.items()}
        context.row(**{name: values[name] for name in ("epoch", "total", "AR@10", "AR@100", "AUC")})
        context.check(
            bool(np.isfinite(list(values.values())).all()), f"epoch {row['epoch']}: not all figures are finite"
        )
    epochs("resumed", 1)
    resumed, again = epochs("resumed", 2, "--resume")
    _compare_trainings(context, (whole, weights), (resumed, again))


def _compare_trainings(context: Context, one: Any, other: Any) -> None:
    """Equal to the bit on a CPU, as is promised; on a GPU sums may come in another order."""
    (rows, weights), (resumed, again) = one, other
    same = rows == resumed and all(torch.equal(weights[name], again[name]) for name in weights)
    context.fact("resumed training has the same bits", same)
    if same:
        return
    losses = [[float(row["total"]) for row in log] for log in (rows, resumed)]
    off = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    context.fact("largest relative difference of a loss", off)
    allowed = 0.0 if context.device == "cpu" else 0.02
    context.check(off <= allowed, f"a resumed training has other losses, by {off:.2g}, allowed {allowed:g}")
