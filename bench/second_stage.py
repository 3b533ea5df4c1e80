"""P-GCN and MUSES-Net on one video: each step, each rewrite of the network, and the reference.

    python bench/second_stage.py [--device cuda] [--json FILE]          two minutes

Weights are random. The default video has the mean length of the THUMOS14 test set, with 800 proposals. A time is
reported only when all forms of a network give the same scores, to 1e-4 of the largest. With all slots as neighbours,
the forms that compute the slots' trees node by node are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.environment import begin
from support.seeded import generator
from support.seeded_second_stage import features
from support.tables import print_table
from support.timing import alternate, keep_freed_memory

import bcnet_fast
from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError
from bcnet_fast.geometry.proposal_graph import draw_trees, neighbour_slots, video_generator
from bcnet_fast.geometry.proposal_windows import inference_ticks, pooled_rows, regions
from bcnet_fast.networks.engine import REWRITES, Rewrites
from bcnet_fast.networks.outputs import SecondStageOutput
from bcnet_fast.networks.range_maxima import proposal_features
from bcnet_fast.presets import SECOND_STAGE_PRESETS
from bcnet_fast.storage.output import write_json

TOLERANCE = 1e-4
# With all slots, these forms compute trees of 111 nodes, which takes a hundred times as long.
SLOW_WITH_SLOTS = ("without shared_nodes", "none", "reference")


def make_proposals(count: int, frames: int) -> np.ndarray:
    """Segments [N, 2] of many lengths, int64, in groups that overlap as those of a proposal network do."""
    random = generator(0, "proposals")
    middle = np.repeat(random.uniform(0, frames, (count + 7) // 8), 8)[:count]
    length = np.repeat(np.exp(random.uniform(3.4, 6.5, (count + 7) // 8)), 8)[:count]
    middle = middle + 0.1 * length * random.standard_normal(count)
    length = length * np.exp(0.1 * random.standard_normal(count))
    start = np.clip(middle - length / 2, 0, frames - 2).astype(np.int64)
    return np.stack([start, np.clip((middle + length / 2).astype(np.int64), start + 1, frames)], axis=1)


def forms(system: str, device: str) -> dict[str, Callable[..., SecondStageOutput]]:
    """The network with all rewrites, without each, with none, and the reference, all of the same random weights."""
    names, config = REWRITES[system], SECOND_STAGE_PRESETS[system]["thumos14"]
    switches = {"all": Rewrites()} | {f"without {name}": Rewrites(**{name: False}) for name in names}
    switches["none"] = Rewrites(**dict.fromkeys(names, False))
    models = {}
    for name, options in [
        *((n, {"rewrites": r}) for n, r in switches.items()),
        ("reference", {"backend": "reference"}),
    ]:
        torch.manual_seed(0)
        models[name] = bcnet_fast.load(config, device=device, **options)
    return models


def measure(
    system: str, case: str, inputs: list[Any], device: str, left_out: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One row for each form but those left out. BackendError: a form gives other scores than the last of them."""

    def scores(model: Callable[..., SecondStageOutput]) -> list[torch.Tensor]:
        # In host memory, so that a GPU is done when the time is taken.
        return [one.cpu() for one in vars(model(*inputs)).values()]

    models = {name: model for name, model in forms(system, device).items() if name not in left_out}
    expected = scores(list(models.values())[-1])
    for name, model in models.items():
        for found, wanted in zip(scores(model), expected, strict=True):
            if not torch.allclose(found, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max())):
                raise BackendError(f"{case}, {name}: expected the scores of {list(models)[-1]!r}, found others")
    timings = alternate({name: lambda model=model: scores(model) for name, model in models.items()}, seconds=1.0)
    base = timings["all"].median
    return [{"case": case, "form": n, **t._asdict(), "times_all": t.median / base} for n, t in timings.items()]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the networks run")
    parser.add_argument("--proposals", type=int, default=800, metavar="N", help="proposals of the video")
    parser.add_argument("--rows", type=int, default=786, metavar="T", help="rows of features of the video")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args(argv)
    facts = begin(arguments.threads, [arguments.json], arguments.device)
    keep_freed_memory()

    rows, frames = arguments.rows, 8 * (arguments.rows - 1) + 64
    segments = make_proposals(arguments.proposals, frames)
    video = torch.from_numpy(features("bench", rows, 0))
    layout = SECOND_STAGE_PRESETS["pgcn"]["thumos14"].rows
    slots, ticks = neighbour_slots(segments), inference_ticks(segments, frames)
    trees = draw_trees(slots, video_generator(0, "bench"))
    windows = torch.from_numpy(pooled_rows(ticks, frames, rows, layout))
    square = torch.rand(1024, 1024)
    steps = alternate(
        {
            "neighbours of all proposals": lambda: neighbour_slots(segments),
            "trees, own generator": lambda: draw_trees(slots, video_generator(0, "bench")),
            "trees, public stream": lambda: draw_trees(slots, np.random.RandomState(777)),
            "pooled features": lambda: proposal_features(video, windows),
            "product of 1024 x 1024 matrices": lambda: square @ square,
        }
    )
    print_table(["step, on the CPU", "median ms"], [[name, timing.median] for name, timing in steps.items()])
    pooled = proposal_features(video, windows)
    found = measure("pgcn", "P-GCN, trees", [*pooled, trees], arguments.device)
    found += measure("pgcn", "P-GCN, all slots", [*pooled, slots], arguments.device, SLOW_WITH_SLOTS)
    found += measure("muses", "MUSES-Net", [video.T, regions(ticks)], arguments.device)
    print_table(
        ["network", "form", "median ms", "x all"], [[r["case"], r["form"], r["median"], r["times_all"]] for r in found]
    )
    if arguments.json:
        sizes = {"proposals": arguments.proposals, "rows": rows}
        all_steps = [{"step": name, **timing._asdict()} for name, timing in steps.items()]
        write_json(arguments.json, {"environment": facts, **sizes, "steps": all_steps, "networks": found}, indent=1)
    return 0


if __name__ == "__main__":
    run(main)
