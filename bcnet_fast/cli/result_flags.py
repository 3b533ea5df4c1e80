"""Flags of results, the same in every command: their labels, how they are shown, and how they are written."""

from __future__ import annotations

import argparse

from .parser import add_plot_flags


def add_labels(parser: argparse.ArgumentParser, title: str, *, fusion: str, top_k: int) -> argparse._ArgumentGroup:
    """Add --labels, --fusion and --top-k, which make detections of proposals; the keywords are defaults."""
    group = parser.add_argument_group(title)
    group.add_argument("--labels", metavar="FILE", help="class scores of whole videos; layouts: docs/formats.md")
    group.add_argument(
        "--fusion",
        choices=["product", "sqrt"],
        default=fusion,
        help="confidence x class score, or the square root of that",
    )
    group.add_argument(
        "--top-k",
        type=int,
        default=top_k,
        metavar="K",
        help="number of best classes assigned to the proposals of a video",
    )
    return group


def add_shown(group: argparse._ArgumentGroup, best: str) -> None:
    """Add the flags of pages, pictures and subtitles; `best` says what --best counts."""
    group.add_argument(
        "--page", metavar="FILE.html", help="make a page to look at the results in a browser; see the command view"
    )
    add_plot_flags(group, "a timeline of each video")
    group.add_argument("--srt", metavar="DIR", help="write subtitles (.srt) per video")
    group.add_argument("--best", type=int, metavar="N", help=best)
    group.add_argument(
        "--ground-truth", metavar="FILE", help="annotations to draw in pages and pictures, with hits and misses"
    )


def add_writing(group: argparse._ArgumentGroup) -> None:
    """Add --profile, --resume and --overwrite."""
    group.add_argument("--profile", action="store_true", help="print the time of each stage")
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue a run with the same settings, interrupted or with videos that failed or came later",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an existing output")
