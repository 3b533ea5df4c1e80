"""Fill the tables of the documentation from bench/results, so no figure is typed by hand.

    python bench/benchmarks_page.py               rewrites the tables in README.md and docs/
    python bench/benchmarks_page.py --pictures    also redraws the charts in docs/images/
    python bench/benchmarks_page.py --check       changes nothing; exit code 1 when a page is out of date

A page holds a pair of comments, `<!-- begin figures: NAME -->` and `<!-- end figures -->`; what stands between them is
the table NAME of `TABLES`. A benchmark's results of one machine are one file, `<benchmark>_<machine>.json`; with files
of several machines, a table is repeated for each of them, and the charts show the first one.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support import archive_page, reliability, second_stage_tables, video_tables
from support.markdown import NAMES, SPACE, machine, number, table, times

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
SECTION = re.compile(r"(<!-- begin figures: (\S+) -->\n).*?(<!-- end figures -->)", re.DOTALL)

OURS = "bcnet_fast"
# Benchmarks whose files begin with the name of another one.
LONGER_NAMES = ("latency_maps", "precision_emulated")


def results(benchmark: str) -> list[dict[str, Any]]:
    """The results of a benchmark, one entry a machine."""
    longer = tuple(name for name in LONGER_NAMES if name != benchmark)
    paths = sorted(path for path in RESULTS.glob(f"{benchmark}*.json") if not path.name.startswith(longer))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def each_machine(benchmark: str, make: Callable[[dict[str, Any]], str]) -> str:
    return "\n".join(machine(found["environment"]) + "\n" + make(found) for found in results(benchmark))


def median(row: dict[str, Any], step: str) -> float | None:
    found = row["times_ms"].get(step)
    return None if found is None else found["median"]


def with_ratio(row: dict[str, Any], base: dict[str, Any], step: str) -> str:
    value, reference = median(row, step), median(base, step)
    if value is None or reference is None:
        return ""
    ratio = f"{SPACE}({times(reference / value)})" if row["variant"].startswith(OURS) else ""
    return f"{number(value)}{ratio}"


def groups(found: dict[str, Any], *keys: str) -> dict[tuple, list[dict[str, Any]]]:
    """Rows by the values of some keys, in the order of their first row."""
    grouped: dict[tuple, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        grouped.setdefault(tuple(row[key] for key in keys), []).append(row)
    return grouped


def matched_anchors(row: dict[str, Any]) -> str:
    """Part of a heading: how many anchors BCNet's boundaries match; empty for other systems."""
    if row["boundary_threshold"] is None:
        return ""
    return f", {row['matched_percent']:.0f} % of the anchors matched"


def latency(found: dict[str, Any]) -> str:
    parts = []
    for (system, data, _), rows in groups(found, "system", "data", "boundary_threshold").items():
        base = rows[0]
        matched = matched_anchors(base)
        steps = [step for step in ("network", "window", "video") if median(base, step) is not None]
        header = [f"{system}, {data}{matched}", *(f"{step}, ms" for step in steps), "first window, s", "memory, MiB"]
        lines = [
            [
                NAMES[row["variant"]],
                *(with_ratio(row, base, step) for step in steps),
                number(row["first_s"]),
                number(row["peak_mib"]),
            ]
            for row in rows
        ]
        parts.append(table(header, lines))
    return "\n".join(parts)


def headline() -> str:
    """One line a variant and machine: the network of a window of each system, and a whole video of BCNet."""
    lines, maps = [], {entry["environment"]["device"]: entry for entry in results("latency_maps")}
    chosen = (("BMN", "ActivityNet-1.3"), ("G-TAD", "THUMOS14"))
    for found in results("latency"):
        device = found["environment"]["device"]
        bcnet = next(iter(groups(found, "system", "data", "boundary_threshold").values()))
        others = groups(maps[device], "system", "data") if device in maps else {}
        columns = [(bcnet, "network"), (bcnet, "video"), *((others.get(key, []), "network") for key in chosen)]
        lines.append([device, "PyTorch, eager", *(with_ratio(rows[0], rows[0], step) for rows, step in columns)])
        lines.append(["", "the fastest alternative", *(number(fastest(rows, step)) for rows, step in columns)])
        for ours in (f"{OURS} fp32", f"{OURS} int8"):
            matches = [([row for row in rows if row["variant"] == ours], rows, step) for rows, step in columns]
            cells = [with_ratio(match[0], rows[0], step) if match else "" for match, rows, step in matches]
            lines.append(["", NAMES[ours], *cells])
    return table(
        ["", "milliseconds, 2 threads", "BCNet, window", "BCNet, video", "BMN, window", "G-TAD, window"], lines
    )


def fastest(rows: list[dict[str, Any]], step: str) -> float:
    """The smallest float32 time among torch.compile, ONNX Runtime and OpenVINO."""
    names = [row for row in rows if not row["variant"].startswith(OURS) and row["variant"] != "reference"]
    return min(value for row in names if (value := median(row, step)) is not None)


def best_export() -> str:
    """The engine beside the fastest of the alternatives that replace the network."""
    lines = []
    for found in [*results("latency"), *results("latency_maps")]:
        seen = set()
        for (system, data, _), rows in groups(found, "system", "data", "boundary_threshold").items():
            rivals = [row for row in rows if not row["variant"].startswith(OURS) and row["variant"] != "reference"]
            if not rivals or (system, data) in seen:
                continue
            seen.add((system, data))
            best = min(rivals, key=lambda row: median(row, "network"))
            ours = next(row for row in rows if row["variant"] == f"{OURS} fp32")
            ratios = [times(median(row, "network") / median(ours, "network")) for row in (rows[0], best)]
            device = found["environment"]["device"]
            lines.append([device, f"{system}, {data}", ratios[0], f"{ratios[1]} ({NAMES[best['variant']]})"])
    return table(["machine", "network, fp32", "faster than eager PyTorch", "than the fastest alternative"], lines)


def rewrites(found: dict[str, Any]) -> str:
    by_network: dict[str, dict[str, float]] = {}
    for row in found["ablation"]:
        by_network.setdefault(f"{row['system']}, {row['preset']}", {})[row["rewrites"]] = row["median"]
    kinds = sorted(dict.fromkeys(itertools.chain.from_iterable(by_network.values())), key="none".__eq__)
    lines = []
    for kind in kinds:
        cells = [(one.get(kind), one["all"]) for one in by_network.values()]
        label = {"all": "all rewrites", "none": "no rewrite"}.get(kind, kind)
        ratios = [f"{number(ms)}{SPACE}({ms / best:.2f}x)" if ms is not None else "" for ms, best in cells]
        lines.append([label, *ratios])
    return table(["milliseconds", *by_network], lines)


def precision(found: dict[str, Any]) -> str:
    header = ["network", "precision", "largest difference of a probability", "same of the 100 best", "AR@100", "mAP"]
    lines = [
        [
            row["network"],
            row["precision"],
            number(row["largest"]),
            f"{row['same of 100 %']:.1f} %",
            *(
                f"{row[name]:.1f}{SPACE}({row[change]:+.2f})" if row.get(name, "") != "" else ""
                for name, change in _SCORES
            ),
        ]
        for row in found["rows"]
    ]
    return table(header, lines)


_SCORES = (("AR@100", "change"), ("mAP", "change of mAP"))
UNMEASURED = "not yet"
# Bits of a significand, and with them the largest relative error of a rounded number, 2 to the power of minus that.
SIGNIFICANDS = {"fp32": 24, "tf32": 11, "bf16": 8, "fp16": 11}


def precision_emulated() -> str:
    """The precisions of a GPU: errors predicted by their formats, emulated, and measured."""
    found = json.loads((RESULTS / "precision_emulated.json").read_text(encoding="utf-8"))
    seeded, bundled = ({row["precision"]: row for row in rows} for rows in groups(found, "network").values())
    header = [
        *("", "predicted: error of one rounding", "emulated: largest error, seeded weights"),
        *("RMS, regression", "RMS, background", "AR@100, bundled", "mAP, bundled", "measured"),
    ]
    lines = []
    for mode, row in seeded.items():
        if mode == "fp64":
            continue
        bits = SIGNIFICANDS.get(mode)
        of_score = row["scores"]
        scores = [f"{bundled[mode][name]:.1f} ({bundled[mode][change]:+.2f})" for name, change in _SCORES]
        lines.append(
            [
                f"`{mode}`" if bits else mode,
                f"{2.0**-bits:.1g}" if bits else "",
                f"{max(errors['largest'] for errors in of_score.values()):.2g}",
                *(f"{of_score[name]['rms']:.2g}" for name in ("regression", "background")),
                *scores,
                UNMEASURED if bits else "",
            ]
        )
    return table(header, lines)


def engine_profile(found: dict[str, Any]) -> str:
    rows = sorted(found["rows"], key=lambda row: -row["ms"])[:12]
    header = ["kernel", "calls", "ms", "of the rate of a large product", "ms beyond its products"]
    lines = [
        [row["kernel"], str(row["calls"]), number(row["ms"]), f"{row['percent']:.0f} %", number(row["lost_ms"])]
        for row in rows
    ]
    total, rate = sum(row["ms"] for row in found["rows"]), found["rate_gflops"]
    at_rate = sum(row["gflop"] for row in found["rows"]) / rate * 1e3
    summary = (
        f"All kernels together take {number(total)} ms. Their products alone would take {number(at_rate)} ms at "
        f"{number(rate)} GFLOP/s, the rate of a large product timed between the windows. The twelve longest:\n\n"
    )
    return summary + table(header, lines)


def operators(found: dict[str, Any]) -> str:
    header = ["operator", "shape", "bcnet_fast, ms", "others, ms (how many times as long)"]
    lines = []
    for (name, mode, shape), rows in groups(found, "operator", "mode", "shape").items():
        ours = next(row for row in rows if row["variant"] == OURS)
        others = [
            f"{row['variant']} {number(row['median_ms'])} ({times(row['median_ms'] / ours['median_ms'])})"
            for row in sorted(rows, key=lambda row: row["median_ms"])
            if not row["variant"].startswith(OURS)
        ]
        backward = " with backward" if "backward" in mode else ""
        lines.append([f"`{name}`{backward}", shape, number(ours["median_ms"]), "; ".join(others)])
    return table(header, lines)


def floors(found: dict[str, Any]) -> str:
    """Shares of the least time that the processor allows, of those operators and shapes that have one."""
    header = ["operator", "shape", "a call, ms", "of the floor", "kernel, ms", "of the floor"]
    lines = []
    for row in found["rows"]:
        if row["variant"] != OURS or row["floor_percent"] is None:
            continue
        share, of_kernel = row["floor_percent"], row["kernel_floor_percent"]
        kernel = [number(row["kernel_ms"]), "" if of_kernel is None else f"{of_kernel:.0f} %"]
        backward = " with backward" if "backward" in row["mode"] else ""
        call = [number(row["median_ms"]), f"{share:.0f} %"]
        lines.append([f"`{row['operator']}`{backward}", row["shape"], *call, *kernel])
    return table(header, lines)


def layers(found: dict[str, Any]) -> str:
    lines = []
    for (layer, mode), rows in groups(found, "layer", "mode").items():
        before, after = (next(row for row in rows if row["variant"] == name) for name in ("before", "after"))
        memory = [number(row["peak_mib"]) if mode == "both" else "" for row in (before, after)]
        kind = "forward + backward" if mode == "both" else mode
        ms = [number(row["median"]) for row in (before, after)]
        lines.append([layer, kind, *ms, times(before["median"] / after["median"]), *memory])
    return table(["layer", "", "before, ms", "after, ms", "", "before, MiB", "after, MiB"], lines)


def training(found: dict[str, Any]) -> str:
    header = ["a step", "eager PyTorch, ms", "bcnet_fast, ms", "", "eager PyTorch, MiB", "bcnet_fast, MiB"]
    lines = []
    for row in found["rows"]:
        ms = [median(row, name) for name in ("reference", OURS)]
        memory = [number(row["peak_mib"][name]) for name in ("reference", OURS)]
        name = f"{row['system']}, batch {row['batch']}"
        lines.append([name, *map(number, ms), times(ms[0] / ms[1]), *memory])
    return table(header, lines)


def evaluation(found: dict[str, Any]) -> str:
    header = ["metric, sizes of", "entries", "loops, s", "bcnet_fast, s", "", "largest difference"]
    lines = [
        [
            f"{row['metric']}, {row['data']}",
            f"{row['entries']:,}",
            number(row["loops_s"]),
            number(row["evaluate_s"]),
            times(row["speedup"]),
            number(row["difference"]),
        ]
        for row in found["rows"]
    ]
    return table(header, lines)


def compat(found: dict[str, Any]) -> str:
    sizes = list(dict.fromkeys(row["size"] for row in found["rows"]))
    lines = []
    for (function, name), rows in groups(found, "function", "set").items():
        cells = [f"{number(row['loop_ms'])} → {number(row['ours_ms'])}{SPACE}({times(row['speedup'])})" for row in rows]
        lines.append([function, name, *cells])
    rate = statistics.mean(found["rate_gflops"])
    note = f"*{found['environment']['instruction_set']}; large float32 products at {number(rate)} GFLOP/s.*\n\n"
    return note + table(["function", "segments", *(f"{size}, ms" for size in sizes)], lines)


def compilers(found: dict[str, Any]) -> str:
    lines = [[r["function"], number(r["ms"]), number(r["other_ms"]), f"{r['ratio']:.2f}"] for r in found["rows"]]
    return table(["function", *(f"by {name}, ms" for name in found["compilers"]), "ratio"], lines)


def view(found: dict[str, Any]) -> str:
    header = ["videos", "proposals", "page, MB", "written in, s", "opened in, s"]
    header += ["confidence slider, ms", "other tIoU, ms", "other video, ms"]
    keys = ("page_mb", "write_s", "interactive_s", "slider_ms", "tiou_ms", "video_ms")
    lines = [[f"{r['videos']:,}", f"{r['proposals']:,}", *(number(r[key]) for key in keys)] for r in found["rows"]]
    rate, browser = statistics.mean(found["rate_gflops"]), found["environment"]["browser"]
    return f"*{browser}; large float32 products at {number(rate)} GFLOP/s.*\n\n" + table(header, lines)


def soft_nms() -> str:
    """One line for each set and dtype, the rows of a CSV whose variants follow one another."""
    parts = []
    for path in sorted(RESULTS.glob("soft_nms_*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        lines = []
        for first, *others in _runs(rows):
            slower = [f"{row['backend']} {number(float(row['median_ms']))}" for row in others]
            name = f"{first['shape']}, {first['dtype']}, threads: {first['threads']}"
            lines.append([name, number(float(first["median_ms"])), "; ".join(slower)])
        environment = {**rows[0], "threads": "1 or 2"}
        parts.append(machine(environment) + "\n" + table(["sets", "the kernel alone, ms", "others, ms"], lines))
    return "\n".join(parts)


def _runs(rows: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Cut where the native backend, the first of its group, appears."""
    runs: list[list[dict[str, str]]] = []
    for row in rows:
        if row["backend"] == "native":
            runs.append([])
        runs[-1].append(row)
    return runs


def compiled() -> str:
    """Compiler results for the GPU kernels; nothing here was timed."""
    with open(RESULTS / "aot.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = []
    for target, count in sorted(Counter(row["target"] for row in rows).items(), key=lambda item: int(item[0][3:])):
        of_target = [row for row in rows if row["target"] == target]
        spills = sum(int(row["spill_bytes"] or 0) > 0 for row in of_target)
        lines.append([target, str(count), str(spills), str(max(int(row["registers"] or 0) for row in of_target))])
    return table(["GPU generation", "kernel variants compiled", "with register spills", "most registers"], lines)


def gpu_floors() -> list[dict[str, str]]:
    """Bounds from datasheets: nothing here was timed."""
    with open(RESULTS / "roofline_gpus.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predicted_networks() -> str:
    """Whole networks on one GPU in each precision: predicted and measured times."""
    rows = [row for row in gpu_floors() if row["operator"] == "network" and row["GPU"] == "H100"]
    header = ["one window, µs", *(f"predicted, {name}" for name in ("fp32", "tf32", "16 bits")), "measured"]
    floors_of = [[float(row[f"predicted floor {dtype} us"]) for dtype in ("fp32", "tf32", "fp16")] for row in rows]
    lines = [
        [row["shape"], *(f"> {number(floor)}" for floor in of_row), UNMEASURED]
        for row, of_row in zip(rows, floors_of, strict=True)
    ]
    return table(header, lines)


def predicted_floors() -> str:
    rows = gpu_floors()
    devices = list(dict.fromkeys(row["GPU"] for row in rows))
    by_shape: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        by_shape.setdefault((row["operator"].strip(), row["shape"]), {})[row["GPU"]] = row["predicted floor fp16 us"]
    lines = [
        [name, shape, *(number(float(of_shape[device])) for device in devices)]
        for (name, shape), of_shape in by_shape.items()
        if name != "the same, dense form"
    ]
    return table(["predicted floor, fp16, µs", "shape", *devices], lines)


def paper_table(name: str, systems: Sequence[str]) -> str:
    found = json.loads((RESULTS / f"ablations_{name}.json").read_text(encoding="utf-8"))["seeds"]
    columns = list(next(iter(found.values()))[0])
    lines = [[system, *(_mean_and_deviation(found[system], column) for column in columns)] for system in systems]
    return table(["", *columns], lines)


def _mean_and_deviation(seeds: Sequence[dict[str, float]], column: str) -> str:
    values = [seed[column] for seed in seeds]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


SECOND_STAGE = ("BCNet, own labels", "BCNet + P-GCN", "BCNet + P-GCN, drawn", "BCNet + MUSES-Net")
SYSTEMS = ("BMN", "BMN, constraint", "G-TAD", "G-TAD, constraint", "BCNet, no constraint", "BCNet")
TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "best-export": best_export,
    "latency": lambda: each_machine("latency", latency),
    "latency-maps": lambda: each_machine("latency_maps", latency),
    "rewrites": lambda: each_machine("latency", rewrites),
    "rewrites-maps": lambda: each_machine("latency_maps", rewrites),
    "precision": lambda: each_machine("precision", precision),
    "engine-profile": lambda: each_machine("kernels", engine_profile),
    "operators": lambda: each_machine("ops", operators),
    "layers": lambda: each_machine("layers", layers),
    "training": lambda: each_machine("training", training),
    "second-stage": lambda: each_machine("second_stage", second_stage_tables.whole),
    "second-stage-rewrites": lambda: each_machine("second_stage", second_stage_tables.rewrites),
    "evaluation": lambda: each_machine("evaluation", evaluation),
    "compat": lambda: each_machine("compat", compat),
    "compilers": lambda: each_machine("compilers", compilers),
    "view": lambda: each_machine("view", view),
    "extract": lambda: each_machine("extract", video_tables.extract),
    "soft-nms": soft_nms,
    "attack": lambda: reliability.attack(RESULTS),
    "kills": lambda: reliability.kills(RESULTS),
    **{name: functools.partial(each_machine, "archive", make) for name, make in archive_page.TABLES.items()},
    "shard-kills": lambda: each_machine("shard_kills", reliability.shard_kills),
    "ray-kills": lambda: each_machine("ray_kills", reliability.ray_kills),
    "contended": lambda: each_machine("contended", reliability.contended),
    "floors": lambda: each_machine("ops", floors),
    "compiled": compiled,
    "predicted-floors": predicted_floors,
    "predicted-networks": predicted_networks,
    "precision-emulated": precision_emulated,
    "salads50-knife": lambda: paper_table("salads50_knife", SYSTEMS),
    "salads50-all": lambda: paper_table("salads50_all", SYSTEMS),
    "second-stage-synthetic": lambda: paper_table("second_stage_synthetic", SECOND_STAGE),
    "second-stage-salads50": lambda: paper_table("second_stage_salads50", SECOND_STAGE),
    "synthetic-constraint": lambda: paper_table("synthetic", SYSTEMS),
    "synthetic-frame-level": lambda: paper_table("synthetic", ("BCNet, no frame level", "BCNet")),
    "synthetic-attention": lambda: paper_table(
        "synthetic", ("BCNet, no attention units", "BCNet, no difference unit", "BCNet")
    ),
}


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """The text of a page with every table made anew. KeyError for a table that does not exist."""
    return SECTION.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", text)


def draw(folder: Path) -> list[Path]:
    """Draw every chart into a folder and return the files."""
    # Only pictures need the package and matplotlib.
    from support import charts

    drawn = []
    for name, benchmark, chart in (
        ("latency", "latency", charts.latency),
        ("latency_maps", "latency_maps", charts.latency),
        ("operators", "ops", charts.operators),
    ):
        found = results(benchmark)[0]
        drawn.append(folder / f"{name}.png")
        chart(found["rows"], found["environment"], drawn[-1])
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument("--pictures", action="store_true", help="also redraw the charts in docs/images/")
    options = parser.parse_args(arguments)
    stale = [path for path in pages() if filled(text := path.read_text(encoding="utf-8")) != text]
    for path in stale:
        print(f"{'out of date' if options.check else 'written'}: {path.relative_to(ROOT)}")
        if not options.check:
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    if options.pictures:
        for path in draw(ROOT / "docs" / "images"):
            print(f"written: {path.relative_to(ROOT)}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
