"""What each precision of the engine changes, against float64: scores, proposals, recall and average precision.

    python bench/precision.py [--videos N] [--json FILE]

Two networks: the released sizes with the seeded weights of the tests, on one window (no trained network: it enlarges
every rounding error a thousand times), and the bundled network on synthetic videos that no training used. Columns: the
largest and the mean difference of the probabilities; how many of a video's 100 best proposals are the same, to half a
snippet, in percent; average recall at 100 proposals and mean average precision of all actions as one class, both over
tIoU 0.5:0.05:0.95 in percent, and how much they differ from those of float64, in points.
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import seeded
from support.environment import environment
from support.tables import print_table

from bcnet_fast import convert
from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.data.annotations import Instance
from bcnet_fast.data.features import open_features
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.data.timing import TimeResolver
from bcnet_fast.data.windows import cut
from bcnet_fast.evaluation import Results, average_recall, mean_average_precision
from bcnet_fast.inference.model import PRECISIONS, Model, load
from bcnet_fast.inference.predict import predict
from bcnet_fast.networks.outputs import BCNetOutput
from bcnet_fast.proposals import ProposalGenerator
from bcnet_fast.protocols import DEFAULT
from bcnet_fast.storage.files import write_json

ROOT = Path(__file__).resolve().parent.parent

EXACT = "fp64"
TIOU = np.linspace(0.5, 0.95, 10)
SEED = 11
PROBABILITIES = ("start", "end", "actionness", "frame_action", "frame_background", "classification", "background")


def probability_differences(found: BCNetOutput, exact: BCNetOutput) -> tuple[float, float]:
    """The largest and the mean one."""
    off = [(getattr(found, name).double() - getattr(exact, name).double()).abs().flatten() for name in PROBABILITIES]
    joined = torch.cat(off)
    return float(joined.max()), float(joined.mean())


def overlap(found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], near: float) -> float:
    """Percent of the 100 best of each video that are among the 100 best of the other, rows being start, end, score."""
    shares = []
    for video, rows in exact.items():
        one, other = rows[:100, None, :2], found[video][None, :100, :2]
        shares.append((np.abs(one - other).max(axis=2) < near).any(axis=1).mean() if len(rows) else 1.0)
    return 100 * float(np.mean(shares))


def loaded(checkpoint: Any, precision: str) -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some are slower here is known
        return load(checkpoint, device="cpu", precision=precision)


def seeded_rows(folder: Path, precisions: list[str]) -> list[list[Any]]:
    bpm, abi = seeded.release_files(folder, ROOT / "tests" / "golden", seed=101)
    checkpoint = folder / "bcnet.safetensors"
    convert.main(["--bpm", str(bpm), "--abi", str(abi), "--output", str(checkpoint)])
    features, lengths = torch.from_numpy(seeded.network_input(101)), torch.tensor([256])
    outputs, best = {}, {}
    for precision in precisions:
        model = loaded(checkpoint, precision)
        outputs[precision] = model(features)
        found = ProposalGenerator(model.config, DEFAULT).window_proposals(outputs[precision], lengths)
        best[precision] = {"window": np.column_stack([found.segments, found.decayed])}
    return [
        [
            *("released sizes, seeded", p, *probability_differences(outputs[p], outputs[EXACT])),
            *(overlap(best[p], best[EXACT], 0.5), *[""] * 4),
        ]
        for p in precisions
    ]


def bundled_rows(folder: Path, precisions: list[str], videos: int) -> list[list[Any]]:
    checkpoint = str(resources.files("bcnet_fast") / "assets" / "demo.safetensors")
    made = list(make_videos(videos, seed=SEED, subset="test"))
    path, _ = write_dataset(folder, made)
    truth = {}
    for video in made:
        instances = tuple(Instance(i.start, i.end, "action") for i in video.annotation.instances)
        truth[video.annotation.id] = dataclasses.replace(video.annotation, instances=instances)
    outputs, best, recall, precision_of = {}, {}, {}, {}
    for precision in precisions:
        model = loaded(checkpoint, precision)
        config = model.config
        window = config.model.window
        batch = np.stack([cut(video.features, [0], window)[0] for video in made[:8]])
        outputs[precision] = model(torch.from_numpy(batch))
        archive = open_features(path, feature_dim=config.model.feature_dim)
        times = TimeResolver(config, table=truth)
        predicted = predict(model, archive, archive.ids, times, DEFAULT)
        best[precision] = rows = {f.video: np.column_stack([f.segments, f.scores]) for f in predicted}
        recall[precision] = 100 * average_recall(truth, rows, tiou_thresholds=TIOU, max_proposals=100).at(100)
        entries = {
            video: [{"segment": list(r[:2]), "score": float(r[2]), "label": "action"} for r in found]
            for video, found in rows.items()
        }
        detections = Results.from_dict(entries)
        precision_of[precision] = 100 * mean_average_precision(truth, detections, tiou_thresholds=TIOU).average
    near = 0.5 * made[0].annotation.duration / len(made[0].features)
    return [
        [
            *(f"bundled, {videos} videos", p, *probability_differences(outputs[p], outputs[EXACT])),
            *(overlap(best[p], best[EXACT], near), recall[p], recall[p] - recall[EXACT]),
            *(precision_of[p], precision_of[p] - precision_of[EXACT]),
        ]
        for p in precisions
    ]


HEADER = ("network", "precision", "largest", "mean", "same of 100 %", "AR@100", "change", "mAP", "change of mAP")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--videos", type=int, default=40, metavar="N", help="synthetic videos")
    parser.add_argument("--json", metavar="FILE", help="also write the table to this file")
    args = parser.parse_args(argv)
    facts = environment()
    print(f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}\n")
    precisions = [EXACT, *(p for p in PRECISIONS if p != EXACT)]
    with tempfile.TemporaryDirectory() as folder:
        rows = seeded_rows(Path(folder), precisions) + bundled_rows(Path(folder), precisions, args.videos)
    print_table(HEADER, rows)
    if args.json:
        write_json(args.json, {"environment": facts, "rows": [dict(zip(HEADER, row, strict=True)) for row in rows]})
    return 0


if __name__ == "__main__":
    run(main)
