"""The whole of inference, from features to proposals: this package beside the reference and exports of it (Table 8).

    python bench/latency.py [--quick] [--only NAME ...] [--json FILE] [--csv FILE] [--plot FILE.png] [--device cpu|cuda]

A table for each system and data set: BCNet (THUMOS14), BMN and G-TAD (THUMOS14 and ActivityNet-1.3). No trained weights
are needed: the time depends on them only through the anchors of BCNet that boundary pairs match. Its boundary threshold
is chosen so that two thirds of them are matched; a second table has the released threshold. Columns:

    network     features of one window to scores; this package leaves out anchors that no pair matches
    alone       the same in a process of its own, to see that sharing one with the others slows none down
    proposals   scores to boundary pairs with their anchors, refinement and confidence
    Soft-NMS    what the Soft-NMS of the window takes beyond that
    window      all three in one go, and `x ref`, how many times faster than the reference
    video       768 snippets, 5 windows, from features to the final list after the Soft-NMS over all windows
    1/s         windows a second in batches of 1 and 8
    MiB         most memory of a process of its own, with interpreter, PyTorch and weights (cuda: of the GPU); `own` is
                what came after the imports
    load, first seconds, in that process: reading the checkpoint (no imports), and the first window after it
    % floor     least time of the network's work (bench/support/floors.py), matched anchors only, at the rate of the
                variant's precision (attention at that of float32), as part of the network's time
    error       root mean square difference of the scores from the reference's, of the worst kind of score

"reference" is the plain network in eager PyTorch, with the dense sampling matrix, and Python for the rest, as public
code has it. torch.compile, ONNX Runtime and OpenVINO (float32) replace its network only, so the same Python follows.
For BMN and G-TAD, it is timed with the reference alone, and not in batches; the ratios of the networks are printed
below the table. A rescaled video is one window, so it has no time of its own. All run on the same threads, in one
process, in turn and equally often; the time is the median. Nothing is timed before all scores agree with the
reference's (float32: 1e-4; bf16 and int8: 0.15; fp16: 0.02), and this package's proposals with those of the Python code
on equal scores (1e-9). Exports are for the CPU: --device cuda has the reference, torch.compile and this package.

Growth: the network alone, random weights, all anchors, for T = 128 to 2048 snippets, and for the numbers of anchors
that the anchor rule gives at T = 512, with the exponent of a power law through the times.

Ablation: the network without one of the engine's rewrites, and without all of them.

--quick leaves out `alone`, batches of 8, the released threshold, growth, ablation, all but reference, fp32 and int8,
and of BMN and G-TAD all but the network of one data set.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import roofline
import torch
from support import charts, floors, growth, rewrites, seeded
from support.environment import begin
from support.process import run_apart
from support.systems import (
    EXPORTS,
    SEED,
    TOLERANCES,
    System,
    export_onnx,
    lengths_of,
    matched_anchors,
    threshold_for,
    variants,
    write_checkpoint,
)
from support.tables import print_table, write_csv
from support.timing import Timing, alternate, finished

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.config import Config
from bcnet_fast.data.windows import cut
from bcnet_fast.errors import BackendError, InputError
from bcnet_fast.networks.outputs import Output
from bcnet_fast.progress import progress
from bcnet_fast.results.figure import require_picture_name
from bcnet_fast.storage.checkpoint import read_config
from bcnet_fast.storage.output import write_json

BATCH, VIDEO_WINDOWS = 8, 5
QUICK = ("reference", "bcnet_fast fp32", "bcnet_fast int8")
SYSTEMS = {"bcnet": ("thumos14",), "bmn": ("activitynet13", "thumos14"), "gtad": ("thumos14", "activitynet13")}
TITLES = {"bcnet": "BCNet", "bmn": "BMN", "gtad": "G-TAD", "thumos14": "THUMOS14", "activitynet13": "ActivityNet-1.3"}


def make_features(config: Config) -> tuple[torch.Tensor, np.ndarray]:
    """Eight windows [8, C, T] in a row, and the video [S, C] that is the first five of them."""
    model, stride = config.model, config.data.window_stride
    snippets = model.window + (BATCH - 1) * stride
    if model.name == "bcnet":
        sequence = seeded.network_input(SEED, model.feature_dim, snippets)[0].T
    else:
        sequence = np.random.default_rng(SEED).standard_normal((snippets, model.feature_dim), np.float32)
    windows = cut(sequence, range(0, BATCH * stride, stride), model.window)
    return torch.from_numpy(windows), sequence[: model.window + (VIDEO_WINDOWS - 1) * stride]


def deviation(found: Output, expected: Output, where: torch.Tensor | None = None) -> float:
    """Root mean square difference of the worst kind of score; of the anchors `where` only, if given."""
    errors = []
    for name, wanted in expected.columns().items():
        difference = getattr(found, name).cpu().double() - wanted.cpu().double()
        chosen = where is not None and difference.shape == where.shape
        errors.append(float((difference[where] if chosen else difference).square().mean().sqrt()))
    return max(errors)


def check(name: str, system: System, baseline: System, windows: torch.Tensor) -> float:
    """The deviation of the scores; BackendError where the scores or the proposals are not those of the baseline."""
    lengths, tolerance = lengths_of(windows), TOLERANCES[system.precision]
    expected, scores, used = baseline.scores(windows), system.scores(windows), system.network(windows, lengths)
    errors = {"all anchors": deviation(scores, expected)}
    if is_bcnet(system):
        errors["matched anchors"] = deviation(used, scores, matched_anchors(scores, lengths, system.config))
    for what, found in errors.items():
        if not found <= tolerance:
            raise BackendError(f"{name}: scores of {what} are off by {found:.2e}, expected at most {tolerance:g}")
    if not timed_to_the_end(name, system):
        return errors["all anchors"]
    ours, theirs = (s.postprocess(scores, lengths) for s in (system, baseline))
    for column, wanted in vars(theirs).items():
        found = getattr(ours, column)
        if found.shape != wanted.shape or not torch.allclose(found.double(), wanted.double(), rtol=0, atol=1e-9):
            raise BackendError(f"{name}: {column} of the proposals differs from the Python code's on equal scores")
    return errors["all anchors"]


def is_bcnet(system: System) -> bool:
    return system.config.model.name == "bcnet"


def timed_to_the_end(name: str, system: System) -> bool:
    """Whether the steps after the network are timed, which in Python take seconds for a map."""
    return is_bcnet(system) or name == "reference" or name.startswith("bcnet_fast")


def stages(
    name: str, system: System, windows: torch.Tensor, video: np.ndarray, quick: bool
) -> dict[str, Callable[[], Any]]:
    """Calls to time, by name."""
    one, length = windows[:1], lengths_of(windows[:1])
    calls = {"network": functools.partial(system.network, one, length)}
    if not timed_to_the_end(name, system) or (quick and not is_bcnet(system)):
        return calls
    output = system.network(one, length)
    calls |= {
        "candidates": functools.partial(system.candidates, output, length),
        "postprocess": functools.partial(system.postprocess, output, length),
        "window": functools.partial(system.windows, one, length),
    }
    if not system.config.data.rescale:
        calls["video"] = functools.partial(system.video, video)
    if not quick and (is_bcnet(system) or name != "reference"):
        calls["batch"] = functools.partial(system.windows, windows, lengths_of(windows))
    return calls


def floor_ms(system: System, matched: float, device: str) -> float | None:
    """None on a GPU whose rates bench/roofline.py does not have."""
    model = system.config.model
    work = 2 * sum(floors.network_work(model, matched).values())
    if device == "cpu":
        if is_bcnet(system) and system.precision == "fp32":
            work -= 2 * floors.strassen_work(model, matched) / 8
        exact = 2 * floors.attention_work(model, matched) if system.precision == "int8" else 0.0
        rates = (floors.cpu_tflops(p) for p in ("fp32", system.precision))
        return sum(part / rate for part, rate in zip((exact, work - exact), rates, strict=True)) * 1e-9
    gpu = roofline.known_gpu(torch.cuda.get_device_name())
    return work / (gpu.fp32 if system.precision == "fp32" else gpu.fp16) * 1e-9 if gpu else None


def measure(
    systems: dict[str, System], own: dict[str, dict[str, Any]], threshold: float | None, device: str, quick: bool
) -> list[dict[str, Any]]:
    """One row of the table for each variant; `own` has the figures from separate processes."""
    baseline = systems["reference"]
    windows, video = make_features(baseline.config)
    for system in systems.values():
        system.set_threshold(threshold)
    errors = {name: check(name, system, baseline, windows[:1]) for name, system in systems.items()}
    matched = 1.0
    if threshold is not None:
        output = baseline.scores(windows[:1])
        matched = float(matched_anchors(output, lengths_of(windows[:1]), baseline.config).float().mean())

    calls = {name: stages(name, system, windows, video, quick) for name, system in systems.items()}
    timings: dict[str, dict[str, Timing]] = {}
    names = list(max(calls.values(), key=len))
    for stage in progress(names, len(names), "stages"):
        slow = stage in ("video", "batch") or (stage != "network" and not is_bcnet(baseline))
        timings[stage] = alternate(
            {name: finished(of_system[stage], device) for name, of_system in calls.items() if stage in of_system},
            # The same number of rounds for all: a fast variant that ran on alone would see the machine at another time.
            seconds=0,
            least_runs=2 if quick and slow else 3 if quick or (slow and not is_bcnet(baseline)) else 5 if slow else 9,
            # The other stages run code that the first has warmed up.
            warm_up=stage == names[0],
        )
    rows = []
    for name, system in systems.items():
        times = {stage: by_name[name] for stage, by_name in timings.items() if name in by_name}
        faster = {
            stage: timings[stage]["reference"].median / timing.median
            for stage, timing in times.items()
            if "reference" in timings[stage]
        }
        to_the_end, batch = "window" in times, times.get("batch")
        floor = floor_ms(system, matched, device)
        rows.append(
            {
                "system": TITLES[system.config.model.name],
                "data": TITLES[system.config.preset],
                "variant": name,
                "precision": system.precision,
                "boundary_threshold": threshold,
                "matched_percent": 100 * matched,
                "times_ms": {stage: timing._asdict() for stage, timing in times.items()},
                "soft_nms_ms": times["postprocess"].median - times["candidates"].median if to_the_end else None,
                "windows_per_s": 1e3 / times["window"].median if to_the_end else None,
                "windows_per_s_batch": None if batch is None else 1e3 * BATCH / batch.median,
                "times_reference": faster,
                "floor_ms": floor,
                "floor_percent": None if floor is None else 100 * floor / times["network"].median,
                "error": errors[name],
                **own[name],
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"\n{rows[0]['system']}, {rows[0]['data']}")
    if rows[0]["boundary_threshold"] is not None:
        print(
            f"boundary threshold {rows[0]['boundary_threshold']:.3g}: {rows[0]['matched_percent']:.1f} % of the "
            "anchors are matched in the window"
        )
    header = [
        "variant",
        "network ms",
        "alone",
        "proposals ms",
        "Soft-NMS ms",
        "window ms",
        "x ref",
        "video ms",
        "x ref",
    ]
    header += ["1/s at 1", "1/s at 8", "MiB", "own", "load s", "first s", "% floor", "error"]
    table = []
    for row in rows:
        ms = {stage: timing["median"] for stage, timing in row["times_ms"].items()}
        faster = row["times_reference"]
        figures = [ms["network"], row["alone_ms"], ms.get("candidates"), row["soft_nms_ms"]]
        figures += [ms.get("window"), faster.get("window"), ms.get("video"), faster.get("video")]
        figures += [
            row[n] for n in ("windows_per_s", "windows_per_s_batch", "peak_mib", "own_mib", "load_s", "first_s")
        ]
        figures += [row["floor_percent"], row["error"]]
        table.append([row["variant"], *("" if f is None else f"{f:.0f}" if f >= 100 else f"{f:.3g}" for f in figures)])
    print_table(header, table)


def show_networks(rows: list[dict[str, Any]]) -> None:
    """This package's network beside the best other one."""
    ours = [row for row in rows if row["variant"].startswith("bcnet_fast")]
    best = min((row for row in rows if row not in ours), key=lambda row: row["times_ms"]["network"]["median"])
    for row in ours:
        faster = best["times_ms"]["network"]["median"] / row["times_ms"]["network"]["median"]
        line = f"network alone, {row['variant']}: {row['times_reference']['network']:.2f} x reference, "
        line += f"{faster:.2f} x the best other ({best['variant']})"
        if row["own_mib"] is not None:
            parts = (row[kind] / rows[0][kind] for kind in ("peak_mib", "own_mib"))
            line += "; memory {:.0%} of the reference's, {:.0%} after the imports".format(*parts)
        print(line)


def csv_rows(rows: Iterable[dict[str, Any]], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each time, with the columns that all benchmarks have."""
    return [
        facts
        | {"op": row["system"], "backend": row["variant"], "mode": stage, "dtype": row["precision"]}
        | {"shape": f"{row['data']}, {row['matched_percent']:.1f} % matched", "peak_mib": row["peak_mib"]}
        | {f"{name}_ms": value for name, value in timing.items()}
        | {"speedup": row["times_reference"].get(stage)}
        for row in rows
        for stage, timing in row["times_ms"].items()
    ]


def measure_case(
    folder: Path, system: str, preset: str, names: list[str], ablated: bool, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of one system and data set, of all variants `names` and of the reference, and those of its rewrites."""
    device, quick = args.device, args.quick
    available = variants(device, system)
    names = ["reference", *(name for name in names if name != "reference" and name in available)]
    checkpoint = write_checkpoint(folder, system, preset)
    config = read_config(checkpoint)
    window = make_features(config)[0][:1]
    systems = {"reference": available["reference"](checkpoint, device)}
    chosen = None
    if system == "bcnet":
        chosen = threshold_for(2 / 3, systems["reference"].scores(window), lengths_of(window), config)
    if EXPORTS.keys() & names:
        export_onnx(checkpoint)
    features = folder / "window.npy"
    np.save(features, window.numpy())
    given = {"checkpoint": str(checkpoint), "features": str(features), "threshold": chosen, "device": device}
    given |= {"threads": torch.get_num_threads(), "alone": not quick}
    own = {name: run_apart(name=name, **given) for name in progress(names, len(names), "processes")}
    systems |= {name: available[name](checkpoint, device) for name in names[1:]}
    rows = measure(systems, own, chosen, device, quick)
    show(rows)
    show_networks(rows)
    if system == "bcnet" and not quick:
        ours = {n: s for n, s in systems.items() if n == "reference" or n.startswith("bcnet_fast")}
        more = measure(ours, own, config.proposals.boundary_threshold, device, quick)
        show(more)
        rows += more
    ablation_rows = rewrites.measure(checkpoint, window, chosen, device) if ablated else []
    if ablation_rows:
        rewrites.show(ablation_rows)
    for file in (checkpoint, *checkpoint.parent.glob(f"{checkpoint.stem}.onnx*")):
        file.unlink()
    return rows, ablation_rows


def software() -> dict[str, str]:
    """Versions of the engines that exports run on."""
    found = {}
    for name in ("numpy", "onnx", "onnxruntime", "openvino"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="variants to time beside the reference, growth, ablation; default: all",
    )
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to run on")
    parser.add_argument("--threads", type=int, metavar="N", help="for all; default: as many as PyTorch takes")
    parser.add_argument("--quick", action="store_true", help="less than a minute")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the times there")
    parser.add_argument("--plot", metavar="FILE", help="draw the chart there (.png, .svg or .pdf)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("--device cuda: there is no CUDA device here")
    if args.plot:
        require_picture_name(args.plot)
    known = list(variants(args.device, "bcnet"))
    possible = (*known, "growth", "ablation")
    asked = args.only or [n for n in possible if not args.quick or n in QUICK]
    if unknown := [name for name in asked if name not in possible]:
        raise InputError(f"--only {unknown[0]}: expected one of {', '.join(possible)} (what is installed here)")
    facts = begin(args.threads, (args.json, args.csv, args.plot), args.device)
    print(", ".join(f"{name} {value}" for name, value in software().items()), flush=True)

    names = [name for name in known if name in asked]
    rows, growth_rows, ablation_rows = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        # Else "first" would say how long compiling took only on the first run of this benchmark.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        if names or "ablation" in asked:
            for system in args.systems:
                for preset in SYSTEMS[system][: 1 if args.quick else None]:
                    found, ablated = measure_case(Path(folder), system, preset, names, "ablation" in asked, args)
                    rows += found
                    ablation_rows += ablated
            if args.device == "cpu":
                rates = ", ".join(
                    f"{p} {1e3 * floors.cpu_tflops(p):.0f}" for p in dict.fromkeys(r["precision"] for r in rows)
                )
                print(f"\nrates of large products that the floors are made with, Gop/s: {rates}")
        if "growth" in asked and "bcnet" in args.systems:
            growth_rows = growth.measure(args.device)
            growth.show(growth_rows)
    if args.json:
        measured = {"rows": rows, "ablation": ablation_rows, "growth": growth_rows}
        write_json(args.json, {"environment": facts | software(), **measured}, indent=1)
        print(f"written: {args.json}")
    if args.csv:
        write_csv(args.csv, csv_rows(rows, facts))
    if args.plot:
        charts.latency(rows, facts, args.plot)
        print(f"written: {args.plot}")
    return 0


if __name__ == "__main__":
    run(main)
