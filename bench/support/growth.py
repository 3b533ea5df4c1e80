"""How the network's time grows with the window and with the number of anchors: this package beside the reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

import bcnet_fast
from bcnet_fast.config import Config
from bcnet_fast.geometry.anchors import make_anchors
from bcnet_fast.inference.model import Model
from bcnet_fast.presets import PRESETS
from bcnet_fast.progress import progress

from .tables import print_table
from .timing import alternate

WINDOWS = (128, 256, 512, 1024, 2048)
# At T = 512 the anchor rule gives 511 to 4280 anchors.
ANCHORS_AT, MAX_DURATIONS = 512, (3, 6, 12, 32, 64, 128, 512)
LIMIT_MS = 10_000  # a point that is expected to take longer is left out


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Exponent of the best-fitting power law, in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def points() -> Iterator[tuple[str, int, Config]]:
    """(the growing quantity, its size, the configuration)"""
    base = PRESETS["bcnet"]["thumos14"]

    def resized(**sizes: int) -> tuple[Config, int]:
        model = dataclasses.replace(base.model, **sizes)
        return dataclasses.replace(base, model=model), len(make_anchors(model.window, model.max_duration))

    for window in WINDOWS:
        yield "T", window, resized(window=window)[0]
    for longest in MAX_DURATIONS:
        config, anchors = resized(window=ANCHORS_AT, max_duration=longest)
        yield "P", anchors, config


def _scores(model: Model, features: torch.Tensor) -> torch.Tensor:
    # In host memory, so that a GPU is done when the time is taken.
    return model(features).background.cpu()


def measure(device: str) -> list[dict[str, Any]]:
    """One row for each point and variant; scores of all anchors, random weights, one window."""
    rows: list[dict[str, Any]] = []
    last: dict[tuple[str, str], tuple[int, float]] = {}  # anchors and milliseconds of the point before
    wanted = list(points())
    for axis, size, config in progress(wanted, len(wanted), "sizes"):
        anchors = len(make_anchors(config.model.window, config.model.max_duration))
        features = torch.randn(1, config.model.feature_dim, config.model.window)
        calls = {}
        for variant, backend in (("reference", "reference"), ("bcnet_fast fp32", "auto")):
            before, milliseconds = last.get((axis, variant), (anchors, 0.0))
            if milliseconds * (anchors / before) ** 2 < LIMIT_MS:
                model = bcnet_fast.load(config, device=device, backend=backend)
                calls[variant] = functools.partial(_scores, model, features)
        for variant, timing in alternate(calls, seconds=1.0, least_runs=2).items():
            last[axis, variant] = anchors, timing.median
            rows.append({"axis": axis, "size": size, "anchors": anchors, "variant": variant, **timing._asdict()})
    return rows


def series(rows: Sequence[dict[str, Any]], axis: str) -> dict[str, tuple[list[int], list[float]]]:
    """Sizes and medians of each variant along an axis."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        if row["axis"] == axis:
            sizes, times = found.setdefault(row["variant"], ([], []))
            sizes.append(row["size"])
            times.append(row["median"])
    return found


def show(rows: Sequence[dict[str, Any]]) -> None:
    titles = {"T": "snippets T, anchors by the rule", "P": f"anchors P, at T = {ANCHORS_AT}"}
    print("\ngrowth of the network's time, all anchors; the exponent is that of a power law through the times")
    for axis, title in titles.items():
        of_axis = series(rows, axis)
        sizes = sorted({size for sizes, _ in of_axis.values() for size in sizes})
        table = []
        for variant, (found, times) in of_axis.items():
            by_size = dict(zip(found, times, strict=True))
            cells = [f"{by_size[size]:.3g}" if size in by_size else "" for size in sizes]
            table.append([variant, *cells, f"{exponent(found, times):.2f}"])
        print_table([f"ms by {title}", *map(str, sizes), "exponent"], table)
