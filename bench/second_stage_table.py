"""The gain of a second stage on data at hand: BCNet with the videos' own labels against P-GCN and MUSES-Net.

    python bench/second_stage_table.py --output DIR --checkpoint demo [--seeds N] [--json FILE]
        on 60 synthetic videos, with the proposals of the bundled network, which has seen none of them

    python bench/second_stage_table.py --output DIR --features PATH --annotations FILE ...
        on your own; the annotations state fps and feature_stride

For each seed, the commands train BCNet unless --checkpoint has it, make proposals of all videos, train both second
stages on those of the training videos, and refine those of the validation videos. All checkpoints are those of the
last epoch, so that none is chosen by the validation videos. Results in DIR are reused, and interrupted trainings go on.

"own labels" gives each proposal all classes that the video really has, as a perfect classifier of whole videos would.
P-GCN is measured twice: with all candidates as neighbours (the default), and with drawn ones.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

from paper_tables import table
from support.environment import begin

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.errors import InputError
from bcnet_fast.inference.model import DEMO, demo_checkpoint
from bcnet_fast.progress import progress
from bcnet_fast.storage.output import write_json

ROOT = Path(__file__).resolve().parent.parent
SEED, VIDEOS = 3, {"training": 40, "validation": 20}  # synthetic ones
SYSTEMS = ("BCNet, own labels", "BCNet + P-GCN", "BCNet + P-GCN, drawn", "BCNet + MUSES-Net")


def command(log: Path, name: str, *arguments: object) -> None:
    """Run a command of the package. InputError: it fails; with the last line of its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-m", f"bcnet_fast.{name}", *map(str, arguments)]
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(words, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        last = log.read_text(encoding="utf-8").splitlines()[-1:]
        raise InputError(f"{log}: expected a finished {name}, found {' '.join(last)}")


class Seed:
    """All runs of one seed, in a folder of their own."""

    def __init__(self, output: Path, seed: int, features: Path, annotations: Path, checkpoint: Path | None) -> None:
        """checkpoint: of the network that makes proposals; None: one is trained."""
        self.folder, self.seed, self.checkpoint = output / f"seed-{seed}", seed, checkpoint
        self.features, self.annotations = features, annotations
        self.proposals = (output if checkpoint else self.folder) / "proposals.json"

    def run(self, settings: list[str]) -> dict[str, dict[str, float]]:
        """Train, refine and evaluate. Percent by system."""
        seeded = ["--set", f"train.seed={self.seed}"]
        files = ["--features", self.features, "--annotations", self.annotations]
        if self.checkpoint is None:
            folder = ["--output", self.folder / "bcnet", "--resume"]
            self._command("train", "--preset", "synthetic", "--fit", *files, *folder, *seeded)
        checkpoint = self.checkpoint or self.folder / "bcnet" / "last.safetensors"
        files = ["--features", self.features, "--times", self.annotations]
        self._command("infer", "--checkpoint", checkpoint, *files, "--output", self.proposals, "--resume")
        for system in ("pgcn", "muses"):
            flags = ["--model", system, "--preset", "small", "--proposals", self.proposals, "--features", self.features]
            flags += ["--annotations", self.annotations, "--output", self.folder / system, "--resume"]
            self._command("train", *flags, *seeded, *settings)
        found = {"BCNet, own labels": self._evaluated(self.proposals, "--class-scores", self._own_labels())}
        for name, system, flags in (
            ("BCNet + P-GCN", "pgcn", []),
            ("BCNet + P-GCN, drawn", "pgcn", ["--draw", self.seed]),
            ("BCNet + MUSES-Net", "muses", []),
        ):
            output = self.folder / f"{name.replace(' ', '_')}.json"
            weights = ["--checkpoint", self.folder / system / "last.safetensors", *flags]
            self._command(
                "refine", "--proposals", self.proposals, *files, *weights, "--subset", "validation", "--output", output,
                "--overwrite",
            )  # fmt: skip
            found[name] = self._evaluated(output)
        return found

    def _command(self, name: str, *arguments: object) -> None:
        command(self.folder / "output.txt", name, *arguments)

    def _own_labels(self) -> Path:
        """Class scores that are 1 for every class of a video."""
        scores = {
            name: {instance.label: 1.0 for instance in video.instances}
            for name, video in read_annotations(self.annotations, "validation").items()
            if video.instances
        }
        path = self.folder / "own_labels.json"
        write_json(path, scores)
        return path

    def _evaluated(self, detections: Path, *flags: object) -> dict[str, float]:
        report = self.folder / "evaluation.json"
        more = ["--top-k", 1000] if flags else []
        self._command(
            "evaluate", "--proposals", detections, "--ground-truth", self.annotations, "--metric", "thumos14",
            "--subset", "validation", "--json", report, *flags, *more,
        )  # fmt: skip
        precision = json.loads(report.read_text(encoding="utf-8"))["mean_average_precision"]
        named = zip(precision["tiou_thresholds"], precision["mAP"], strict=True)
        return {f"mAP@{tiou:g}": 100 * value for tiou, value in named} | {"mAP": 100 * precision["average_mAP"]}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of all runs")
    parser.add_argument("--features", metavar="PATH", help="features of your own videos")
    parser.add_argument("--annotations", metavar="FILE", help="their instances, with subsets training and validation")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="network that makes proposals; demo is the bundled one (default: train one)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="0 to N - 1")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="SECTION.NAME=VALUE", help="for both second stages"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures of every seed to this file")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise InputError(f"--seeds is {args.seeds}, expected at least 1")
    if (args.features is None) != (args.annotations is None):
        raise InputError("--features, --annotations: expected both or none of them")
    output = Path(args.output)
    facts = begin(1, [args.json, output / "any"])
    if args.features is None:
        videos = (make_videos(number, seed=SEED, subset=subset) for subset, number in VIDEOS.items())
        features, annotations = write_dataset(output / "data", itertools.chain(*videos))
    else:
        features, annotations = Path(args.features), Path(args.annotations)
    checkpoint = demo_checkpoint() if args.checkpoint == DEMO else args.checkpoint and Path(args.checkpoint)
    seeds = [Seed(output, seed, features, annotations, checkpoint) for seed in range(args.seeds)]
    found = [seed.run(args.set) for seed in progress(seeds, len(seeds), "seeds")]
    rows = {name: [of_seed[name] for of_seed in found] for name in SYSTEMS}
    print(f"\n{table(rows, SYSTEMS)}")
    if args.json:
        write_json(args.json, {"environment": facts, "seeds": rows})
    return 0


if __name__ == "__main__":
    run(main)
