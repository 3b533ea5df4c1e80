"""Make one HTML page to look at the proposals or detections of a result file; or export them to other tools.

    python -m bcnet_fast.view RESULTS.json --output page.html
        the page: open it in any browser; it needs no server and no network

    python -m bcnet_fast.view RESULTS.json --output page.html --videos DIR --ground-truth FILE
        with the videos, played in step with the timeline, and with true actions that are found or missed

    python -m bcnet_fast.view RESULTS.json --export elan --output DIR
        files for another tool instead

Exit code: 0 success, 2 bad input. What is missing, such as the file of a video, is a note.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .cli import result_flags
from .cli.parser import Parser, command_parser, require_in_bounds, run
from .errors import InputError
from .results.exchange import FORMATS
from .results.view import ViewOptions, view


def build_parser() -> Parser:
    parser = command_parser("view", __doc__)
    parser.add_argument(
        "results", metavar="RESULTS", help="result file of infer, or of another system: docs/formats.md"
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="page to write (default: RESULTS with suffix .html), or file or folder to export to",
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the page (default: name of the result file)")

    videos = parser.add_argument_group("videos")
    videos.add_argument(
        "--videos",
        metavar="DIR",
        help="folder of video files named by the ids, with or without subfolders; the page links to them, so keep "
        "both together",
    )
    videos.add_argument("--embed", action="store_true", help="put the video files into the page")

    more = parser.add_argument_group("more to show")
    more.add_argument(
        "--ground-truth", metavar="FILE", help="annotated instances; layouts: docs/formats.md, as in evaluate"
    )
    more.add_argument(
        "--subset",
        metavar="NAME",
        help="only videos of this subset of --ground-truth, also those that RESULTS lacks",
    )
    more.add_argument("--boundaries", metavar="DIR", help="boundary probabilities, as infer --boundaries writes them")

    result_flags.add_labels(parser, "labels, for proposals without", fusion=ViewOptions.fusion, top_k=ViewOptions.top_k)

    export = parser.add_argument_group("other tools, instead of a page")
    export.add_argument("--export", choices=FORMATS, help="format to write: docs/formats.md")
    export.add_argument("--best", type=int, metavar="N", help="proposals of each video to export (default: all)")
    return parser


def parse(argv: list[str] | None) -> ViewOptions:
    """Parse flags to options. InputError: a flag is missing or out of range."""
    values = vars(build_parser().parse_args(argv))
    if values["output"] is None and values["export"]:
        raise InputError(f"--export {values['export']} requires --output, the file or folder to write")
    if values["output"] is None:
        stem = values["results"].removesuffix(".gz").removesuffix(".json")
        values["output"] = f"{Path(stem)}.html"
    options = ViewOptions(**values)
    require_in_bounds(options, top_k=1, best=1)
    return options


def main(argv: list[str] | None = None) -> int:
    report = view(parse(argv))
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    print(report.summary())
    return 0


if __name__ == "__main__":
    run(main)
