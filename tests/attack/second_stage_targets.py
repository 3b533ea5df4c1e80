"""Inputs of the second stage to mutate: published checkpoints, checkpoints of this package, and proposal lists."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from attack import mutations as m
from attack.target import Target
from helpers.second_stage import SMALL_MUSES, SMALL_PGCN

from bcnet_fast.config import RegressionStats, SecondStageConfig
from bcnet_fast.networks.reference import SECOND_STAGE
from bcnet_fast.presets import SECOND_STAGE_PRESETS
from bcnet_fast.storage.checkpoint import save_checkpoint

SYSTEMS = {"pgcn": SMALL_PGCN, "muses": SMALL_MUSES}
LIST = """# 0
validation/a
40.0
10
2
1 20 60
2 150 200
4
1 0.8 0.9 18 70
2 0.2 0.9 100 300
0 0 0 0 10
2 0.005 0.2 140 390
#1
validation/b
8
25.0
1
3 10 40
1
3 0.9 1 12 40
"""


def targets(root: Path) -> list[Target]:
    """Write the inputs below `root`."""
    (root / "second" / "features").mkdir(parents=True)
    for video, rows in (("a", 43), ("b", 18)):
        array = np.random.default_rng(0).standard_normal((rows, SMALL_PGCN.feature_dim))
        np.save(root / "second" / "features" / f"{video}.npy", array.astype(np.float32))
    (root / "second" / "classes.txt").write_text("x\ny\nz\n")
    (root / "second" / "list.txt").write_text(LIST)
    refine = ("refine", "--proposals", "list.txt", "--features", "features", "--classes", "classes.txt", "--fps", "25")
    refine += ("--device", "cpu", "--output", "out.json", "--checkpoint")
    # A configuration may ask for other features and classes than there are.
    asked = ("features", "classes.txt", "--fps", "--stride", "video '")
    checkpoint = (m.any_bytes, m.whole_file, m.safetensors_header, m.safetensors_header, m.safetensors_weights)
    release = (m.any_bytes, m.whole_file, m.zip_members, m.torch_objects, m.torch_objects, _regression_stats)
    found = []
    for system, model in SYSTEMS.items():
        state = SECOND_STAGE[system](model).state_dict()
        stored, published = f"{system}.safetensors", f"{system}.pth.tar"
        stats = RegressionStats((0.1, 0.2), (0.3, 0.4))
        save_checkpoint(root / "second" / stored, state, SecondStageConfig("thumos14", model, regression=stats))
        content = {
            "epoch": 1,
            "reg_stats": torch.ones(2, 2),
            "state_dict": {f"module.{k}": v for k, v in state.items()},
        }
        torch.save(content, root / "second" / published)
        preset = next(iter(SECOND_STAGE_PRESETS[system]))
        convert = ("convert", f"--{system}", published, "--preset", preset, "--output", "out.safetensors")
        found += [
            Target(
                f"refine {system}", "second", (*refine, stored), stored, checkpoint, (stored, *asked), ("out.json",)
            ),
            Target(f"release {system}", "second", convert, published, release, (published,), ("out.safetensors",)),
        ]
    own = (m.any_bytes, m.whole_file, m.words, m.words, m.lines)
    run = (*refine, "pgcn.safetensors")
    (root / "second" / "scores.json").write_text('{"a": {"x": 0.5, "y": 0.5}, "b": {"z": 1.0}}')
    (root / "second" / "times.csv").write_text("video,fps,stride,offset,duration\na,25,8,0,14\nb,25,8,,6\n")
    tree = (m.any_bytes, m.whole_file, m.json_tree, m.json_tree)
    cells = (m.any_bytes, m.whole_file, m.csv_cells, m.csv_cells)
    for victim, mutations, named, more in (
        ("list.txt", own, ("list.txt", "features"), ()),
        ("scores.json", tree, ("scores.json", "video '"), ("--labels", "scores.json")),
        ("times.csv", cells, ("times.csv", "list.txt", "video '"), ("--times", "times.csv")),
        ("classes.txt", (m.any_bytes, m.whole_file, m.lines), ("classes.txt", "pgcn.safetensors"), ()),
    ):
        found.append(
            Target(f"refine {Path(victim).stem}", "second", (*run, *more), victim, mutations, named, ("out.json",))
        )
    return found


def _regression_stats(rng: random.Random, path: Path) -> str:
    """Store other objects as means and deviations of the regression."""
    content = torch.load(path, weights_only=True)
    values = [
        torch.zeros(2, 2),
        torch.full((2, 2), torch.nan),
        torch.ones(3),
        torch.ones(2, 2).to("meta"),
        -torch.ones(2, 2),
    ]
    values += [torch.ones(2, 2).to("meta"), torch.ones(2, 2).to_sparse(), "x", [1, 2], {}, 10**400, None]
    content["reg_stats"] = rng.choice(values)
    torch.save(content, path)
    return f"reg_stats {content['reg_stats']!r:.60}"
