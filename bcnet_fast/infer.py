"""Write temporal action proposals for the videos of a feature archive, or for video files. Needs no annotations.

    python -m bcnet_fast.infer
        run the demo: synthetic videos, and a small trained network that is shipped with the package; with PyAV, also
        clips of these videos, and a page that plays them

    python -m bcnet_fast.infer --checkpoint FILE.safetensors --features PATH --fps 30 --output FILE.json
        write ActivityNet submission JSON for every video of an archive: a folder of .npy, .npz, .csv or .pt files, one
        such file, HDF5, Parquet or WebDataset tars, or the THUMOS14 two-stream folder

    python -m bcnet_fast.infer clip.mp4 --checkpoint FILE.safetensors --output FILE.json
        the same for videos, with a checkpoint that was trained on features of extract; docs/how_to/video.md

    python -m bcnet_fast.infer --checkpoint FILE --features PATH --output out.json --refine pgcn.safetensors
        also give the proposals, which are in out.proposals.json, classes and better boundaries: the command refine

Exit code: 0 success; 1 some videos failed (listed at the end; the others are written); 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from .bounds import MOST_PROCESSES
from .cli import read_flags, result_flags, shard_flags, time_flags, video_flags
from .cli.parser import Parser, command_parser, require_in_bounds, run
from .errors import InputError
from .inference.both_stages import infer_and_refine
from .inference.model import PRECISIONS
from .inference.options import InferOptions
from .inference.page import make_page
from .inference.ray import infer_ray
from .inference.run import InferReport, infer
from .inference.shards import infer_shard
from .ops.backends import BACKENDS
from .presets import PRESET_NAMES, PRESETS
from .protocols import NAMES
from .text import failure_line, shown

_ADDRESSES = ("features", "checkpoint", "times", "labels", "ground_truth", "output")


def build_parser() -> Parser:
    parser = command_parser("infer", __doc__, _ADDRESSES)
    parser.add_argument(
        "videos", nargs="*", metavar="VIDEO", help="video files, folders, and .txt lists of them, instead of --features"
    )
    parser.add_argument(
        "--features",
        metavar="PATH",
        help="features of the videos, a path or an address such as s3://bucket/folder; layouts: docs/formats.md",
    )
    parser.add_argument(
        "--output",
        metavar="FILE.json",
        help="submission JSON to write, a path or an address; with --shard or --ray, a folder",
    )
    parser.add_argument(
        "--subset",
        metavar="NAME",
        help="only videos of this subset, according to the annotation file of --times or --ground-truth",
    )

    network = parser.add_argument_group("network")
    network.add_argument(
        "--checkpoint", metavar="FILE", help="weights (.safetensors); required unless --preset is given"
    )
    network.add_argument("--model", choices=list(PRESETS), help="system (default: that of the checkpoint, or bcnet)")
    network.add_argument("--preset", choices=PRESET_NAMES, help="sizes, windows and thresholds; weights are random")
    network.add_argument(
        "--feature-dim", type=int, metavar="C", help="channels, with random weights (default: those of the preset)"
    )
    network.add_argument(
        "--precision", choices=list(PRECISIONS), default=InferOptions.precision, help="arithmetic of the network"
    )
    network.add_argument(
        "--device", default=InferOptions.device, help="auto, cpu or cuda; auto uses a GPU if there is one"
    )
    network.add_argument(
        "--backend",
        choices=BACKENDS,
        default=InferOptions.backend,
        help="implementation of the network and of the operators after it",
    )
    network.add_argument(
        "--protocol",
        choices=NAMES,
        default=InferOptions.protocol,
        help="rules of the public release instead of the default ones: docs/protocols.md",
    )

    time_flags.add_arguments(parser)
    read_flags.add_arguments(parser)
    video_flags.add_arguments(parser)

    labels = result_flags.add_labels(
        parser, "labels (detections instead of proposals)", fusion=InferOptions.fusion, top_k=InferOptions.top_k
    )
    labels.add_argument(
        "--refine",
        metavar="FILE",
        nargs="+",
        help="weights of P-GCN or MUSES-Net, one file a stream: refined detections, whose scores --labels multiplies",
    )

    shown = parser.add_argument_group("pages, pictures and subtitles")
    shown.add_argument(
        "--boundaries", metavar="DIR", help="write boundary probabilities per video, which the command view shows"
    )
    result_flags.add_shown(
        shown, "proposals in pictures and subtitles (default: as many as there are true actions, from 10 to 30)"
    )

    running = parser.add_argument_group("running")
    running.add_argument(
        "--batch-size", type=int, default=InferOptions.batch_size, metavar="N", help="windows per batch"
    )
    running.add_argument(
        "--workers",
        type=int,
        default=InferOptions.workers,
        metavar="N",
        help="processes that read features or videos; with --ray, that compute",
    )
    running.add_argument(
        "--trace", metavar="FILE.json", help="write the stages as a trace for chrome://tracing or Perfetto"
    )
    result_flags.add_writing(running)
    shard_flags.add_arguments(parser)
    return parser


def parse(argv: list[str]) -> InferOptions:
    """Parse flags to options. InputError: a flag is missing or out of range."""
    values = vars(build_parser().parse_args(argv))
    videos = tuple(values.pop("videos"))
    if videos and values["features"] is not None:
        raise InputError(f"--features is {values['features']} beside the video {videos[0]}, expected one of the two")
    if videos:
        values["features"] = ", ".join(videos)
    for flag in ("features", "output"):
        if values[flag] is None:
            raise InputError(f"--{flag} is required; see --help, or run without flags for the demo")
    values["refine"] = values["refine"] and tuple(values["refine"])
    network, read = video_flags.take_options(values, values["device"])
    options = InferOptions(
        time=time_flags.take_options(values),
        limits=read_flags.take_limits(values),
        videos=videos,
        network=network,
        read=read,
        **values,
    )
    require_in_bounds(
        options,
        batch_size=1,
        workers=(0, MOST_PROCESSES),
        best=1,
        top_k=1,
        feature_dim=1,
        part_videos=1,
        cpus_per_worker=(1, MOST_PROCESSES),
        gpus_per_worker=0,
    )
    shard_flags.check(options)
    return options


def _chosen(options: InferOptions) -> Callable[[InferOptions], InferReport]:
    """The function to run: for one process, one of several shards, or all shards on a cluster."""
    if options.ray:
        return infer_ray
    return infer_shard if options.shard else infer


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        from .cli.demo import run_demo

        return run_demo(Path("bcnet_demo"))
    options = parse(argv)
    if options.refine:
        reports = infer_and_refine(options)
    else:
        reports = [_chosen(options)(options)]
    for report in reports:
        print(report.summary())
        if options.profile and report.profile is not None:
            print(report.profile.table())
        for note in report.notes:
            print(f"note: {shown(note)}", file=sys.stderr)
        for failure in report.failures:
            print(failure_line(failure.video, failure.reason), file=sys.stderr)
    if page := make_page(options, reports[0].curves, options.boundaries, reports[0].video_files):
        for note in page.notes:
            print(f"note: {shown(note)}", file=sys.stderr)
        print(page.summary())
    return 1 if any(report.failures for report in reports) else 0


if __name__ == "__main__":
    run(main)
