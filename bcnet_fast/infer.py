"""Proposals from features: one command, no annotations needed.

    python -m bcnet_fast.infer
        runs the bundled demo (synthetic videos, a small trained network) and shows what comes out

    python -m bcnet_fast.infer --checkpoint FILE.safetensors --features PATH --fps 30 --output FILE.json
        writes ActivityNet submission JSON for every video of an archive: a folder of .npy/.npz/.csv/.pt files, one such
        file, an HDF5 file, or the THUMOS14 two-stream folder

Exit code: 0 all done; 1 some videos could not be used (listed at the end, the others are written); 2 bad input.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .cli import time_flags
from .cli.parser import Parser, command_parser, require_at_least, run
from .errors import InputError
from .inference.model import PRECISIONS
from .inference.run import InferOptions, infer
from .ops.backends import BACKENDS
from .presets import DATA_SETS, PRESETS
from .protocols import NAMES


def build_parser() -> Parser:
    parser = command_parser("infer", __doc__)
    parser.add_argument("--features", metavar="PATH", help="features of the videos; docs/formats.md has the layouts")
    parser.add_argument("--output", metavar="FILE.json", help="submission JSON to write")

    network = parser.add_argument_group("network")
    network.add_argument("--checkpoint", metavar="FILE", help="weights (.safetensors); this or --preset is needed")
    network.add_argument("--model", choices=list(PRESETS), help="the system (default: the checkpoint's, or bcnet)")
    network.add_argument("--preset", choices=DATA_SETS, help="sizes, windows and thresholds, with random weights")
    network.add_argument(
        "--feature-dim", type=int, metavar="C", help="channels, for random weights (else the preset's)"
    )
    network.add_argument(
        "--precision", choices=list(PRECISIONS), default=InferOptions.precision, help="arithmetic of the network"
    )
    network.add_argument(
        "--device", default=InferOptions.device, help="auto, cpu or cuda; auto takes a GPU where there is one"
    )
    network.add_argument(
        "--backend",
        choices=BACKENDS,
        default=InferOptions.backend,
        help="kernels of the network and of the operators after it",
    )
    network.add_argument(
        "--protocol", choices=NAMES, default=InferOptions.protocol, help="the system's own release: docs/protocols.md"
    )

    time_flags.add_arguments(parser)

    labels = parser.add_argument_group("labels (detections instead of proposals)")
    labels.add_argument("--labels", metavar="FILE", help="video-level class scores; docs/formats.md has the layouts")
    labels.add_argument(
        "--fusion",
        choices=["product", "sqrt"],
        default=InferOptions.fusion,
        help="confidence x class score, or its square root",
    )
    labels.add_argument(
        "--top-k", type=int, default=InferOptions.top_k, metavar="K", help="best classes that a video's proposals get"
    )

    shown = parser.add_argument_group("to look at")
    shown.add_argument("--plot", metavar="DIR", help="write a timeline picture of each video")
    shown.add_argument("--srt", metavar="DIR", help="write subtitles of each video")
    shown.add_argument(
        "--best", type=int, default=InferOptions.best, metavar="N", help="proposals shown in pictures and subtitles"
    )
    shown.add_argument("--ground-truth", metavar="FILE", help="annotations, drawn into the pictures")

    running = parser.add_argument_group("running")
    running.add_argument(
        "--batch-size", type=int, default=InferOptions.batch_size, metavar="N", help="windows in a batch"
    )
    running.add_argument(
        "--workers", type=int, default=InferOptions.workers, metavar="N", help="processes that read features"
    )
    running.add_argument("--profile", action="store_true", help="print where the time goes, by stage")
    running.add_argument("--trace", metavar="FILE.json", help="write the stages for chrome://tracing or Perfetto")
    running.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same settings")
    return parser


def parse(argv: list[str]) -> InferOptions:
    """The options of a run. InputError for a flag that is missing or out of range."""
    values = vars(build_parser().parse_args(argv))
    for flag in ("features", "output"):
        if values[flag] is None:
            raise InputError(f"--{flag}: expected it, found none; run without any flag for the demo, or with --help")
    options = InferOptions(time=time_flags.take_options(values), **values)
    require_at_least(options, batch_size=1, workers=0, best=1, top_k=1, feature_dim=1)
    return options


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        from .cli.demo import run_demo

        return run_demo(Path("bcnet_demo"))
    options = parse(argv)
    report = infer(options)
    print(report.summary())
    if options.profile:
        print(report.profile.table())
    for failure in report.failures:
        print(f"failed: {failure.video}: {failure.reason}", file=sys.stderr)
    return 1 if report.failures else 0


if __name__ == "__main__":
    run(main)
