"""Proposals from features: one command, no annotations needed.

    python -m bcnet_fast.infer
        runs the bundled demo (synthetic videos, a small trained network) and shows what comes out

    python -m bcnet_fast.infer --checkpoint FILE.safetensors --features PATH --fps 30 --output FILE.json
        writes ActivityNet submission JSON for every video of an archive: a folder of .npy/.npz/.csv/.pt files, one such
        file, an HDF5 file, or the THUMOS14 two-stream folder

Exit code: 0 all done; 1 some videos could not be used (listed at the end, the others are written); 2 bad input.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import __version__
from .cli import time_flags
from .cli.parser import Parser, run
from .config import Config
from .data.annotations import VideoAnnotation, read_annotations
from .data.class_scores import ClassScores, read_class_scores
from .data.features import FeatureArchive, open_features
from .data.timing import TimeResolver
from .errors import InputError
from .inference.model import PRECISIONS, Model, load
from .inference.predict import Failure, VideoProposals, predict
from .ops.backends import BACKENDS, choose, use_backend
from .presets import DATA_SETS, PRESETS
from .profiling import record, stage
from .progress import progress
from .protocols import NAMES, protocol_for
from .results.fusion import fuse
from .results.reader import Results
from .results.subtitles import write_subtitles
from .results.writer import ResultWriter, entries
from .storage.checkpoint import read_config
from .storage.files import require_writable


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bcnet_fast.infer", description=__doc__)
    parser.add_argument("--features", metavar="PATH", help="features of the videos; docs/formats.md has the layouts")
    parser.add_argument("--output", metavar="FILE.json", help="submission JSON to write")

    network = parser.add_argument_group("network")
    network.add_argument("--checkpoint", metavar="FILE", help="weights (.safetensors); this or --preset is needed")
    network.add_argument("--model", choices=list(PRESETS), help="the system (default: the checkpoint's, or bcnet)")
    network.add_argument("--preset", choices=DATA_SETS, help="sizes, windows and thresholds, with random weights")
    network.add_argument(
        "--feature-dim", type=int, metavar="C", help="channels, for random weights (else the preset's)"
    )
    network.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="arithmetic of the network")
    network.add_argument("--device", default="auto", help="auto, cpu or cuda; auto takes a GPU where there is one")
    network.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="kernels of the network and of the operators after it"
    )
    network.add_argument(
        "--protocol", choices=NAMES, default="default", help="the system's own release: docs/protocols.md"
    )

    time_flags.add_arguments(parser)

    labels = parser.add_argument_group("labels (detections instead of proposals)")
    labels.add_argument("--labels", metavar="FILE", help="video-level class scores; docs/formats.md has the layouts")
    labels.add_argument(
        "--fusion", choices=["product", "sqrt"], default="product", help="confidence x class score, or its square root"
    )
    labels.add_argument("--top-k", type=int, default=1, metavar="K", help="best classes that a video's proposals get")

    shown = parser.add_argument_group("to look at")
    shown.add_argument("--plot", metavar="DIR", help="write a timeline picture of each video")
    shown.add_argument("--srt", metavar="DIR", help="write subtitles of each video")
    shown.add_argument("--best", type=int, default=10, metavar="N", help="proposals shown in pictures and subtitles")
    shown.add_argument("--ground-truth", metavar="FILE", help="annotations, drawn into the pictures")

    running = parser.add_argument_group("running")
    running.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows in a batch")
    running.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read features")
    running.add_argument("--profile", action="store_true", help="print where the time goes, by stage")
    running.add_argument("--trace", metavar="FILE.json", help="write the stages for chrome://tracing or Perfetto")
    running.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same settings")
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        from .cli.demo import run_demo

        return run_demo(Path("bcnet_demo"))
    args = build_parser().parse_args(argv)
    for flag in ("features", "output"):
        if getattr(args, flag) is None:
            raise InputError(f"--{flag}: expected it, found none; run without any flag for the demo, or with --help")
    for flag, low in (("batch_size", 1), ("workers", 0), ("best", 1), ("top_k", 1), ("feature_dim", 1)):
        if getattr(args, flag) is not None and getattr(args, flag) < low:
            raise InputError(f"--{flag.replace('_', '-')}: expected at least {low}, found {getattr(args, flag)}")
    return infer(args)


def infer(args: argparse.Namespace) -> int:
    """The whole run for parsed arguments; returns the exit code."""
    started = time.perf_counter()
    config = resolve_config(args)
    archive = open_features(
        args.features,
        feature_dim=config.model.feature_dim,
        every=args.every,
        strip_prefix=config.data.strip_prefix,
    )
    times = resolve_times(args, config, archive)
    truth, class_scores = read_annotations_and_scores(args, config, archive)
    for folder in filter(None, (args.plot, args.srt)):
        require_writable(Path(folder) / "picture.png")
    if args.trace:
        require_writable(args.trace)
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load(args.checkpoint or config, device=args.device, precision=args.precision, backend=args.backend)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    with use_backend(args.backend):
        # Raises now, not after the network has run.
        choose("match_proposals", model.device)
        choose("soft_nms", torch.device("cpu"))

    with contextlib.closing(ResultWriter(args.output, run_settings(args, config), resume=args.resume)) as writer:
        for gone in writer.done.keys() - archive.ids:
            del writer.done[gone]
        videos = [video for video in archive.ids if video not in writer.done]
        if args.resume:
            print(f"resumed: {len(writer.done)} of {len(archive.ids)} videos are done already")
        try:
            with record() if args.profile or args.trace else contextlib.nullcontext() as profile:
                failures, windows = _run(args, model, archive, videos, times, truth, class_scores, writer)
        except KeyboardInterrupt:
            print(f"{writer.partial} keeps {len(writer.done)} finished videos; --resume goes on", file=sys.stderr)
            raise
        if not writer.done:
            writer.close(discard=True)
            others = f" (and {len(failures) - 1} more of {len(failures)} videos failed)" if len(failures) > 1 else ""
            raise InputError(f"{failures[0].reason}{others}")
        details = run_details(args, config)
        count = writer.finish("THUMOS14" if config.preset == "thumos14" else "VERSION 1.3", details)

    seconds = time.perf_counter() - started
    print(
        f"{args.output}: {len(writer.done)} videos, {windows} windows, {count} proposals; "
        f"{seconds:.1f} s, {windows / seconds:.2f} windows/s with loading; {details}"
    )
    if args.profile:
        print(profile.table())
    if args.trace:
        profile.write_trace(args.trace)
    for failure in failures:
        print(f"failed: {failure.video}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0


def resolve_times(args: argparse.Namespace, config: Config, archive: FeatureArchive) -> TimeResolver:
    """When snippets happen; InputError before any work when that cannot be known, a note when it is only assumed."""
    times = time_flags.time_resolver(args, config, archive)
    if args.times:
        times.require_match(archive.ids, args.features, args.times)
        unused = len(times.table) - len(times.matched(archive.ids))
        if unused:
            print(f"note: {args.times} has {unused} videos that have no features here", file=sys.stderr)
    elif not config.data.rescale and args.fps is None:
        raise InputError("--fps: expected the videos' frames per second, found none; give --fps F or --times FILE")
    if not config.data.rescale and any(times.facts(video).row_stride is None for video in archive.ids):
        print(
            f"note: nothing states --stride; rows are taken to be {config.data.stride:g} video frames apart, "
            f"as {config.preset} has it",
            file=sys.stderr,
        )
    return times


def read_annotations_and_scores(
    args: argparse.Namespace, config: Config, archive: FeatureArchive
) -> tuple[dict[str, VideoAnnotation], ClassScores | None]:
    """The files of --ground-truth and --labels. InputError when one knows none of the videos."""
    strip_prefix = config.data.strip_prefix
    truth = read_annotations(args.ground_truth, strip_prefix=strip_prefix) if args.ground_truth else {}
    class_scores = read_class_scores(args.labels, strip_prefix=strip_prefix) if args.labels else None
    for path, known in ((args.ground_truth, truth), (args.labels, class_scores.videos if class_scores else ())):
        if path and not set(archive.ids).intersection(known):
            raise InputError(
                f"{path}: expected some of the {len(archive.ids)} videos of {args.features}, "
                f"such as {archive.ids[0]!r}, found {len(known)} others"
            )
    return truth, class_scores


def resolve_config(args: argparse.Namespace) -> Config:
    """The configuration of the run: the checkpoint's own, or that of the preset for random weights."""
    if args.checkpoint:
        config = read_config(args.checkpoint)
        stored = {"model": config.model.name, "preset": config.preset, "feature_dim": config.model.feature_dim}
        for flag, found in stored.items():
            expected = getattr(args, flag)
            if expected is not None and expected != found:
                raise InputError(f"{args.checkpoint}: expected --{flag.replace('_', '-')} {expected}, found {found}")
        return config
    if not args.preset:
        raise InputError("--checkpoint: expected a file, found none; for random weights give --preset")
    print(
        "warning: no --checkpoint: the weights are random (seed 0), and so is the order of the proposals",
        file=sys.stderr,
    )
    config = PRESETS[args.model or "bcnet"][args.preset]
    width = config.model.feature_dim if args.feature_dim is None else args.feature_dim
    return dataclasses.replace(config, model=dataclasses.replace(config.model, feature_dim=width))


def run_settings(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """What decides the results, for telling whether an interrupted run can be resumed."""
    flags = ("features", "every", "fps", "stride", "offset", "duration", "fusion", "top_k", "precision", "protocol")
    shown = ("plot", "srt", "best")
    contents = {name: _sha256(getattr(args, name)) for name in ("checkpoint", "times", "labels")}
    settings = {name: getattr(args, name) for name in (*flags, *shown)}
    return {"version": __version__, **contents, **settings, **config.to_dict()}


def _sha256(path: str | None) -> str | None:
    if path is None:
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def run_details(args: argparse.Namespace, config: Config) -> str:
    """One line on how the results came about, for the summary and the file."""
    weights = f"checkpoint {Path(args.checkpoint).name}" if args.checkpoint else "random weights"
    flags = [f"{name} {getattr(args, name):g}" for name in ("fps", "stride", "offset") if getattr(args, name)]
    if args.times:
        flags.append(f"times {Path(args.times).name}")
    parts = [f"bcnet_fast {__version__}", config.model.name, f"preset {config.preset}", weights]
    return ", ".join([*parts, args.precision, f"protocol {args.protocol}", *flags])


def _run(
    args: argparse.Namespace,
    model: Model,
    archive: FeatureArchive,
    videos: list[str],
    times: TimeResolver,
    truth: dict[str, VideoAnnotation],
    class_scores: ClassScores | None,
    writer: ResultWriter,
) -> tuple[list[Failure], int]:
    """Predict and store all videos; returns what failed and the number of windows."""
    failures: list[Failure] = []
    windows = 0
    found = predict(
        model,
        archive,
        videos,
        times,
        protocol_for(args.protocol, model.config),
        batch_size=args.batch_size,
        workers=args.workers,
    )
    for result in progress(found, total=len(videos), what="videos"):
        if isinstance(result, Failure):
            failures.append(result)
            continue
        if class_scores is not None and result.video not in class_scores:
            reason = f"{args.labels}: expected class scores of video {result.video!r}, found none"
            failures.append(Failure(result.video, reason))
            continue
        proposals = _labelled(result, class_scores, args)
        # Shown first: a video that is stored counts as finished when the run is resumed.
        with stage("pictures and subtitles"):
            _show(result, proposals, truth.get(result.video), args)
        with stage("writing"):
            writer.add(result.video, proposals)
        windows += result.windows
    return failures, windows


def _labelled(
    result: VideoProposals, class_scores: ClassScores | None, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A video's proposals, or its detections where class scores are given, best first."""
    if class_scores is None:
        return entries(result.segments, result.scores)
    columns = Results.from_dict({result.video: np.column_stack([result.segments, result.scores])})
    detections = fuse(columns, class_scores, args.fusion, top_k=args.top_k).to_dict()[result.video]
    return sorted(detections, key=lambda entry: -entry["score"])


def _show(
    result: VideoProposals,
    proposals: list[dict[str, Any]],
    annotation: VideoAnnotation | None,
    args: argparse.Namespace,
) -> None:
    name = result.video.replace("/", "_")
    if args.srt:
        write_subtitles(Path(args.srt) / f"{name}.srt", proposals[: args.best])
    if args.plot:
        from .results.timeline import timeline

        timeline(
            Path(args.plot) / f"{name}.png",
            video_id=result.video,
            duration_s=result.duration,
            boundary=(result.boundary_times, result.boundary_start, result.boundary_end),
            proposals=np.column_stack([result.segments, result.scores])[: args.best],
            ground_truth=annotation.instances if annotation else None,
        )


if __name__ == "__main__":
    run(main)
