"""The drop-in layers of bcnet_fast.layers beside the layers that they replace: BMN's and G-TAD's own layers and
convolutions.

    python bench/layers.py [--json FILE] [--threads N]

One training-like call at the released sizes, batch 1: "forward" without gradients, "both" with those of the features,
the weight and the bias. Before is the dense sampling matrix of the public BMN, or of G-TAD's alignment (which exists in
CUDA only), and PyTorch's convolution after it. Both run in this process in turn, after their results agree (1e-3 of the
norm, gradients included). MiB is the most memory that a process of its own takes for "both", beyond what it had after
the imports.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from support.environment import begin
from support.tables import print_table
from support.timing import alternate, memory_mib
from torch import Tensor, nn

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.errors import BackendError
from bcnet_fast.layers import BoundaryMatching, GraphAlignConv
from bcnet_fast.networks.reference.bmn import BMN
from bcnet_fast.networks.reference.gtad import GTAD, nearest
from bcnet_fast.presets import PRESETS
from bcnet_fast.storage.output import write_json

Layer = Callable[[Tensor], Tensor]


def boundary_matching(data: str) -> tuple[Layer, nn.Module, Tensor]:
    """BMN's layer before and after, with the same weights, and a sequence."""
    config = PRESETS["bmn"][data].model
    dense = BMN(config)
    layer = BoundaryMatching(config.window, layout=config.map_layout, max_duration=config.max_duration)
    layer.load_state_dict(dense.x_3d_p[0].state_dict())

    def before(x: Tensor) -> Tensor:
        return F.conv3d(dense.sample(x), layer.weight, layer.bias, stride=(config.bins, 1, 1)).relu()[:, :, 0]

    return before, layer, torch.randn(1, config.base_channels, config.window)


def graph_align(data: str) -> tuple[Layer, nn.Module, Tensor]:
    config = PRESETS["gtad"][data].model
    dense = GTAD(config)
    bins = config.inner_bins, config.context_bins
    layer = GraphAlignConv(config.neighbours, config.window, config.max_duration, style=1, bins=bins)
    layer.load_state_dict(dense.localization[0].state_dict())

    def before(x: Tensor) -> Tensor:
        return F.conv2d(dense.sample(x, nearest(x, config.neighbours)), layer.weight, layer.bias).relu()

    return before, layer, torch.randn(1, config.base_channels, config.window)


CASES = {
    "BMN, ActivityNet-1.3": functools.partial(boundary_matching, "activitynet13"),
    "BMN, THUMOS14": functools.partial(boundary_matching, "thumos14"),
    "G-TAD, THUMOS14": functools.partial(graph_align, "thumos14"),
    "G-TAD, ActivityNet-1.3": functools.partial(graph_align, "activitynet13"),
}


def both(layer: Layer, weights: nn.Module, x: Tensor) -> list[Tensor]:
    """A forward and its backward."""
    x = x.clone().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, weights.weight, weights.bias], torch.ones_like(out))]


def memory(case: str, variant: int, threads: int) -> float | None:
    """Runs in a fresh process."""
    torch.set_num_threads(threads)
    held = memory_mib("VmRSS")
    before, layer, x = CASES[case]()
    both((before, layer)[variant], layer, x)
    return None if held is None else memory_mib("VmHWM") - held


def measure(case: str) -> list[dict[str, Any]]:
    before, layer, x = CASES[case]()
    for wanted, found in zip(both(before, layer, x), both(layer, layer, x), strict=True):
        # ReLU takes a few results near zero for negative in one and not in the other.
        if not float((found - wanted).norm()) <= 1e-3 * float(wanted.norm()):
            raise BackendError(f"{case}: the results differ")
    rows = []
    for mode in ("forward", "both"):
        calls = {}
        for name, one in (("before", before), ("after", layer)):
            call = functools.partial(torch.no_grad()(one), x) if mode == "forward" else None
            calls[name] = call or functools.partial(both, one, layer, x)
        times = alternate(calls, seconds=2.0, least_runs=5)
        ratio = times["before"].median / times["after"].median
        rows += [{"layer": case, "mode": mode, "variant": n, **t._asdict(), "faster": ratio} for n, t in times.items()]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        taken = [pool.submit(memory, case, variant, torch.get_num_threads()).result() for variant in (0, 1)]
    return [row | {"peak_mib": taken[row["variant"] == "after"]} for row in rows]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as many as PyTorch takes")
    args = parser.parse_args(argv)
    facts = begin(args.threads, [args.json])
    torch.manual_seed(0)
    rows = [row for case in CASES for row in measure(case)]
    table = []
    for row in (row for row in rows if row["variant"] == "after"):
        old = next(r for r in rows if (r["layer"], r["mode"], r["variant"]) == (row["layer"], row["mode"], "before"))
        table.append([row["layer"], row["mode"], old["median"], row["median"], row["faster"]])
        table[-1] += [round(r["peak_mib"]) if r["peak_mib"] else "" for r in (old, row)]
    print_table(["layer", "mode", "before ms", "after ms", "x", "before MiB", "after MiB"], table)
    if args.json:
        write_json(args.json, {"environment": facts, "rows": rows}, indent=1)
        print(f"written: {args.json}")
    return 0


if __name__ == "__main__":
    run(main)
