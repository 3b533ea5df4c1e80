"""Average recall (AR@AN), AUC and mAP of a proposal file, by the THUMOS14 or the ActivityNet-1.3 protocol.

    python -m bcnet_fast.evaluate --proposals FILE.json --ground-truth FILE --preset thumos14
        AR@AN and AUC; mAP too when the proposals carry labels

    python -m bcnet_fast.evaluate --proposals FILE.json --ground-truth FILE --preset thumos14 \\
            --class-scores uNet_test.npy --fusion bcnet
        mAP of the proposals with the classes of a video classifier

Ground truth: ActivityNet JSON, BMN's JSON or a THUMOS14 CSV. JSON and CSV files may be gzipped. The numbers equal those
of the public evaluators; where these stop (a video without proposals, an unknown label), the instances count as missed,
the detections are set aside, and a warning says so. Exit code: 0 done, 2 bad input.
"""

from __future__ import annotations

import sys

from .cli.parser import Parser, command_parser, run
from .evaluation import METRICS
from .evaluation.run import GROUND_TRUTH, EvaluateOptions, evaluate
from .results.fusion import FUSION_RULES


def build_parser() -> Parser:
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("--proposals", metavar="FILE", required=True, help="submission JSON of proposals or detections")
    parser.add_argument("--ground-truth", metavar="FILE", required=True, help="annotated instances")
    parser.add_argument(
        "--preset",
        choices=list(METRICS),
        required=True,
        help="thumos14: AR@50..1000, tIoU 0.5:0.05:1, mAP at 0.3:0.1:0.7; "
        "activitynet13: AR@1..100, tIoU 0.5:0.05:0.95 for AR and mAP",
    )
    parser.add_argument(
        "--protocol",
        choices=list(GROUND_TRUTH),
        default=EvaluateOptions.protocol,
        help="default and release use the ground truth as it stands, as the public evaluators of BCNet, BMN and G-TAD "
        "do; opentad drops duplicates and instances of no length first",
    )
    parser.add_argument(
        "--subset",
        metavar="NAME",
        help="videos of the ground truth to use (default: test on thumos14, validation on activitynet13, else the only "
        "subset of the file; all videos when it states no subsets)",
    )
    classes = parser.add_argument_group("classes, for mAP of proposals without labels")
    classes.add_argument("--class-scores", metavar="FILE", help="video-level scores; docs/formats.md has the layouts")
    classes.add_argument(
        "--fusion",
        choices=list(FUSION_RULES),
        default=EvaluateOptions.fusion,
        help="; ".join(f"{name}: {meaning}" for name, meaning in FUSION_RULES.items()),
    )
    classes.add_argument(
        "--top-k", type=int, metavar="K", help="classes for each video (default: 2 on thumos14, 1 on activitynet13)"
    )
    classes.add_argument(
        "--video-info",
        metavar="FILE",
        help="length of the videos, to which the rule gtad cuts segments (default: what the ground truth states)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="write all numbers in full precision")
    output.add_argument("--plot", metavar="FILE", help="draw average recall against AN (.png, .svg or .pdf)")
    return parser


def parse(argv: list[str] | None) -> EvaluateOptions:
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
