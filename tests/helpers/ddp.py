"""Gradients of a batch in one process or in several: their computation, and the processes, for `test_train`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import default_collate

from bcnet_fast import train
from bcnet_fast.config import Config
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.geometry.proposal_map import proposal_map
from bcnet_fast.presets import PRESETS
from bcnet_fast.protocols import DEFAULT
from bcnet_fast.training.distributed import Processes
from bcnet_fast.training.run import train_with
from bcnet_fast.training.targets import map_targets, window_targets
from bcnet_fast.training.trainer import Trainer

SIZES = {"feature_dim": 4, "window": 16, "max_duration": 8, "base_channels": 8, "background_constraint": False}
OTHERS = {
    "bcnet": {"width": 8, "heads": 2, "head_dim": 4, "feedforward": 8, "boundary_layers": 1, "bins": 4, "dropout": 0.0},
    "bmn": {"sampled_channels": 8, "map_channels": 8, "bins": 4},
    "gtad": {"sampled_channels": 8, "map_channels": 8, "inner_bins": 4, "context_bins": 2, "block_groups": 2},
}
GRADIENTS = tuple(OTHERS)
BATCH = 5  # parts of 3 and 2


def configuration(name: str) -> Config:
    preset = PRESETS[name]["synthetic"]
    constraint = {"background_constraint": name == "bmn"}
    return dataclasses.replace(preset, model=dataclasses.replace(preset.model, **SIZES | OTHERS[name] | constraint))


def gradients(name: str, processes: Processes | None = None) -> dict[str, torch.Tensor]:
    """float64, by name; of one joint batch of which the windows have from none to two instances."""
    config, processes = configuration(name), processes or Processes()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        trainer = Trainer(config, DEFAULT.losses, torch.device("cpu"), processes)
        rng = np.random.default_rng(0)
        features = torch.from_numpy(rng.standard_normal((BATCH, 4, 16)))
        segments = [np.sort(rng.uniform(0, 16, (count, 2)), axis=1) for count in (0, 2, 1, 2, 1)]
        if name == "bcnet":
            targets = [window_targets(s, make_anchors(16, 8), 16) for s in segments]
        else:
            targets = [map_targets(s, proposal_map(config.model), 16) for s in segments]
        cells = targets[0][-1].shape
        draws = torch.from_numpy(rng.random((2, BATCH, *cells)))
        mine = processes.part(range(BATCH))
        rows = [len(part) for part in np.array_split(range(BATCH), processes.count)]
        trainer.backward(features[mine], default_collate([targets[i] for i in mine]), draws, rows)
    finally:
        torch.set_default_dtype(before)
    return {key: p.grad for key, p in trainer.network.named_parameters() if p.grad is not None}


def main(folder: Path) -> None:
    """One process of several: write each network's gradients into `folder`, then train as flags.json there says."""
    options = train.parse(json.loads((folder / "flags.json").read_text()))
    device = torch.device("cpu")
    with Processes.join(device) as joined:  # once: torchrun's store serves a second group of the same processes badly
        for system in GRADIENTS:
            found = gradients(system, joined)
            if joined.first:
                torch.save(found, folder / f"{system}.pt")
        train_with(joined, options, device)


def forked(rank: int, folder: Path, port: int) -> None:
    """`main` in a process that is a fork of the test's, which spares it the import of PyTorch."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)  # those of the test's process are not here
    main(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
