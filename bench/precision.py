"""Effect of each precision of the engine, against float64, on scores, proposals, recall and average precision.

    python bench/precision.py [--videos N] [--json FILE]             the precisions of a CPU, as it computes them
    python bench/precision.py --emulate [--videos N] [--json FILE]   those of a GPU, emulated on the CPU

Two networks: the released sizes with the seeded weights of the tests, on one window (no trained network: it enlarges
every rounding error a thousand times), and the bundled network on synthetic videos that no training used. Columns: the
largest and the mean difference of the probabilities; how many of a video's 100 best proposals are the same, to half a
snippet, in percent; average recall at 100 proposals and mean average precision of all actions as one class, both over
tIoU 0.5:0.05:0.95 in percent, and how much they differ from those of float64, in points.

--emulate runs the engine on PyTorch's products with the roundings that a GPU makes (gpu_arithmetic.py). Each precision
below float32 runs twice: with the frame level's first layers in float32, as in the engine, and without that. One
row is float32 under PyTorch's own switches, which let convolutions use TF32. More columns: the root mean square of the
differences of two scores, regression and background. The file has the largest and the root mean square of every score.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from support import seeded
from support.environment import environment
from support.gpu_arithmetic import GPUArithmetic
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
from bcnet_fast.networks.engine import bcnet
from bcnet_fast.networks.engine.engine import Engine
from bcnet_fast.networks.engine.rewrites import ALL_REWRITES
from bcnet_fast.networks.engine.torch_backend import TorchKernels
from bcnet_fast.networks.outputs import BCNetOutput, Output
from bcnet_fast.networks.reference.bcnet import BCNet
from bcnet_fast.ops.anchor_sampling import cheaper_strategy
from bcnet_fast.proposals import ProposalGenerator
from bcnet_fast.protocols import DEFAULT
from bcnet_fast.storage.checkpoint import StoredWeights, read_config
from bcnet_fast.storage.output import write_json

ROOT = Path(__file__).resolve().parent.parent

EXACT = "fp64"
TIOU = np.linspace(0.5, 0.95, 10)
SEED = 11
PROBABILITIES = ("start", "end", "actionness", "frame_action", "frame_background", "classification", "background")


CPU = torch.device("cpu")
Loader = Callable[[Any], Model]  # from a checkpoint


def differences(found: BCNetOutput, exact: BCNetOutput) -> dict[str, Any]:
    """The largest and mean difference of all probabilities; of each score, the largest and the root mean square."""
    off = {name: scores.double() - exact.columns()[name].double() for name, scores in found.columns().items()}
    joined = torch.cat([off[name].abs().flatten() for name in PROBABILITIES])
    each = {name: {"largest": float(d.abs().max()), "rms": float(d.square().mean().sqrt())} for name, d in off.items()}
    return {"largest": float(joined.max()), "mean": float(joined.mean()), "scores": each}


def overlap(found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], near: float) -> float:
    """Percent of the 100 best of each video that are among the 100 best of the other, rows being start, end, score."""
    shares = []
    for video, rows in exact.items():
        one, other = rows[:100, None, :2], found[video][None, :100, :2]
        shares.append((np.abs(one - other).max(axis=2) < near).any(axis=1).mean() if len(rows) else 1.0)
    return 100 * float(np.mean(shares))


def loaded(precision: str) -> Loader:
    """The network as `load` makes it for a CPU."""

    def make(checkpoint: Any) -> Model:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some are slower here is known
            return load(checkpoint, device="cpu", precision=precision)

    return make


class OwnSwitches(TorchKernels):
    """Products by PyTorch's switches as they are."""

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Emulated:
    """An engine on a CPU, with a GPU's products. All anchors are computed, as on a GPU."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, features: torch.Tensor) -> Output:
        with GPUArithmetic():
            return self.engine(features)


def emulated(precision: str, *, careful: bool = True, own_switches: bool = False) -> Loader:
    """The network as it would run on a GPU.

    careful: whether the frame level's first layers stay in float32.
    own_switches: whether PyTorch's switches decide about TF32, not the engine.
    """

    def on_a_gpu(plan: Any, channels: int, outputs: int, device: str) -> str:
        return cheaper_strategy(plan, channels, outputs, "cuda")

    def make(checkpoint: Any) -> Model:
        config = read_config(checkpoint)
        state = StoredWeights(checkpoint, BCNet(config.model))
        with mock.patch.object(bcnet, "cheaper_strategy", on_a_gpu):
            engine = Engine(config.model, state, CPU, precision, native=False)
            kernels = engine.kernels
            if own_switches:
                kernels = engine.kernels = OwnSwitches(CPU, kernels.dtype)
            if own_switches or not careful:
                engine.network = bcnet.BCNetEngine(config.model, state, kernels, kernels, ALL_REWRITES)
        return Model(Emulated(engine), config, CPU, precision, "auto")

    return make


def on_this_cpu() -> dict[str, Loader]:
    # A CPU has no TF32.
    return {p: loaded(p) for p in (EXACT, *PRECISIONS) if p != "tf32"}


def on_any_gpu() -> dict[str, Loader]:
    modes = {EXACT: loaded(EXACT), "fp32": emulated("fp32")}
    modes["fp32, PyTorch's own switches"] = emulated("fp32", own_switches=True)
    for precision in ("tf32", "bf16", "fp16"):
        modes[precision] = emulated(precision)
        modes[f"{precision}, no layer in float32"] = emulated(precision, careful=False)
    return modes


def seeded_rows(folder: Path, modes: Mapping[str, Loader]) -> list[dict[str, Any]]:
    bpm, abi = seeded.release_files(folder, ROOT / "tests" / "golden", seed=101)
    checkpoint = folder / "bcnet.safetensors"
    convert.main(["--bpm", str(bpm), "--abi", str(abi), "--output", str(checkpoint)])
    features, lengths = torch.from_numpy(seeded.network_input(101)), torch.tensor([256])
    outputs, best = {}, {}
    for mode, make in modes.items():
        model = make(checkpoint)
        outputs[mode] = model(features)
        found = ProposalGenerator(model.config, DEFAULT).window_proposals(outputs[mode], lengths)
        best[mode] = {"window": np.column_stack([found.segments, found.decayed])}
    return [
        {
            "network": "released sizes, seeded",
            "precision": mode,
            **differences(outputs[mode], outputs[EXACT]),
            "same of 100 %": overlap(best[mode], best[EXACT], 0.5),
        }
        for mode in modes
    ]


def bundled_rows(folder: Path, modes: Mapping[str, Loader], videos: int) -> list[dict[str, Any]]:
    checkpoint = str(resources.files("bcnet_fast") / "assets" / "demo.safetensors")
    made = list(make_videos(videos, seed=SEED, subset="test"))
    path, _ = write_dataset(folder, made)
    truth = {}
    for video in made:
        instances = tuple(Instance(i.start, i.end, "action") for i in video.annotation.instances)
        truth[video.annotation.id] = dataclasses.replace(video.annotation, instances=instances)
    outputs, best, recall, precision_of = {}, {}, {}, {}
    for mode, make in modes.items():
        model = make(checkpoint)
        config = model.config
        window = config.model.window
        batch = np.stack([cut(video.features, [0], window)[0] for video in made[:8]])
        outputs[mode] = model(torch.from_numpy(batch))
        archive = open_features(path, feature_dim=config.model.feature_dim)
        times = TimeResolver(config, table=truth)
        predicted = predict(model, archive, archive.ids, times, DEFAULT)
        best[mode] = rows = {f.video: np.column_stack([f.segments, f.scores]) for f in predicted}
        recall[mode] = 100 * average_recall(truth, rows, tiou_thresholds=TIOU, max_proposals=100).at(100)
        entries = {
            video: [{"segment": list(r[:2]), "score": float(r[2]), "label": "action"} for r in found]
            for video, found in rows.items()
        }
        detections = Results.from_dict(entries)
        precision_of[mode] = 100 * mean_average_precision(truth, detections, tiou_thresholds=TIOU).average
    near = 0.5 * made[0].annotation.duration / len(made[0].features)
    return [
        {
            "network": f"bundled, {videos} videos",
            "precision": mode,
            **differences(outputs[mode], outputs[EXACT]),
            "same of 100 %": overlap(best[mode], best[EXACT], near),
            "AR@100": recall[mode],
            "change": recall[mode] - recall[EXACT],
            "mAP": precision_of[mode],
            "change of mAP": precision_of[mode] - precision_of[EXACT],
        }
        for mode in modes
    ]


COLUMNS = ("network", "precision", "largest", "mean", "same of 100 %", "AR@100", "change", "mAP", "change of mAP")
ROOT_MEAN_SQUARES = ("regression", "background")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--emulate", action="store_true", help="the precisions of a GPU, emulated")
    parser.add_argument("--videos", type=int, default=40, metavar="N", help="synthetic videos")
    parser.add_argument("--json", metavar="FILE", help="also write the table to this file")
    args = parser.parse_args(argv)
    facts = environment()
    print(f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}\n")
    modes = on_any_gpu() if args.emulate else on_this_cpu()
    with tempfile.TemporaryDirectory() as folder:
        rows = seeded_rows(Path(folder), modes) + bundled_rows(Path(folder), modes, args.videos)
    header = (*COLUMNS, *(f"rms {name}" for name in ROOT_MEAN_SQUARES))
    cells = [
        [*(row.get(name, "") for name in COLUMNS), *(row["scores"][name]["rms"] for name in ROOT_MEAN_SQUARES)]
        for row in rows
    ]
    print_table(header, cells)
    if args.json:
        write_json(args.json, {"environment": facts, "emulated": args.emulate, "rows": rows})
    return 0


if __name__ == "__main__":
    run(main)
