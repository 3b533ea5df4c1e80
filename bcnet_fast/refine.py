"""Give the proposals of another network classes, better boundaries and scores, by P-GCN or MUSES-Net.

    python -m bcnet_fast.refine --proposals FILE --features PATH --checkpoint FILE.safetensors --output FILE.json
        write labelled detections for every video that has proposals and features

    python -m bcnet_fast.refine --proposals list.txt --features flow/ rgb/ --stream-weights 1.2 1 --fps 30 \\
            --checkpoint flow.safetensors rgb.safetensors --output FILE.json
        fuse the scores of two streams; one archive may also hold both side by side

Proposals are a result file of infer, whose confidences are not used, or a proposal list of the public codes. Without
--draw, all candidates for neighbours of a proposal count alike in P-GCN, and nothing is random.

Exit code: 0 success; 1 some videos failed (listed at the end; the others are written); 2 bad input.
"""

from __future__ import annotations

import math
import sys

from .bounds import MOST_PROCESSES
from .cli import read_flags, result_flags, time_flags
from .cli.parser import Parser, command_parser, require_in_bounds, run
from .errors import InputError
from .inference.page import make_page
from .inference.refine import RefineOptions, refine
from .inference.second_stage_model import BACKENDS, PRECISIONS
from .protocols import NAMES
from .text import count, failure_line, shown


def build_parser() -> Parser:
    parser = command_parser("refine", __doc__)
    parser.add_argument("--proposals", metavar="FILE", required=True, help="result file or proposal list")
    parser.add_argument(
        "--features", metavar="PATH", nargs="+", required=True, help="features of the videos, or of each stream"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", nargs="+", required=True, help="weights (.safetensors), one file a stream"
    )
    parser.add_argument("--output", metavar="FILE.json", required=True, help="submission JSON to write")
    parser.add_argument(
        "--subset",
        metavar="NAME",
        help="only videos of this subset, according to the annotation file of --times or --ground-truth",
    )

    network = parser.add_argument_group("networks")
    network.add_argument(
        "--stream-weights", type=float, nargs="+", metavar="W", help="weight of each checkpoint (default: equal)"
    )
    network.add_argument(
        "--draw", type=int, metavar="SEED", help="draw the neighbours of P-GCN at random, anew for each video"
    )
    network.add_argument("--no-regression", action="store_true", help="leave the boundaries as they are")
    network.add_argument(
        "--nms-threshold",
        type=float,
        metavar="R",
        help="largest tIoU of two detections of a class (default: that of the checkpoint)",
    )
    network.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes, one a line, or annotations; for checkpoints that do not know them",
    )
    network.add_argument(
        "--precision", choices=list(PRECISIONS), default=RefineOptions.precision, help="arithmetic of the networks"
    )
    network.add_argument(
        "--device", default=RefineOptions.device, help="auto, cpu or cuda; auto uses a GPU if there is one"
    )
    network.add_argument(
        "--backend", choices=list(BACKENDS), default=RefineOptions.backend, help="implementation of the networks"
    )
    network.add_argument(
        "--protocol",
        choices=NAMES,
        default=RefineOptions.protocol,
        help="rules of the public release instead of the default ones: docs/protocols.md",
    )
    time_flags.add_arguments(parser)
    read_flags.add_arguments(parser)

    shown = parser.add_argument_group("class scores, pictures and subtitles")
    shown.add_argument(
        "--labels", metavar="FILE", help="class scores of whole videos, which multiply the scores: docs/formats.md"
    )
    result_flags.add_shown(shown, "detections in pictures and subtitles")

    running = parser.add_argument_group("running")
    running.add_argument(
        "--workers", type=int, default=RefineOptions.workers, metavar="N", help="processes that read features"
    )
    result_flags.add_writing(running)
    return parser


def parse(argv: list[str]) -> RefineOptions:
    """Parse flags to options. InputError: a flag is missing, out of range or contradicts another."""
    values = vars(build_parser().parse_args(argv))
    for name in ("features", "checkpoint", "stream_weights"):
        values[name] = values[name] and tuple(values[name])
    options = RefineOptions(time=time_flags.take_options(values), limits=read_flags.take_limits(values), **values)
    require_in_bounds(options, workers=(0, MOST_PROCESSES), best=1, draw=0)
    weights, threshold = options.stream_weights, options.nms_threshold
    if weights is not None:
        if len(weights) != len(options.checkpoint):
            expected = f"one for each of {count(len(options.checkpoint), 'checkpoint')}"
            raise InputError(f"--stream-weights has {count(len(weights), 'number')}, expected {expected}")
        if not all(0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
            found = " ".join(f"{weight:g}" for weight in weights)
            raise InputError(f"--stream-weights is {found}, expected numbers of at least 0, not all 0")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--nms-threshold is {threshold:g}, expected a number from 0 to 1")
    if options.draw is not None and options.protocol == "release":
        raise InputError("--draw is the seed of a draw for each video, expected no value with --protocol release")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    report = refine(options)
    print(report.summary())
    if report.profile is not None:
        print(report.profile.table())
    for note in report.notes:
        print(f"note: {shown(note)}", file=sys.stderr)
    for failure in report.failures:
        print(failure_line(failure.video, failure.reason), file=sys.stderr)
    if page := make_page(options):
        for note in page.notes:
            print(f"note: {shown(note)}", file=sys.stderr)
        print(page.summary())
    return 1 if report.failures else 0


if __name__ == "__main__":
    run(main)
