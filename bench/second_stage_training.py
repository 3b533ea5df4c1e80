"""A training step of P-GCN: as the public code computes it, with a matrix for each tree, and as this package does.

    python bench/second_stage_training.py [--videos N] [--json FILE]          two minutes

A step has N videos of 8 proposals, each with a tree of 21 nodes. Weights and features are random. Times are reported
only when all forms give the same loss and gradients, without dropout, to 1e-4 of the largest.
"""

from __future__ import annotations

import resource
from pathlib import Path

import torch
from support.dense_pgcn import DensePGCN
from support.environment import begin
from support.tables import print_table
from support.timing import alternate, keep_freed_memory

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError
from bcnet_fast.geometry.proposal_graph import TREE
from bcnet_fast.networks.reference import SECOND_STAGE as REFERENCE
from bcnet_fast.networks.trainable import SECOND_STAGE as TRAINABLE
from bcnet_fast.presets import SECOND_STAGE_PRESETS
from bcnet_fast.storage.output import write_json
from bcnet_fast.training.second_stage_losses import second_stage_loss
from bcnet_fast.training.second_stage_samples import SAMPLES

TOLERANCE = 1e-4
POOL = 60  # proposals of a video that trees are drawn from
FORMS = {
    "one matrix for all trees (public)": DensePGCN,
    "a matrix for each tree": REFERENCE["pgcn"],
    "bcnet_fast": TRAINABLE["pgcn"],
}


class Step:
    """A batch, and the same step with any form of the network."""

    def __init__(self, videos: int) -> None:
        self.config = SECOND_STAGE_PRESETS["pgcn"]["thumos14"].model
        torch.manual_seed(0)
        width = self.config.feature_dim
        completeness = torch.rand(POOL * videos, 3 * width)
        self.activity, self.completeness = completeness[:, width : 2 * width].contiguous(), completeness
        first = POOL * torch.arange(videos).repeat_interleave(len(SAMPLES))[:, None]
        self.trees = first + torch.randint(POOL, (len(SAMPLES) * videos, TREE))
        self.kinds = torch.tensor(SAMPLES).repeat(videos)
        labels = torch.randint(1, self.config.classes + 1, self.kinds.shape)
        self.labels = torch.where(self.kinds == 2, 0, labels)
        self.targets = torch.randn(len(self.kinds), 2)

    def network(self, form: type[torch.nn.Module]) -> torch.nn.Module:
        torch.manual_seed(1)
        return form(self.config)

    def run(self, network: torch.nn.Module) -> float:
        network.zero_grad()
        output = network(self.activity, self.completeness, self.trees)
        loss = second_stage_loss(output, self.kinds, self.labels, self.targets)["total"]
        loss.backward()
        return loss.item()


def check(step: Step) -> dict[str, float]:
    """Run every form once; the highest memory of the process after each, in MiB.

    The form with the least memory comes first, because the highest use of a process never falls. BackendError: a form
    gives another loss or other gradients than that one.
    """
    expected: list[torch.Tensor] = []
    peaks: dict[str, float] = {}
    for name, form in reversed(FORMS.items()):
        network = step.network(form).eval()
        loss = step.run(network)
        peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = [torch.tensor(loss), *(p.grad for p in network.parameters() if p.grad is not None)]
        for one, wanted in zip(found, expected or found, strict=True):
            if not torch.allclose(one, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max())):
                raise BackendError(f"{name}: expected the loss and gradients of {list(FORMS)[-1]!r}, found others")
        expected = expected or found
    return peaks


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--videos", type=int, default=32, metavar="N", help="videos of a step")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args(argv)
    facts = begin(arguments.threads, [arguments.json])
    keep_freed_memory()
    step = Step(arguments.videos)
    peaks = check(step)
    networks = {name: step.network(form).train() for name, form in FORMS.items()}
    calls = {name: lambda network=network: step.run(network) for name, network in networks.items()}
    timings = alternate(calls, seconds=1.0, least_runs=2, warm_up=False)
    base = timings["bcnet_fast"].median
    rows = [
        {"form": name, **timing._asdict(), "times_ours": timing.median / base, "peak_mib": peaks[name]}
        for name, timing in timings.items()
    ]
    print_table(
        ["training step", "median ms", "x ours", "peak MiB of the process"],
        [[row["form"], row["median"], row["times_ours"], row["peak_mib"]] for row in rows],
    )
    if arguments.json:
        sizes = {"videos": arguments.videos, "nodes": step.trees.numel()}
        write_json(arguments.json, {"environment": facts, **sizes, "steps": rows}, indent=1)
    return 0


if __name__ == "__main__":
    run(main)
