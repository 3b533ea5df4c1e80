"""Tables of bench/extract.py: overhead beside a decoder, and memory."""

from __future__ import annotations

from typing import Any

from .markdown import number, table


def extract(found: dict[str, Any]) -> str:
    parts = []
    if found["overhead"]:
        lines = [
            [
                row["video"],
                "with pixels" if row["pixels"] else "frames alone",
                number(row["decoder_s"]),
                number(row["extract_s"]),
                f"{row['ratio']:.2f}x",
                f"{row['cpu_ratio']:.2f}x",
                f"{row['frames_per_s']:,.0f}",
            ]
            for row in found["overhead"]
        ]
        header = ["video", "work", "decoder, s", "extract, s", "ratio", "of CPU time", "frames/s"]
        parts.append(table(header, lines))
    if found["memory"]:
        lines = [[f"{row['seconds'] / 60:g}", row["video"], number(row["peak_mib"])] for row in found["memory"]]
        parts.append(table(["minutes of video", "video", "peak, MiB"], lines))
    return "\n\n".join(parts)
