"""P-GCN and MUSES-Net on one video, from features to scores: against the public formulation, and each rewrite.

    python bench/second_stage.py [--threads N...] [--json FILE]          three minutes

Weights are random. The default video has the mean length of the THUMOS14 test set, with 800 proposals. Three tables:
the whole way from features to scores, beside the public formulation (`support/public_second_stage.py`), with the floor
of the remaining products and the peak of memory beyond what is loaded; the steps; and the network with each rewrite
switched off. A time is reported only when all forms of a network give the same scores, to 1e-4 of the largest. With
all slots as neighbours, the forms that compute the slots' trees node by node are left out.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.environment import begin
from support.floors import second_stage_work
from support.public_second_stage import (
    drawn_trees,
    muses_deformable,
    pgcn_dense_graph,
    pgcn_one_by_one,
    pooled_one_by_one,
)
from support.seeded import generator
from support.seeded_second_stage import features
from support.tables import print_table
from support.timing import alternate, keep_freed_memory, memory_mib

import bcnet_fast
from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.config import FeatureRows, PGCNConfig
from bcnet_fast.errors import BackendError
from bcnet_fast.geometry.proposal_graph import draw_trees, neighbour_slots, video_generator
from bcnet_fast.geometry.proposal_windows import inference_ticks, pooled_rows, regions
from bcnet_fast.inference.second_stage_model import ENGINES, SecondStageModel
from bcnet_fast.networks import reference
from bcnet_fast.networks.engine import REWRITES, Rewrites
from bcnet_fast.networks.engine.rewrites import IN_CPP
from bcnet_fast.networks.outputs import SecondStageOutput
from bcnet_fast.networks.range_maxima import proposal_features
from bcnet_fast.networks.trainable import SECOND_STAGE as TRAINABLE
from bcnet_fast.presets import SECOND_STAGE_PRESETS
from bcnet_fast.storage.output import write_json

TOLERANCE = 1e-4
# With all slots, these forms compute trees of 111 nodes, which takes a hundred times as long.
SLOW_WITH_SLOTS = ("PyTorch without shared_nodes", "PyTorch without any", "reference")
PUBLIC = "public formulation"


@dataclass
class Video:
    """A video's features [T, C], its proposals [N, 2] in frames, and its length in frames."""

    rows: torch.Tensor
    segments: np.ndarray
    frames: int

    def windows(self) -> np.ndarray:
        return pooled_rows(inference_ticks(self.segments, self.frames), self.frames, len(self.rows), FeatureRows())


def make_video(proposals: int, rows: int) -> Video:
    frames = 8 * (rows - 1) + 64
    return Video(torch.from_numpy(features("bench", rows, 0)), make_proposals(proposals, frames), frames)


def make_proposals(count: int, frames: int) -> np.ndarray:
    """Segments [N, 2] of many lengths, int64, in groups that overlap as those of a proposal network do."""
    random = generator(0, "proposals")
    middle = np.repeat(random.uniform(0, frames, (count + 7) // 8), 8)[:count]
    length = np.repeat(np.exp(random.uniform(3.4, 6.5, (count + 7) // 8)), 8)[:count]
    middle = middle + 0.1 * length * random.standard_normal(count)
    length = length * np.exp(0.1 * random.standard_normal(count))
    start = np.clip(middle - length / 2, 0, frames - 2).astype(np.int64)
    return np.stack([start, np.clip((middle + length / 2).astype(np.int64), start + 1, frames)], axis=1)


def loaded(system: str, device: str = "cpu", **options: Any) -> SecondStageModel:
    """The network of a preset, with the same random weights whatever the options."""
    torch.manual_seed(0)
    return bcnet_fast.load(SECOND_STAGE_PRESETS[system]["thumos14"], device=device, **options)


def forms(system: str, device: str) -> dict[str, SecondStageModel]:
    """The network as it is, in PyTorch, each without single rewrites, and the reference."""
    names = REWRITES[system]
    models = {"all": loaded(system, device)}
    for name in names:
        if name in IN_CPP:
            models[f"without {name}"] = loaded(system, device, rewrites=Rewrites(**{name: False}))
    own = [name for name in names if name not in IN_CPP]
    switches = {"PyTorch": {}} | {f"PyTorch without {name}": {name: False} for name in own}
    switches["PyTorch without any"] = dict.fromkeys(own, False)
    reference = loaded(system, device, backend="reference")
    state = reference.network.state_dict()
    for name, off in switches.items():
        run = ENGINES[system](reference.config.model, state, reference.device, torch.float32, Rewrites(**off))
        models[name] = SecondStageModel(run, reference.config, reference.device, "fp32", "auto")
    return models | {"reference": reference}


def host(output: SecondStageOutput) -> list[torch.Tensor]:
    """Scores in host memory, so that a GPU is done when the time is taken."""
    return [one.cpu() for one in vars(output).values()]


def timed(case: str, calls: dict[str, Callable[[], SecondStageOutput]], base: str) -> list[dict[str, Any]]:
    """One row for each call. BackendError: one gives other scores than the last of them."""
    *others, last = calls
    expected = host(calls[last]())
    for name in others:
        for found, wanted in zip(host(calls[name]()), expected, strict=True):
            if not torch.allclose(found, wanted, rtol=0, atol=TOLERANCE * float(wanted.detach().abs().max())):
                raise BackendError(f"{case}, {name}: expected the scores of {last!r}, found others")
    scores = {name: lambda call=call: host(call()) for name, call in calls.items()}
    timings = alternate(scores, seconds=1.0, warm_up=False)
    threads, unit = torch.get_num_threads(), timings[base].median
    return [
        {"case": case, "form": name, "threads": threads, **timing._asdict(), "times": timing.median / unit}
        for name, timing in timings.items()
    ]


def measure(
    system: str, case: str, inputs: list[Any], device: str, left_out: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One row for each form but those left out. BackendError: a form gives other scores than the last of them."""
    models = {name: model for name, model in forms(system, device).items() if name not in left_out}
    return timed(case, {name: lambda model=model: model(*inputs) for name, model in models.items()}, "all")


def ways(case: str, video: Video, device: str = "cpu") -> dict[str, Callable[[], SecondStageOutput]]:
    """All of a case's work from features to scores, as it is and in the public formulation, if that has the case."""
    if case == "MUSES-Net":
        model = loaded("muses", device)
        of_release = loaded("muses", backend="reference").network if device == "cpu" else None

        def own() -> SecondStageOutput:
            return model(video.rows.T, regions(inference_ticks(video.segments, video.frames)))

        def public() -> SecondStageOutput:
            rois = torch.from_numpy(regions(inference_ticks(video.segments, video.frames)))
            with torch.inference_mode():
                return muses_deformable(of_release, video.rows.T.contiguous(), rois)

        return {"all": own} | ({PUBLIC: public} if of_release is not None else {})
    model = loaded("pgcn", device)
    of_release = loaded("pgcn", backend="reference").network

    def own(drawn: bool) -> SecondStageOutput:
        slots = neighbour_slots(video.segments)
        neighbours = draw_trees(slots, np.random.RandomState(777)) if drawn else slots
        return model(*proposal_features(video.rows, torch.from_numpy(video.windows())), neighbours)

    def public() -> SecondStageOutput:
        trees = drawn_trees(video.segments, np.random.RandomState(777))
        with torch.inference_mode():
            return pgcn_one_by_one(of_release, *pooled_one_by_one(video.rows, video.windows()), trees)

    if case == "P-GCN, trees":
        return {"all": lambda: own(True), PUBLIC: public}
    return {"all": lambda: own(False)}


def peak_of(case: str, form: str, video: Video) -> float | None:
    """Peak MiB of a first call, beyond the memory of the process with the loaded network."""
    way = ways(case, video)[form]
    before = memory_mib("VmRSS")
    if before is None:
        return None
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    way()
    peak = memory_mib("VmHWM")
    return None if peak is None else peak - before


def peak_apart(case: str, form: str, proposals: int, rows: int) -> float | None:
    """`peak_of` in a process of its own."""
    command = [sys.executable, __file__, "--proposals", str(proposals), "--rows", str(rows), "--peak", case, form]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise BackendError(f"{case}, {form}: its own process failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def end_to_end(video: Video) -> list[dict[str, Any]]:
    """From features to scores: a row for each case and form, with its share of the floor."""
    found = []
    square = torch.rand(1024, 1024)
    for case in ("P-GCN, trees", "P-GCN, all slots", "MUSES-Net"):
        rows = timed(case, ways(case, video), "all")
        product = alternate({"product": lambda: square @ square}, seconds=0.5)["product"].median
        rate = 2e-6 * 1024**3 / product  # GFLOP/s
        for row in rows:
            work = second_stage_work(case, len(video.segments), len(video.rows))
            row["gflops"], row["floor_share"] = rate, 2e-6 * work / rate / row["median"]
        found += rows
    return found


def training(videos: int) -> list[dict[str, Any]]:
    """P-GCN's training step, forward and backward, on eight proposals of each video, beside the public formulation."""
    torch.manual_seed(0)
    pool = 120  # proposals of a video that belong to a pool
    trees = []
    for number in range(videos):
        slots = neighbour_slots(make_proposals(pool, 6000))
        random = np.random.default_rng(number)
        trees.append(torch.from_numpy(draw_trees(slots, random, random.integers(0, pool, 8)) + number * pool))
    completeness = torch.rand(videos * pool, 3 * PGCNConfig().feature_dim)
    inputs = completeness[:, PGCNConfig().feature_dim :][:, : PGCNConfig().feature_dim], completeness, torch.cat(trees)
    own, public = TRAINABLE["pgcn"](PGCNConfig()), reference.SECOND_STAGE["pgcn"](PGCNConfig())
    public.load_state_dict(own.state_dict())
    forwards = {"all": own, PUBLIC: functools.partial(pgcn_dense_graph, public)}
    own.eval(), public.eval()
    for found, wanted in zip(*(host(forward(*inputs)) for forward in forwards.values()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE * float(wanted.detach().abs().max()))
    own.train(), public.train()

    def step(forward: Callable[..., SecondStageOutput]) -> None:
        sum(scores.square().mean() for scores in vars(forward(*inputs)).values()).backward()

    steps = {name: lambda forward=forward: step(forward) for name, forward in forwards.items()}
    timings = alternate(steps, seconds=1.0, warm_up=False)
    unit, threads = timings["all"].median, torch.get_num_threads()
    return [
        {"form": name, "videos": videos, "threads": threads, **timing._asdict(), "times": timing.median / unit}
        for name, timing in timings.items()
    ]


def step_times(video: Video) -> list[dict[str, Any]]:
    """Milliseconds of the steps around the networks, and of the operations that rate the machine."""
    slots, windows = neighbour_slots(video.segments), torch.from_numpy(video.windows())
    square, block = torch.rand(1024, 1024), torch.rand(2**24)
    copy = torch.empty_like(block)
    steps = alternate(
        {
            "neighbours of all proposals": lambda: neighbour_slots(video.segments),
            "trees, own generator": lambda: draw_trees(slots, video_generator(0, "bench")),
            "trees, public stream": lambda: draw_trees(slots, np.random.RandomState(777)),
            "pooled features": lambda: proposal_features(video.rows, windows),
            "product of 1024 x 1024 matrices": lambda: square @ square,
            "copy of 64 MiB": lambda: copy.copy_(block),
        }
    )
    return [{"step": name, "threads": torch.get_num_threads(), **timing._asdict()} for name, timing in steps.items()]


def show(title: str, rows: Sequence[dict[str, Any]], *names: str, more: Sequence[str] = ()) -> None:
    """Print rows as soon as they are measured: a run that is cut short is not lost."""
    columns = (*names, "median", *more)
    print_table(
        [title, *(name.replace("median", "median ms") for name in columns[1:])], [[r[c] for c in columns] for r in rows]
    )
    print(flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the networks run")
    parser.add_argument("--proposals", type=int, default=800, metavar="N", help="proposals of the video")
    parser.add_argument("--rows", type=int, default=786, metavar="T", help="rows of features of the video")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1], metavar="N", help="threads of a CPU, in turn")
    parser.add_argument("--videos", type=int, default=32, metavar="N", help="videos of a training step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "FORM"), help="print the memory of one form, no time")
    arguments = parser.parse_args(argv)
    video = make_video(arguments.proposals, arguments.rows)
    if arguments.peak:
        torch.set_num_threads(1)
        print(json.dumps(peak_of(*arguments.peak, video)))
        return 0
    facts = begin(arguments.threads[0], [arguments.json], arguments.device)
    keep_freed_memory()

    pooled = proposal_features(video.rows, torch.from_numpy(video.windows()))
    slots = neighbour_slots(video.segments)
    trees = draw_trees(slots, video_generator(0, "bench"))
    rois = regions(inference_ticks(video.segments, video.frames))
    whole, steps, networks, trained = [], [], [], []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        steps += step_times(video)
        whole += end_to_end(video) if arguments.device == "cpu" else []
    show("step, on the CPU", steps, "step", "threads")
    forms_of = dict.fromkeys((row["case"], row["form"]) for row in whole)
    peaks = {of: peak_apart(*of, arguments.proposals, arguments.rows) for of in forms_of}
    whole = [row | {"peak_mib": peaks[row["case"], row["form"]]} for row in whole]
    show("features to scores", whole, "case", "form", "threads", more=("times", "floor_share", "gflops", "peak_mib"))
    torch.set_num_threads(arguments.threads[0])
    if arguments.device == "cpu":
        trained = training(arguments.videos)
        show("training step", trained, "form", "videos", more=("times",))
    for system, case, inputs, left_out in (
        ("pgcn", "P-GCN, trees", [*pooled, trees], ()),
        ("pgcn", "P-GCN, all slots", [*pooled, slots], SLOW_WITH_SLOTS),
        ("muses", "MUSES-Net", [video.rows.T, rois], ()),
    ):
        rows = measure(system, case, inputs, arguments.device, left_out)
        show("network", rows, "case", "form", more=("times",))
        networks += rows
    if arguments.json:
        sizes = {"proposals": arguments.proposals, "rows": arguments.rows}
        figures = {
            "environment": facts,
            **sizes,
            "steps": steps,
            "whole": whole,
            "networks": networks,
            "training": trained,
        }
        write_json(arguments.json, figures, indent=1)
    return 0


if __name__ == "__main__":
    run(main)
