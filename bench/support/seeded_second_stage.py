"""Weights, features and scores of the golden second-stage outputs, drawn from names, shapes and a seed.

The rules are those that the figures in tests/golden/stage2 were computed with, whose seed is 101.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from .seeded import generator

GAINS = {
    "gc1": 3.0, "gc2": 1.0, "backbone": 2.0, "Act_MLP": 1.5, "Comp_MLP": 1.5, "activity_fc": 2.0,
    "completeness_fc": 1.0, "regressor_fc": 0.5,
}  # fmt: skip
SHIFTS = {"gc1": -0.7, "backbone": -0.1, "Act_MLP": -0.3, "Comp_MLP": -0.3}  # of biases


def parameter(system: str, name: str, shape: list[int], seed: int) -> np.ndarray:
    """One tensor of a released network, float32. system: a key of tests/golden/stage2/keys.json."""
    values = generator(seed, f"{system}/{name}").standard_normal(shape)
    parts = name.split(".")
    group = next(part for part in parts if part in GAINS)
    if len(shape) == 1:
        values = 0.05 * values + SHIFTS.get(group, 0.0)
    else:
        # Graph layers store [inputs, outputs], all others [outputs, inputs, ...].
        inputs = shape[0] if parts[-2] in ("gc1", "gc2") else np.prod(shape[1:])
        values = values * (GAINS[group] / np.sqrt(float(inputs)))
    return values.astype(np.float32)


def state(keys: Path, system: str, seed: int) -> dict[str, torch.Tensor]:
    """All weights of a system, whose shapes keys.json has."""
    shapes = json.loads(keys.read_text())[system]
    return {name: torch.from_numpy(parameter(system, name, shape, seed)) for name, shape in shapes.items()}


def release_file(path: Path, state: dict[str, torch.Tensor], reg_stats: np.ndarray, prefix: str = "module.") -> Path:
    """Write a checkpoint as the public codes do."""
    weights = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"epoch": 20, "state_dict": weights, "best_loss": 1.5, "reg_stats": torch.from_numpy(reg_stats)}, path)
    return path


def features(name: str, rows: int, seed: int, channels: int = 1024, signed: bool = False) -> np.ndarray:
    """Features of a video, float32 [T, C]: non-negative and sparse unless `signed`."""
    random = generator(seed, f"features/{name}")
    noise = np.zeros((rows + 8, channels))
    noise[4 : 4 + rows] = random.standard_normal((rows, channels))
    slow = random.standard_normal(((rows + 15) // 16, channels))
    smooth = np.zeros((rows, channels))
    for tap in range(9):
        smooth = smooth + noise[tap : tap + rows]
    values = 0.6 * (smooth / 3.0) + 0.8 * np.repeat(slow, 16, axis=0)[:rows]
    return (values if signed else np.maximum(values - 1.0, 0.0)).astype(np.float32)


def raw_scores(
    stream: str, video: str, labels: np.ndarray, ious: np.ndarray, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of one stream, float64: activity [N, K + 1], completeness [N, K], applied regression [N, K, 2].

    labels, ious: of all proposals of the video in the list, those that are left out when it is read too
    """
    random, count = generator(seed, f"post/{stream}/{video}"), len(labels)
    activity = 1.5 * random.standard_normal((count, classes + 1))
    completeness = 0.8 * random.standard_normal((count, classes))
    regression = 0.12 * random.standard_normal((count, classes, 2))
    activity[:, 0] += 2.0 * (1.0 - ious)
    found = np.flatnonzero(labels > 0)
    activity[found, labels[found]] += 3.0 * ious[found]
    completeness[found, labels[found] - 1] += 1.5 * (ious[found] - 0.5)
    return activity, completeness, regression


def loss_inputs(
    case: str, videos: int, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores of 8 proposals a video and their targets: activity, completeness, regression, label, kind, target."""
    random, count = generator(seed, f"loss/{case}"), 8 * videos
    activity = 1.5 * random.standard_normal((count, classes + 1))
    completeness = 1.5 * random.standard_normal((count, classes))
    regression = 1.2 * random.standard_normal((count, classes, 2))
    label = 1 + random.integers(0, classes, count)
    target = 1.2 * random.standard_normal((count, 2))
    kind = np.tile([0, 1, 1, 1, 1, 1, 1, 2], videos)
    if case.startswith("fallback"):
        kind[:8] = 0
    label[kind == 2] = 0
    target[kind != 0] = 0.0
    return activity, completeness, regression, label, kind, target
