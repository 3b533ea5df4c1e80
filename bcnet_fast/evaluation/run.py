"""A complete evaluation: from a result file and ground truth to recall, precision and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.annotations import VideoAnnotation, in_subset, read_annotations, strip_activitynet_prefix
from ..data.class_scores import read_class_scores, score_files
from ..errors import InputError
from ..presets import PRESETS
from ..results.fusion import FUSION_RULES, fuse
from ..results.pictures import optional_picture_path
from ..results.reader import Results, read_results
from ..storage.output import require_apart, require_writable, write_json
from ..text import count, shown, some
from .average_recall import AverageRecall, average_recall
from .ground_truth import with_ambiguous, without_duplicates
from .mean_average_precision import MeanAveragePrecision, mean_average_precision
from .recall_curve import ar_curve
from .settings import METRICS, MetricSettings
from .thresholds import parse_tiou, with_own_bits
from .toolkit_precision import toolkit_precision

# Treatment of the ground truth by protocol.
GROUND_TRUTH = {
    "default": "ground truth unchanged",
    "release": "ground truth unchanged",
    "opentad": "ground truth without duplicates and instances of zero length",
    "th14": "Ambiguous intervals apart, mAP of the THUMOS'14 toolkit",
}
# Default of --top-k: classes per video.
_CLASSES = {"thumos14": 2, "activitynet13": 1}


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`. A field has the meaning of the flag of `python -m bcnet_fast.evaluate` of that name."""

    proposals: str
    ground_truth: str
    metric: str  # a key of METRICS
    protocol: str = "default"
    tiou: str | None = None
    subset: str | None = None
    class_scores: str | None = None
    fusion: str = "product"
    top_k: int | None = None
    video_info: str | None = None
    json: str | None = None
    plot: str | None = None
    plot_format: str | None = None

    @property
    def picture(self) -> Path | None:
        """The file of --plot. InputError: --plot or --plot-format cannot be used."""
        return optional_picture_path(self.plot, self.plot_format, "average_recall")


@dataclass(frozen=True)
class Evaluation:
    """Numbers of a result file; `precision` is None if the results have no labels."""

    options: EvaluateOptions
    stated: dict[str, Any]  # files and rules, as --json writes them
    recall: AverageRecall
    precision: MeanAveragePrecision | None
    warnings: list[str]

    @property
    def settings(self) -> MetricSettings:
        return METRICS[self.options.metric]

    def write(self) -> None:
        """Write the files of --json and --plot, if requested."""
        options = self.options
        if options.json:
            write_json(options.json, {**self.stated, **self.numbers(), "warnings": self.warnings}, indent=1)
        if options.picture:
            meaning = GROUND_TRUTH[options.protocol]
            ar_curve(self.recall, options.picture, title=f"{options.metric}, protocol {options.protocol}: {meaning}")

    def table(self) -> str:
        """Numbers in percent, as a text table."""
        recall, precision, stated = self.recall, self.precision, self.stated
        counts = f"{count(recall.videos, 'video')}, {count(recall.instances, 'instance')}"
        protocol_name = f"protocol {stated['protocol']}: {GROUND_TRUTH[stated['protocol']]}"
        where = f"{stated['preset']}, {protocol_name}, {counts}"
        mean_number, left_out = recall.proposals / recall.videos, stated["videos_left_out"]
        lines = [
            f"proposals     {stated['proposals']}: {recall.proposals}, {mean_number:.1f} per video with instances",
            f"ground truth  {stated['ground_truth']}: {stated['subset']}, {counts}",
            *([f"left out      {count(left_out, 'video')} with proposals, of other subsets"] if left_out else []),
            "",
            f"Average recall in % ({where}; class-agnostic)",
            _row("tIoU", _tious(recall.tiou_thresholds), "mean"),
        ]
        for an in self.settings.recall_at:
            cells = [f"{100 * value:.2f}" for value in recall.recall[:, an - 1]]
            lines.append(_row(f"AR@{an}", cells, f"{100 * recall.at(an):.2f}"))
        blank = [""] * len(recall.tiou_thresholds)
        lines.append(_row("AUC", blank, f"{recall.auc:.2f}") + f"  (AN 1 to {self.settings.max_proposals})")
        if mean_number < self.settings.max_proposals:
            lines.append(f"note: {mean_number:.1f} proposals per video: AR does not rise beyond that AN")
        if precision is not None:
            used = f"{count(len(precision.labels), 'class')}, {count(precision.detections, 'detection')}"
            lines += [
                "",
                f"Mean average precision in % ({where}, {used})",
                f"classes from {stated['fusion']}",
                _row("tIoU", _tious(precision.tiou_thresholds), "mean"),
                _row("mAP", [f"{100 * value:.2f}" for value in precision.mean], f"{100 * precision.average:.2f}"),
            ]
        return "\n".join(map(shown, lines))

    def numbers(self) -> dict[str, Any]:
        """All numbers but AUC as fractions from 0 to 1; thresholds are rounded, 0.9 for 0.8999999999999999."""
        recall, precision = self.recall, self.precision
        numbers: dict[str, Any] = {
            "average_recall": {
                "tiou_thresholds": recall.tiou_thresholds.round(4).tolist(),
                "max_proposals": self.settings.max_proposals,
                "videos": recall.videos,
                "instances": recall.instances,
                "proposals": recall.proposals,
                **{f"AR@{an}": recall.at(an) for an in self.settings.recall_at},
                "recall_at": {str(an): recall.recall[:, an - 1].tolist() for an in self.settings.recall_at},
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


def evaluate(options: EvaluateOptions) -> Evaluation:
    """Compare a result file with the ground truth. InputError: a file or option cannot be used."""
    metrics, strip_prefix = _metrics(options), PRESETS["bcnet"][options.metric].data.strip_prefix
    for path in (options.json, options.picture):
        if path:
            require_writable(path)
    inputs = {name: getattr(options, name) for name in ("proposals", "ground_truth", "video_info")}
    outputs = {"--json": options.json, "--plot": options.picture}
    require_apart(outputs, class_scores=score_files(options.class_scores), **inputs)

    subset, ground_truth, elsewhere, everything = _ground_truth(options, metrics, strip_prefix)
    proposals = _proposals(options, strip_prefix, ground_truth, everything)
    proposals, left_out = proposals.without(elsewhere)
    detections, fusion = _detections(options, strip_prefix, proposals, ground_truth)
    recall = average_recall(
        ground_truth, proposals, tiou_thresholds=metrics.recall_thresholds, max_proposals=metrics.max_proposals
    )
    precision = None
    if detections is not None:
        rule = toolkit_precision if options.protocol == "th14" else mean_average_precision
        precision = rule(ground_truth, detections, tiou_thresholds=metrics.map_thresholds)
    stated = {
        "preset": options.metric,  # the name of this key is older than that of the flag
        "protocol": options.protocol,
        "proposals": options.proposals,
        "ground_truth": options.ground_truth,
        "subset": subset or "all videos",
        "videos_left_out": left_out,
        "class_scores": options.class_scores,
        "fusion": fusion,
    }
    warnings = _warnings(recall, precision, proposals, detections)
    if options.protocol == "th14" and not any(video.ambiguous for video in ground_truth.values()):
        warnings.append(f"{options.ground_truth} has no Ambiguous interval, which the THUMOS14 annotation CSV has")
    return Evaluation(options, stated, recall, precision, warnings)


def _metrics(options: EvaluateOptions) -> MetricSettings:
    """The numbers of --metric, with the thresholds of --tiou. InputError: --tiou cannot be used."""
    metrics = METRICS[options.metric]
    if options.tiou is None:
        return metrics
    tiou = parse_tiou(options.tiou)
    # The toolkit compares with the decimal numbers of papers.
    map_tiou = tiou if options.protocol == "th14" else with_own_bits(tiou, metrics.map_thresholds)
    return replace(metrics, recall_thresholds=with_own_bits(tiou, metrics.recall_thresholds), map_thresholds=map_tiou)


def _ground_truth(
    options: EvaluateOptions, protocol: MetricSettings, strip_prefix: bool
) -> tuple[str | None, dict[str, VideoAnnotation], set[str], dict[str, VideoAnnotation]]:
    """Subset, its videos, the ids of videos that belong to other subsets, and all videos."""
    everything = read_annotations(options.ground_truth, strip_prefix=strip_prefix)
    subset = options.subset
    names = {video.subset.lower(): video.subset for video in everything.values() if video.subset}
    if subset is None and names:
        subset = protocol.subset
        if len(names) == 1 and subset not in names:
            (subset,) = names.values()
    try:
        ground_truth = everything if subset is None else in_subset(everything, subset, options.ground_truth)
    except InputError as error:
        raise InputError(f"{error}; choose one with --subset") from error
    elsewhere = {name for name in everything.keys() - ground_truth.keys() if everything[name].subset}
    if options.protocol == "opentad":
        ground_truth = without_duplicates(ground_truth)
    if options.protocol == "th14":
        ground_truth = with_ambiguous(ground_truth)
    if not any(video.instances for video in ground_truth.values()):
        raise InputError(f"{options.ground_truth}: no annotated instance in {count(len(ground_truth), 'video')}")
    return subset, ground_truth, elsewhere, everything


def _proposals(
    options: EvaluateOptions,
    strip_prefix: bool,
    ground_truth: Mapping[str, VideoAnnotation],
    everything: Mapping[str, VideoAnnotation],
) -> Results:
    stated = read_annotations(options.video_info, strip_prefix=strip_prefix) if options.video_info else {}
    proposals = read_results(options.proposals, {**everything, **stated})
    if strip_prefix:
        names = strip_activitynet_prefix(dict.fromkeys(proposals.video_names), options.proposals)
        proposals = replace(proposals, video_names=tuple(names))
    if not len(proposals.scores):
        raise InputError(f"{options.proposals}: no proposal in {count(len(proposals.video_names), 'video')}")
    _require_common("proposals", options.proposals, proposals.video_names, options.ground_truth, ground_truth)
    return proposals


def _detections(
    options: EvaluateOptions, strip_prefix: bool, proposals: Results, ground_truth: Mapping[str, VideoAnnotation]
) -> tuple[Results | None, str | None]:
    """Labelled results and the source of their labels in words, or None and None."""
    if not options.class_scores:
        if proposals.label is None:
            return None, None
        return proposals, "the labels of the file"
    if proposals.label is not None:
        raise InputError(f"{options.proposals} has labels; --class-scores requires proposals without labels")
    top_k = _CLASSES[options.metric] if options.top_k is None else options.top_k
    own_classes = options.fusion in ("bcnet", "gtad")
    if top_k < 1 or (own_classes and options.top_k is not None):
        expected = f"no value, because --fusion {options.fusion} uses 2 classes" if own_classes else "at least 1"
        raise InputError(f"--top-k is {options.top_k}, expected {expected}")
    class_scores = read_class_scores(options.class_scores, strip_prefix=strip_prefix)
    _require_common("class scores", options.class_scores, class_scores.videos, options.proposals, proposals.video_names)
    videos = read_annotations(options.video_info, strip_prefix=strip_prefix) if options.video_info else ground_truth
    try:
        detections = fuse(proposals, class_scores, options.fusion, top_k=top_k, videos=videos)
    except ValueError as error:
        raise InputError(f"{options.proposals} with {options.class_scores}: {error}") from error
    number = "" if own_classes else f", top {top_k}"
    return detections, f"{options.class_scores} by the rule {options.fusion}{number}: {FUSION_RULES[options.fusion]}"


def _require_common(what: str, path: str, names: Iterable[str], other_path: str, others: Iterable[str]) -> None:
    names, others = list(names), list(others)
    if not set(names) & set(others):
        raise InputError(
            f"{path}: {what} for {names[0]!r} and others, expected some of the videos in {other_path}, "
            f"such as {others[0]!r}"
        )


def _warnings(
    recall: AverageRecall, precision: MeanAveragePrecision | None, proposals: Results, detections: Results | None
) -> list[str]:
    warnings = list(proposals.notes)
    if recall.videos_without_proposals:
        videos = _some(recall.videos_without_proposals, "video")
        warnings.append(f"{videos} without proposals: their instances count as missed")
    if recall.videos_without_ground_truth:
        videos = _some(recall.videos_without_ground_truth, "video")
        warnings.append(f"{videos} with proposals but without ground truth: they count in AN and never match")
    if recall.tied_proposals:
        warnings.append(
            f"{recall.tied_proposals} of {recall.proposals} proposals have the same score as another of their video"
        )
    if precision is not None and detections is not None:
        detected = set(np.unique(detections.video))
        unlabelled = [proposals.video_names[video] for video in np.unique(proposals.video) if video not in detected]
        if unlabelled:
            warnings.append(f"{_some(unlabelled, 'video')} without class scores: no detections")
        if precision.unknown_labels:
            unknown, labels = sum(precision.unknown_labels.values()), _some(list(precision.unknown_labels), "label")
            warnings.append(f"{count(unknown, 'detection')} ignored: {labels} not in the ground truth")
        if precision.tied_detections:
            tied = f"{precision.tied_detections} of {precision.detections}"
            warnings.append(f"{tied} detections have the same score as another of their class")
    return warnings


def _some(names: Sequence[str], what: str) -> str:
    return f"{count(len(names), what)} ({some(names)})"


def _tious(thresholds: np.ndarray) -> list[str]:
    return [f"{tiou:.2f}" if abs(round(tiou, 2) - tiou) < 1e-9 else f"{tiou:.4f}" for tiou in thresholds.tolist()]


def _row(name: str, cells: list[str], last: str) -> str:
    return f"{name:<8}" + "".join(f"{cell:>7}" for cell in cells) + f"  |{last:>7}"
