"""Inputs of the second stage to mutate: published checkpoints, checkpoints of this package, and proposal lists.

`load` and `pool` stand for programs of users: they read what the library reads, and use it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from attack import mutations as m
from attack.target import Target
from helpers.second_stage import SMALL_MUSES, SMALL_PGCN

from bcnet_fast.config import FeatureRows, MUSESConfig, PGCNConfig, RegressionStats, SecondStageConfig
from bcnet_fast.data.proposal_list import read_proposal_list
from bcnet_fast.geometry.proposal_graph import neighbour_slots
from bcnet_fast.geometry.proposal_windows import inference_ticks, pooled_rows
from bcnet_fast.inference.model import load
from bcnet_fast.networks.reference import SECOND_STAGE
from bcnet_fast.presets import SECOND_STAGE_PRESETS
from bcnet_fast.storage.checkpoint import save_checkpoint
from bcnet_fast.training.second_stage_samples import draw_samples, video_pool

SYSTEMS = {"pgcn": SMALL_PGCN, "muses": SMALL_MUSES}
PROPOSALS = 4  # of the video that `load` scores
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


def score(argv: list[str]) -> int:
    """Load a checkpoint and score a video of the size that it expects."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    path = parser.parse_args(argv).checkpoint
    scorer = load(path, device="cpu")
    model = scorer.config.model
    draw = np.random.default_rng(0)
    if isinstance(model, PGCNConfig):
        widths = model.feature_dim, 3 * model.feature_dim
        segments = np.array([[0, 10], [5, 20], [30, 40], [2, 12]])
        inputs = [draw.standard_normal((PROPOSALS, width), np.float32) for width in widths]
        output = scorer(*inputs, neighbour_slots(segments))
    elif isinstance(model, MUSESConfig):
        features = draw.standard_normal((model.feature_dim, 20), np.float32)
        output = scorer(features, np.array([[0, 50], [8, 99], [40, 80], [0, 159]]))
    else:
        return 0
    print(f"{path}: {len(output.activity)} proposals")
    return 0


def pool(argv: list[str]) -> int:
    """Read a proposal list and use it as inference and training do."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", required=True)
    rules = SECOND_STAGE_PRESETS["pgcn"]["thumos14"].pools
    rows = 0
    for video in read_proposal_list(parser.parse_args(argv).list):
        ticks = inference_ticks(video.proposals, video.frames)
        found = pooled_rows(ticks, video.frames, 30, FeatureRows())
        rows += len(found)
        if found.size and not (0 <= found.min() and found.max() < 30):
            raise RuntimeError(f"rows from {found.min()} to {found.max()}")
        if len(video.instances):
            draw_samples(video_pool(video, rules), np.random.default_rng(0))
    print(f"{rows} proposals")
    return 0


def targets(root: Path) -> list[Target]:
    """Write the inputs below `root`."""
    (root / "second").mkdir()
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
            Target(f"checkpoint {system}", "second", ("load", "--checkpoint", stored), stored, checkpoint, (stored,)),
            Target(f"release {system}", "second", convert, published, release, (published,), ("out.safetensors",)),
        ]
    (root / "second" / "list.txt").write_text(LIST)
    own = (m.any_bytes, m.whole_file, m.words, m.words, m.lines)
    return [
        *found,
        Target("list, read", "second", ("pool", "--list", "list.txt"), "list.txt", own, ("list.txt",)),
    ]


def _regression_stats(rng: random.Random, path: Path) -> str:
    """Store something else as means and deviations of the regression."""
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
