"""Tables of docs/how_to/archives.md from the results of bench/archive.py."""

from __future__ import annotations

from typing import Any

from .markdown import number, table

_MODEL_VIDEOS, _MODEL_WORKERS = 1_000_000, 1_000
_WINDOWS = 3  # a video, as in the archive that was measured
_KEYS = 1_000  # of one LIST request of an object store
_PART_VIDEOS, _PART_S = 1_000, 60  # limits of a part


def throughput(found: dict[str, Any]) -> str:
    rows = [row for row in found["throughput"] if "variant" in row]
    lines = [
        [
            row["variant"],
            number(row["cpu_ms"]),
            f"{100 * (row['ratio'] - 1):+.1f} %",
            f"{100 * (min(row['ratios']) - 1):+.1f} to {100 * (max(row['ratios']) - 1):+.1f} %",
        ]
        for row in rows
    ]
    pairs = f"median of {len(rows[0]['ratios'])} pairs"
    return table(["BMN, THUMOS14 sizes", "CPU time a window, ms", f"beside one process, {pairs}", "all pairs"], lines)


def writing(found: dict[str, Any]) -> str:
    rows = {row["writing"]: row["cpu_ms"] for row in found["throughput"] if "writing" in row}
    names = {
        "file": "one process: partial file and JSON",
        "jsonl": "parts of JSON lines",
        "parquet": "parts of Parquet",
    }
    computing = _WINDOWS * next(row["cpu_ms"] for row in found["throughput"] if row.get("variant") == "one process")
    lines = [
        [names[name], number(value), f"{100 * (value - rows['file']) / computing:+.2f} %"]
        for name, value in rows.items()
    ]
    return table(["storing a video of 100 proposals", "CPU time, ms", "of computing it, beside one process"], lines)


def ray(found: dict[str, Any]) -> str:
    base = min(row["window_ms"] for row in found["ray"] if "start_s" not in row)
    lines = []
    for row in found["ray"]:
        starting = [number(row[key]) if key in row else "" for key in ("start_s", "load_s")]
        lines.append(
            [row["variant"], number(row["window_ms"]), f"{100 * (row['window_ms'] / base - 1):+.1f} %", *starting]
        )
    header = ["BMN, THUMOS14 sizes", "a window, ms", "beside the faster single process", "start of Ray, s"]
    return table([*header, "loading by all workers, s"], lines)


def memory(found: dict[str, Any]) -> str:
    base = found["memory"][0]["peak_mib"]
    lines = [
        [f"{row['videos']:,}", number(row["peak_mib"]), f"{row['peak_mib'] / base:.2f}x"] for row in found["memory"]
    ]
    return table(["tiny videos", "peak memory, MiB", ""], lines)


def long(found: dict[str, Any]) -> str:
    lines = [[f"{row['snippets']:,}", number(row["seconds"]), number(row["peak_mib"])] for row in found["long"]]
    return table(["snippets of one video", "CPU seconds, with starting", "peak memory, MiB"], lines)


def ids(found: dict[str, Any]) -> str:
    start, *rows = found["ids"]
    lines = [
        [
            row["step"] + (f", {row['proposals']} proposals a video, {row['format']}" if "format" in row else ""),
            f"{row['videos']:,}",
            number(row["seconds"]),
            f"{60 * row['videos'] / row['seconds']:,.0f}" if row["seconds"] >= 0.1 else "",
            number(row["peak_mib"]),
        ]
        for row in rows
    ]
    idle = f"{number(start['seconds'])} s, which is subtracted, and {number(start['peak_mib'])} MiB"
    note = f"\nStarting Python takes {idle}.\n"
    return table(["step", "videos", "CPU seconds", "videos a minute", "peak memory, MiB"], lines) + note


def growth(found: dict[str, Any]) -> str:
    lines = [
        [
            row["step"] + (f", {row['proposals']} proposals a video, {row['format']}" if row["format"] else ""),
            f"{row['seconds']:.2f}",
            f"{row['memory']:.2f}",
        ]
        for row in found["growth"]
    ]
    return table(["step", "exponent of time", "exponent of memory"], lines)


def model(found: dict[str, Any]) -> str:
    """A run of many workers, from the rates that were measured."""
    window_s = next(row["cpu_ms"] / 1e3 for row in found["throughput"] if row.get("variant") == "one shard of one")
    share = _MODEL_VIDEOS // _MODEL_WORKERS

    def each(step: str) -> float:
        """Seconds a video, in the slowest case."""
        rows = [row for row in found["ids"] if row["step"] == step and row.get("format", "jsonl") == "jsonl"]
        slowest = max(rows, key=lambda row: row["seconds"] / row["videos"])
        return slowest["seconds"] / slowest["videos"]

    computing = share * _WINDOWS * window_s
    parts = _MODEL_WORKERS * max(1, -(-share // _PART_VIDEOS), int(computing // _PART_S))
    lists = _MODEL_WORKERS * _MODEL_VIDEOS // _KEYS
    lines = [
        ["computing, one core a worker", f"{computing:,.0f} s", f"{share:,} videos of {_WINDOWS} windows a worker"],
        [
            "listing the archive, each worker",
            f"{each('list') * _MODEL_VIDEOS:.1f} s; S3: {each('list keys of S3') * _MODEL_VIDEOS:,.0f} s",
            f"on an object store, {lists:,} LIST requests of {_KEYS:,} keys by all workers; none of Parquet or tars",
        ],
        ["reading features", "part of computing", f"{_MODEL_VIDEOS:,} files or GET requests, one a video"],
        ["writing parts", "part of computing", f"{parts:,} files or PUT requests"],
        ["resuming, each worker", f"{each('resume') * share:.2f} s", "reads the parts of its own shard"],
        ["head node", "none", "workers do not know of each other"],
        ["merging, one core", f"{each('merge') * _MODEL_VIDEOS:,.0f} s", f"reads {parts:,} parts once, by id"],
    ]
    title = f"{_MODEL_VIDEOS:,} videos, {_MODEL_WORKERS:,} workers"
    return table([title, "time", "what it consists of"], lines)


TABLES = {
    "archive-throughput": throughput,
    "archive-writing": writing,
    "archive-ray": ray,
    "archive-memory": memory,
    "archive-long": long,
    "archive-ids": ids,
    "archive-growth": growth,
    "archive-model": model,
}
