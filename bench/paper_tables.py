"""The paper's ablations on data at hand: every variant trained from several seeds, with mean and deviation.

    python bench/paper_tables.py --output DIR [--tables 5 6 7] [--seeds N] [--jobs N] [--json FILE]
        on the synthetic videos of the training command

    python bench/paper_tables.py --output DIR --features PATH --annotations FILE ...
        on your own, with the training command's --fit; the annotations state fps and feature_stride

Table 5 has BMN, G-TAD and BCNet without and with background constraint, Table 6 BCNet without and with its frame level,
Table 7 BCNet without and with its self-attention and difference-attention units. A variant is one run of `python -m
bcnet_fast.train` for each seed, in DIR/<variant>-<seed>; finished runs are reused, and an interrupted training goes on.
Counted are the proposals of the last epoch on the validation videos, so that no epoch is chosen by them:

    AR@AN, AUC  average recall, tIoU 0.5:0.05:0.95, and its area under AN 1 to 100 (ActivityNet's protocol)
    AP@tIoU     average precision of the proposals as detections of one class, which is what their order is worth

Shown are the mean over the seeds and their deviation (of the sample).
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from support.environment import begin

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.data.annotations import Instance, read_annotations
from bcnet_fast.data.features import open_features
from bcnet_fast.data.timing import TimeResolver
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import METRICS, mean_average_precision
from bcnet_fast.inference.model import load
from bcnet_fast.inference.predict import Failure, predict
from bcnet_fast.progress import progress
from bcnet_fast.protocols import DEFAULT
from bcnet_fast.results.writer import entries
from bcnet_fast.storage.output import write_json

ROOT = Path(__file__).resolve().parent.parent

PLAIN, CONSTRAINT = {"background_constraint": False}, {"background_constraint": True}
# By name: the system, and replacements for the preset's settings of the model.
VARIANTS: dict[str, tuple[str, dict[str, bool]]] = {
    "BMN": ("bmn", PLAIN),
    "BMN, constraint": ("bmn", CONSTRAINT),
    "G-TAD": ("gtad", PLAIN),
    "G-TAD, constraint": ("gtad", CONSTRAINT),
    "BCNet, no constraint": ("bcnet", PLAIN),
    "BCNet": ("bcnet", CONSTRAINT),
    "BCNet, no frame level": ("bcnet", {"frame_level": False}),
    "BCNet, no attention units": ("bcnet", {"self_attention": False, "difference_attention": False}),
    "BCNet, no difference unit": ("bcnet", {"difference_attention": False}),
}
TABLES = {
    "5": ("BMN", "BMN, constraint", "G-TAD", "G-TAD, constraint", "BCNet, no constraint", "BCNet"),
    "6": ("BCNet, no frame level", "BCNet"),
    "7": ("BCNet, no attention units", "BCNet, no difference unit", "BCNet"),
}
RECALLS = ("AR@10", "AR@50", "AR@100", "AUC")
TIOU = METRICS["thumos14"].map_thresholds


def folder_of(output: Path, variant: str, seed: int) -> Path:
    return output / f"{variant.replace(', ', '-').replace(' ', '_')}-{seed}"


def train(output: Path, variant: str, seed: int, data: list[str], settings: list[str]) -> None:
    """InputError with the last line of its log when a training fails."""
    folder = folder_of(output, variant, seed)
    folder.mkdir(parents=True, exist_ok=True)
    system, switches = VARIANTS[variant]
    switched = [f"model.{name}={str(value).lower()}" for name, value in switches.items()]
    command = [sys.executable, "-m", "bcnet_fast.train", "--model", system, "--preset", "synthetic", *data]
    command += ["--output", str(folder), "--resume", "--set", f"train.seed={seed}", *switched, *settings]
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    log = folder / "output.txt"
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = log.read_text(encoding="utf-8").splitlines()[-1:]
        raise InputError(f"{log}: expected a finished training, found {' '.join(last)}")


def measure(folder: Path, features: str | None, annotations: str | None) -> dict[str, float]:
    """Metrics of the last epoch's checkpoint on the validation videos, in percent; InputError when one fails."""
    with open(folder / "log.csv", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    figures = {name: float(last[name]) for name in RECALLS}
    truth = {
        # One class: a proposal generator names none.
        name: replace(video, instances=tuple(Instance(i.start, i.end, "action") for i in video.instances))
        for name, video in read_annotations(annotations or folder / "data" / "annotations.json", "validation").items()
    }
    model = load(str(folder / "last.safetensors"), device="cpu")
    archive = open_features(features or folder / "data" / "features", feature_dim=model.config.model.feature_dim)
    times = TimeResolver(model.config, table=truth, every=archive.every, row_stride=archive.row_stride)
    found = predict(model, archive, [name for name in archive.ids if name in truth], times, DEFAULT)
    results = {}
    for one in found:
        if isinstance(one, Failure):
            raise InputError(f"{folder}: expected proposals of all videos, found none of {one.video}: {one.reason}")
        results[one.video] = entries(one.segments, one.scores, ["action"] * len(one.scores))
    precision = mean_average_precision(truth, results, tiou_thresholds=TIOU)
    named = {f"AP@{tiou:g}": 100 * value for tiou, value in zip(TIOU, precision.mean.tolist(), strict=True)}
    return figures | named


def table(rows: Mapping[str, list[dict[str, float]]], names: tuple[str, ...]) -> str:
    """Markdown: mean and deviation over the seeds."""
    columns = list(next(iter(rows.values()))[0])
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name in names:
        values = [[run[column] for run in rows[name]] for column in columns]
        cells = [f"{statistics.mean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "") for v in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of all trainings")
    parser.add_argument("--features", metavar="PATH", help="features of your own videos")
    parser.add_argument("--annotations", metavar="FILE", help="their instances, with subsets training and validation")
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES), help="of the paper")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="0 to N - 1")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time, of one thread each")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="SECTION.NAME=VALUE", help="for all trainings"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures of every training to this file")
    args = parser.parse_args(argv)
    if min(args.seeds, args.jobs) < 1:
        raise InputError(f"--seeds, --jobs: expected at least 1, found {args.seeds} and {args.jobs}")
    if (args.features is None) != (args.annotations is None):
        raise InputError("--features, --annotations: expected both or none of them")
    output = Path(args.output)
    facts = begin(1, [args.json, output / "any"])
    data = []
    if args.features is not None:
        data = ["--fit", "--features", args.features, "--annotations", args.annotations]
    wanted = [name for name in VARIANTS if any(name in TABLES[number] for number in args.tables)]

    with ThreadPoolExecutor(args.jobs) as pool:
        tasks = [
            pool.submit(train, output, name, seed, data, args.set) for seed in range(args.seeds) for name in wanted
        ]
        for task in progress(as_completed(tasks), len(tasks), "trainings"):
            if task.exception():
                pool.shutdown(cancel_futures=True)
            task.result()
    rows = {
        name: [measure(folder_of(output, name, seed), args.features, args.annotations) for seed in range(args.seeds)]
        for name in wanted
    }
    for number in args.tables:
        print(f"\nTable {number}\n\n{table(rows, TABLES[number])}")
    if args.json:
        write_json(args.json, {"environment": facts, "seeds": rows})
    return 0


if __name__ == "__main__":
    run(main)
