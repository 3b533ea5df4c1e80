"""Gain of each rewrite of the engine: the network's time without it, beside the time with all of them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

import bcnet_fast
from bcnet_fast.inference import Predictor
from bcnet_fast.networks.engine import REWRITES, Rewrites
from bcnet_fast.networks.outputs import Output
from bcnet_fast.protocols import DEFAULT
from bcnet_fast.storage.checkpoint import read_config

from .tables import print_table
from .timing import alternate


def measure(checkpoint: Path, window: torch.Tensor, threshold: float | None, device: str) -> list[dict[str, Any]]:
    """One row for each switch: float32, one window; of BCNet the anchors that boundaries match at `threshold`."""
    config = read_config(checkpoint)
    names = REWRITES[config.model.name]
    switches = {"all": Rewrites()} | {f"without {name}": Rewrites(**{name: False}) for name in names}
    switches["none"] = Rewrites(**dict.fromkeys(names, False))
    lengths = torch.tensor([window.shape[-1]])
    calls = {}
    for name, rewrites in switches.items():
        model = bcnet_fast.load(checkpoint, device=device, rewrites=rewrites)
        if threshold is not None:
            settings = dataclasses.replace(config.proposals, boundary_threshold=threshold)
            model.config = dataclasses.replace(config, proposals=settings)
        calls[name] = functools.partial(_scores, model, window, lengths)
    timings = alternate(calls, seconds=3.0, least_runs=7)
    facts = {"system": config.model.name, "preset": config.preset}
    ratio = {name: timing.median / timings["all"].median for name, timing in timings.items()}
    return [facts | {"rewrites": n, **t._asdict(), "times_all": ratio[n]} for n, t in timings.items()]


def _scores(model: bcnet_fast.inference.model.Model, window: torch.Tensor, lengths: torch.Tensor) -> Output:
    # In host memory, so that a GPU is done when the time is taken.
    return Predictor(model, DEFAULT).scores(window, lengths).map(torch.Tensor.cpu)


def show(rows: list[dict[str, Any]]) -> None:
    system, preset = rows[0]["system"], rows[0]["preset"]
    print(f"\n{system}, {preset}: without one of the rewrites (docs/engine.md), float32, one window")
    print_table(["rewrites", "network ms", "x all"], [[r["rewrites"], r["median"], r["times_all"]] for r in rows])
