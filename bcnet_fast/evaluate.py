"""Compute average recall (AR@AN), AUC and mAP of a result file by the THUMOS14 or ActivityNet-1.3 protocol.

    python -m bcnet_fast.evaluate --proposals FILE.json --ground-truth FILE --metric thumos14
        AR@AN and AUC; also mAP if the proposals have labels

    python -m bcnet_fast.evaluate --proposals FILE.json --ground-truth FILE --metric thumos14 \\
            --class-scores uNet_test.npy --fusion bcnet
        mAP of the proposals with the classes of a video classifier

Ground truth is ActivityNet JSON, JSON of BMN or a THUMOS14 CSV, plain or gzipped. The numbers equal those of the public
evaluators. These stop at a video without proposals or an unknown label; here such instances count as missed, such
detections are ignored, and a warning says so. Exit code: 0 success, 2 bad input.
"""

from __future__ import annotations

import sys

from .cli.parser import Parser, add_plot_flags, command_parser, run
from .evaluation import METRICS
from .evaluation.run import GROUND_TRUTH, EvaluateOptions, evaluate
from .results.fusion import FUSION_RULES


def build_parser() -> Parser:
    parser = command_parser("evaluate", __doc__, ("proposals", "ground_truth", "class_scores"))
    parser.add_argument(
        "--proposals",
        metavar="PATH",
        required=True,
        help="proposals or detections: JSON, CSV, Parquet, THUMOS submission text, a proposal list or a folder of CSV "
        "files by video; formats: docs/formats.md",
    )
    parser.add_argument("--ground-truth", metavar="FILE", required=True, help="annotated instances")
    parser.add_argument(
        "--metric",
        "--preset",
        choices=list(METRICS),
        required=True,
        help="thumos14: AR@50..1000, tIoU 0.5:0.05:1, mAP at 0.3:0.1:0.7; "
        "activitynet13: AR@1..100, tIoU 0.5:0.05:0.95 for AR and mAP (--preset is the older name of this flag)",
    )
    parser.add_argument(
        "--protocol",
        choices=list(GROUND_TRUTH),
        default=EvaluateOptions.protocol,
        help="default and release use the ground truth unchanged, like the public evaluators of BCNet, BMN and G-TAD; "
        "opentad first removes duplicates and instances of zero length; th14 computes mAP as the THUMOS'14 toolkit, "
        "which systems before 2019 report, from the THUMOS14 annotation CSV with its Ambiguous rows",
    )
    parser.add_argument(
        "--tiou",
        metavar="FIRST:STEP:LAST",
        help="tIoU thresholds of average recall and mAP instead of those of --metric: a range with both of its ends, "
        "such as 0.1:0.1:0.7, or a comma list, such as 0.5,0.75,0.95",
    )
    parser.add_argument(
        "--subset",
        metavar="NAME",
        help="videos of the ground truth to use (default: test on thumos14, validation on activitynet13; if the file "
        "has one other subset only, that one; if it has none, all videos)",
    )
    classes = parser.add_argument_group("classes, for mAP of proposals without labels")
    classes.add_argument(
        "--class-scores", metavar="FILE", help="class scores of whole videos; layouts: docs/formats.md"
    )
    classes.add_argument(
        "--fusion",
        choices=list(FUSION_RULES),
        default=EvaluateOptions.fusion,
        help="; ".join(f"{name}: {meaning}" for name, meaning in FUSION_RULES.items()),
    )
    classes.add_argument(
        "--top-k", type=int, metavar="K", help="classes per video (default: 2 on thumos14, 1 on activitynet13)"
    )
    parser.add_argument(
        "--video-info",
        metavar="FILE",
        help="lengths and frame rates of videos, for proposals in frames or in shares of the video, and for the rule "
        "gtad, which cuts segments to the video (default: those of the ground truth)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write all numbers at full precision")
    add_plot_flags(output, "average recall against AN, average_recall.png,")
    return parser


def parse(argv: list[str] | None) -> EvaluateOptions:
    """Parse flags to options. InputError: a flag is missing or has another value than its choices."""
    return EvaluateOptions(**vars(build_parser().parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    evaluation = evaluate(parse(argv))
    for warning in evaluation.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(evaluation.table())
    evaluation.write()
    return 0


if __name__ == "__main__":
    run(main)
