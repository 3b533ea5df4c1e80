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

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .cli.parser import Parser, run
from .data.annotations import VideoAnnotation, in_subset, read_annotations, strip_activitynet_prefix
from .data.class_scores import read_class_scores
from .errors import InputError
from .evaluation import (
    METRICS,
    AverageRecall,
    MeanAveragePrecision,
    MetricSettings,
    average_recall,
    mean_average_precision,
    without_duplicates,
)
from .evaluation.recall_curve import ar_curve
from .presets import PRESETS
from .results.figure import require_picture_name
from .results.fusion import FUSION_RULES, fuse
from .results.reader import Results, read_results
from .storage.files import require_writable, write_json

_GROUND_TRUTH = {
    "default": "ground truth as it stands",
    "release": "ground truth as it stands",
    "opentad": "ground truth without duplicates and instances of no length",
}
_CLASSES = {"thumos14": 2, "activitynet13": 1}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m bcnet_fast.evaluate", description=__doc__)
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
        choices=list(_GROUND_TRUTH),
        default="default",
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
        default="product",
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


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    protocol, strip_prefix = METRICS[args.preset], PRESETS["bcnet"][args.preset].data.strip_prefix
    for path in (args.json, args.plot):
        if path:
            require_writable(path)
    if args.plot:
        require_picture_name(args.plot)

    subset, ground_truth = _ground_truth(args, protocol, strip_prefix)
    proposals = _proposals(args, strip_prefix, ground_truth)
    detections, fusion = _detections(args, strip_prefix, proposals, ground_truth)
    recall = average_recall(
        ground_truth, proposals, tiou_thresholds=protocol.recall_thresholds, max_proposals=protocol.max_proposals
    )
    precision = None
    if detections is not None:
        precision = mean_average_precision(ground_truth, detections, tiou_thresholds=protocol.map_thresholds)

    warnings = _warnings(recall, precision, proposals, detections)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    stated = {
        "preset": args.preset,
        "protocol": args.protocol,
        "proposals": args.proposals,
        "ground_truth": args.ground_truth,
        "subset": subset or "all videos",
        "class_scores": args.class_scores,
        "fusion": fusion,
    }
    print(_table(stated, recall, precision, protocol))
    if args.json:
        write_json(args.json, {**stated, **_numbers(recall, precision, protocol), "warnings": warnings}, indent=1)
    if args.plot:
        ar_curve(recall, args.plot, title=f"{args.preset}, protocol {args.protocol}: {_GROUND_TRUTH[args.protocol]}")
    return 0


def _ground_truth(
    args: argparse.Namespace, protocol: MetricSettings, strip_prefix: bool
) -> tuple[str | None, dict[str, VideoAnnotation]]:
    ground_truth = read_annotations(args.ground_truth, args.subset, strip_prefix=strip_prefix)
    subset = args.subset
    names = {video.subset.lower(): video.subset for video in ground_truth.values() if video.subset}
    if subset is None and names:
        subset = protocol.subset
        if len(names) == 1 and subset not in names:
            (subset,) = names.values()
        try:
            ground_truth = in_subset(ground_truth, subset, args.ground_truth)
        except InputError as error:
            raise InputError(f"{error} (choose with --subset)") from error
    if args.protocol == "opentad":
        ground_truth = without_duplicates(ground_truth)
    if not any(video.instances for video in ground_truth.values()):
        raise InputError(f"{args.ground_truth}: expected annotated instances, found none in {len(ground_truth)} videos")
    return subset, ground_truth


def _proposals(args: argparse.Namespace, strip_prefix: bool, ground_truth: Mapping[str, VideoAnnotation]) -> Results:
    proposals = read_results(args.proposals)
    if strip_prefix:
        names = strip_activitynet_prefix(dict.fromkeys(proposals.video_names), args.proposals)
        proposals = replace(proposals, video_names=tuple(names))
    if not len(proposals.scores):
        raise InputError(f"{args.proposals}: expected proposals, found none in {len(proposals.video_names)} videos")
    _require_common("proposals", args.proposals, proposals.video_names, args.ground_truth, ground_truth)
    return proposals


def _detections(
    args: argparse.Namespace, strip_prefix: bool, proposals: Results, ground_truth: Mapping[str, VideoAnnotation]
) -> tuple[Results | None, str | None]:
    """Labelled results, if there are any, and in words where their classes come from."""
    if not args.class_scores:
        if proposals.label is None:
            return None, None
        return proposals, "the labels of the file"
    if proposals.label is not None:
        raise InputError(f"--class-scores: expected proposals without labels, found labels in {args.proposals}")
    top_k = _CLASSES[args.preset] if args.top_k is None else args.top_k
    own_classes = args.fusion in ("bcnet", "gtad")
    if top_k < 1 or (own_classes and args.top_k is not None):
        expected = f"no value beside --fusion {args.fusion}, which takes 2" if own_classes else "a number of at least 1"
        raise InputError(f"--top-k: expected {expected}, found {args.top_k}")
    class_scores = read_class_scores(args.class_scores, strip_prefix=strip_prefix)
    _require_common("class scores", args.class_scores, class_scores.videos, args.proposals, proposals.video_names)
    videos = read_annotations(args.video_info, strip_prefix=strip_prefix) if args.video_info else ground_truth
    try:
        detections = fuse(proposals, class_scores, args.fusion, top_k=top_k, videos=videos)
    except ValueError as error:
        raise InputError(f"{args.proposals} with {args.class_scores}: {error}") from error
    number = "" if own_classes else f", top {top_k}"
    return detections, f"{args.class_scores} by the rule {args.fusion}{number}: {FUSION_RULES[args.fusion]}"


def _require_common(what: str, path: str, names: Iterable[str], other_path: str, others: Iterable[str]) -> None:
    names, others = list(names), list(others)
    if not set(names) & set(others):
        raise InputError(
            f"{path}: expected {what} of the videos in {other_path} (such as {others[0]!r}), "
            f"found none of them (but {names[0]!r})"
        )


def _warnings(
    recall: AverageRecall, precision: MeanAveragePrecision | None, proposals: Results, detections: Results | None
) -> list[str]:
    warnings = []
    if recall.videos_without_proposals:
        videos = _some(recall.videos_without_proposals, "video")
        warnings.append(f"{videos} without proposals: their instances count as missed")
    if recall.videos_without_ground_truth:
        videos = _some(recall.videos_without_ground_truth, "video")
        warnings.append(f"{videos} with proposals but without ground truth: counted in AN, never right")
    if recall.tied_proposals:
        warnings.append(f"{recall.tied_proposals} of {recall.proposals} proposals share their score within a video")
    if precision is not None:
        detected = set(np.unique(detections.video))
        unlabelled = [proposals.video_names[video] for video in np.unique(proposals.video) if video not in detected]
        if unlabelled:
            warnings.append(f"{_some(unlabelled, 'video')} without class scores: no detections")
        if precision.unknown_labels:
            count, labels = sum(precision.unknown_labels.values()), _some(list(precision.unknown_labels), "label")
            warnings.append(f"{count} detections set aside: {labels} not in the ground truth")
        if precision.tied_detections:
            tied = f"{precision.tied_detections} of {precision.detections}"
            warnings.append(f"{tied} detections share their score within a class")
    return warnings


def _some(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what}{'s' if len(names) != 1 else ''} ({shown})"


def _table(
    stated: Mapping[str, Any], recall: AverageRecall, precision: MeanAveragePrecision | None, protocol: MetricSettings
) -> str:
    counts = f"{recall.videos} videos, {recall.instances} instances"
    protocol_name = f"protocol {stated['protocol']}: {_GROUND_TRUTH[stated['protocol']]}"
    where = f"{stated['preset']}, {protocol_name}, {counts}"
    mean_number = recall.proposals / recall.videos
    lines = [
        f"proposals     {stated['proposals']}: {recall.proposals}, {mean_number:.1f} for each video with instances",
        f"ground truth  {stated['ground_truth']}: {stated['subset']}, {counts}",
        "",
        f"Average recall in % ({where}; class-agnostic)",
        _row("tIoU", [f"{threshold:.2f}" for threshold in recall.tiou_thresholds], "mean"),
    ]
    for an in protocol.recall_at:
        cells = [f"{100 * value:.2f}" for value in recall.recall[:, an - 1]]
        lines.append(_row(f"AR@{an}", cells, f"{100 * recall.at(an):.2f}"))
    blank = [""] * len(recall.tiou_thresholds)
    lines.append(_row("AUC", blank, f"{recall.auc:.2f}") + f"  (AN 1 to {protocol.max_proposals})")
    if mean_number < protocol.max_proposals:
        lines.append(f"note: {mean_number:.1f} proposals a video: AR beyond that AN does not rise")
    if precision is not None:
        used = f"{len(precision.labels)} classes, {precision.detections} detections"
        lines += [
            "",
            f"Mean average precision in % ({where}, {used})",
            f"classes from {stated['fusion']}",
            _row("tIoU", [f"{threshold:.2f}" for threshold in precision.tiou_thresholds], "mean"),
            _row("mAP", [f"{100 * value:.2f}" for value in precision.mean], f"{100 * precision.average:.2f}"),
        ]
    return "\n".join(lines)


def _row(name: str, cells: list[str], last: str) -> str:
    return f"{name:<8}" + "".join(f"{cell:>7}" for cell in cells) + f"  |{last:>7}"


def _numbers(recall: AverageRecall, precision: MeanAveragePrecision | None, protocol: MetricSettings) -> dict[str, Any]:
    """Every number but AUC as a share from 0 to 1; thresholds as people write them, 0.9 for 0.8999999999999999."""
    numbers: dict[str, Any] = {
        "average_recall": {
            "tiou_thresholds": recall.tiou_thresholds.round(4).tolist(),
            "max_proposals": protocol.max_proposals,
            "videos": recall.videos,
            "instances": recall.instances,
            "proposals": recall.proposals,
            **{f"AR@{an}": recall.at(an) for an in protocol.recall_at},
            "recall_at": {str(an): recall.recall[:, an - 1].tolist() for an in protocol.recall_at},
            "AUC_percent": recall.auc,
            "curve": recall.average_recall.tolist(),
            "proposals_per_video": recall.proposals_per_video.tolist(),
        }
    }
    if precision is not None:
        numbers["mean_average_precision"] = {
            "tiou_thresholds": precision.tiou_thresholds.round(4).tolist(),
            "videos": precision.videos,
            "instances": precision.instances,
            "detections": precision.detections,
            "mAP": precision.mean.tolist(),
            "average_mAP": precision.average,
            "AP_per_class": dict(zip(precision.labels, precision.average_precision.tolist(), strict=True)),
            "unknown_labels": precision.unknown_labels,
        }
    return numbers


if __name__ == "__main__":
    run(main)
