"""Inputs and calls that the tests of `refine` share: small second-stage networks, lists, features, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from helpers.second_stage import SMALL_MUSES, SMALL_PGCN

from bcnet_fast import refine
from bcnet_fast.config import PGCNConfig, RegressionStats, SecondStageConfig
from bcnet_fast.networks.reference import SECOND_STAGE
from bcnet_fast.storage.checkpoint import save_checkpoint

LABELS = ("cut", "peel", "stir")
SMALL = {"pgcn": SMALL_PGCN, "muses": SMALL_MUSES}
FRAMES = {"one": 400, "two": 320, "three": 240}
RATE = 25


def checkpoint(path: Path, system: str = "pgcn", *, seed: int = 0, std: float = 0.5, **changes) -> Path:
    """Weights of a small network. std: of the last layers', for scores of ordinary size from features around 1."""
    model = changes.pop("model", SMALL[system])
    config = SecondStageConfig("small", model, regression=RegressionStats((0.0, 0.0), (0.1, 0.1)), labels=LABELS)
    config = replace(config, **changes)
    torch.manual_seed(seed)
    network = SECOND_STAGE[model.name](model)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "_fc.weight" in name:
                parameter.normal_(std=std)
    save_checkpoint(path, network.state_dict(), config)
    return path


def rows_of(frames: int) -> int:
    return (frames - 64) // 8 + 1


def make_features(folder: Path, width: int = 6, seed: int = 0, names=FRAMES) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for name in names:
        np.save(folder / f"{name}.npy", rng.standard_normal((rows_of(FRAMES[name]), width)).astype(np.float32))
    return folder


def segments_of(name: str, count: int = 12) -> np.ndarray:
    """Proposals [N, 2] in frames."""
    rng = np.random.default_rng(len(name))
    start = rng.integers(0, FRAMES[name] - 60, count)
    return np.stack([start, start + rng.integers(20, 60, count)], axis=1)


def make_list(path: Path, proposals: dict[str, np.ndarray] | None = None, rate: int = RATE) -> Path:
    """A proposal list with an instance in every video."""
    lines = []
    for name, segments in (proposals or {name: segments_of(name) for name in FRAMES}).items():
        duration = FRAMES[name] / rate
        lines += ["# 0", f"some/{name}", f"{duration}", f"{rate}", "1", "1 10 60", f"{len(segments)}"]
        lines += [f"0 0 0 {start} {end}" for start, end in segments.tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_results(path: Path, proposals: dict[str, np.ndarray] | None = None, label: str | None = None) -> Path:
    """The same as a result file, in seconds."""
    proposals = proposals or {name: segments_of(name) for name in FRAMES}
    extra = {} if label is None else {"label": label}
    results = {
        name: [{"score": 0.5, "segment": [s / RATE, e / RATE]} | extra for s, e in segments.tolist()]
        for name, segments in proposals.items()
    }
    path.write_text(json.dumps({"results": results}))
    return path


def run(proposals: Path, features, checkpoints, output: Path, *more: object) -> int:
    flags = ["--proposals", proposals, "--output", output, "--features", *np.atleast_1d(features).tolist()]
    flags += ["--checkpoint", *np.atleast_1d(checkpoints).tolist(), "--device", "cpu", *more]
    return refine.main([str(flag) for flag in flags])


def results_of(path: Path) -> dict[str, list[dict]]:
    return json.loads(path.read_text())["results"]


WIDE = PGCNConfig(classes=3, feature_dim=10, hidden=5)
