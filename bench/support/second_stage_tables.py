"""The tables of bench/second_stage.py."""

from __future__ import annotations

from typing import Any

from .markdown import SPACE, number, table, times

PUBLIC = "public formulation"
RATES = {
    "product of 1024 x 1024 matrices": ("products", "GFLOP/s", 2e-6 * 1024**3),
    "copy of 64 MiB": ("copies", "GB/s", 2e-6 * 2**26),
}


def whole(found: dict[str, Any]) -> str:
    """From features to scores, and training steps, beside the public formulation."""
    lines = []
    for row in found["whole"]:
        if row["form"] != PUBLIC:
            # The draw is the public code's own; without one there is nothing public to compare with.
            own = [one for one in found["whole"] if one["threads"] == row["threads"] and one["form"] == PUBLIC]
            public = next(one for one in own if one["case"].split(",")[0] == row["case"].split(",")[0])
            memory = [number(one["peak_mib"]) for one in (public, row)]
            ratio = times(public["median"] / row["median"])
            milliseconds = number(public["median"]), number(row["median"])
            share = f"{100 * row['floor_share']:.0f}{SPACE}%"
            lines.append([row["case"], str(row["threads"]), *milliseconds, ratio, share, *memory])
    for row in found["training"]:
        if row["form"] == PUBLIC:
            own = next(one for one in found["training"] if one["form"] == "all" and one["threads"] == row["threads"])
            milliseconds = number(row["median"]), number(own["median"])
            name = f"P-GCN, training step of {row['videos']} videos"
            ratio = times(row["median"] / own["median"])
            lines.append([name, str(row["threads"]), *milliseconds, ratio, "", "", ""])
    rates = []
    for step in found["steps"]:
        if step["step"] in RATES:
            name, unit, work = RATES[step["step"]]
            rates.append(f"{name} at {number(work / step['median'])} {unit} on {step['threads']} thread(s)")
    header = ["", "threads", "public, ms", "bcnet_fast, ms", "", "of the floor", "public, MiB", "bcnet_fast, MiB"]
    return f"*Float32; {', '.join(rates)}.*\n\n" + table(header, lines)


def rewrites(found: dict[str, Any]) -> str:
    """The networks alone with each rewrite switched off."""
    cases = list(dict.fromkeys(row["case"] for row in found["networks"]))
    by_form: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["networks"]:
        by_form.setdefault(row["form"], {})[row["case"]] = row
    lines = []
    for form, rows in by_form.items():
        cells = [rows.get(case) for case in cases]
        shown = [f"{number(row['median'])}{SPACE}({row['times']:.2f}x)" if row else "" for row in cells]
        lines.append(["all rewrites, C++" if form == "all" else form, *shown])
    return table(["milliseconds", *cases], lines)
