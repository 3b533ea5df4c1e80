"""AR@AN and mAP of this package beside plain loops, on generated result files of the public data sets' sizes.

    python bench/evaluation.py [--json FILE]          two minutes

The loops (bench/support/plain_evaluation.py) go over thresholds, videos and entries as the public evaluators do, which
stop on current NumPy; they have no pandas inside, so they are not slower than those. "mAP th14" is the metric of the
THUMOS'14 toolkit. Both sides get the same parsed results in this process, and a time is reported only when the numbers
agree to 1e-9. CPU seconds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from support.environment import begin
from support.plain_evaluation import plain_precision, plain_recall, plain_toolkit_precision

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.data.annotations import Instance, VideoAnnotation
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import METRICS, average_recall, mean_average_precision, read_results, toolkit_precision
from bcnet_fast.storage.output import write_json


class Case(NamedTuple):
    """Sizes as in the test set of THUMOS14 and the validation set of ActivityNet-1.3."""

    metric: str
    data: str  # whose settings of the metric
    videos: int
    instances: float  # a video, on average
    classes: int
    duration_s: float
    listed: int  # entries a video


CASES = (
    Case("AR@AN", "thumos14", 212, 15.8, 20, 220, 200),
    Case("AR@AN", "thumos14", 212, 15.8, 20, 220, 1000),
    Case("AR@AN", "activitynet13", 4728, 1.54, 200, 117, 100),
    Case("mAP", "thumos14", 212, 15.8, 20, 220, 400),
    Case("mAP th14", "thumos14", 212, 15.8, 20, 220, 400),
    Case("mAP", "activitynet13", 4728, 1.54, 200, 117, 100),
)


def make(case: Case, seed: int = 0) -> tuple[dict[str, VideoAnnotation], dict[str, list[dict[str, Any]]]]:
    """Ground truth, and entries of which a third lies near an instance and the others anywhere."""
    rng = np.random.default_rng(seed)
    truth, results = {}, {}
    for video in range(case.videos):
        count = 1 + rng.poisson(case.instances - 1)
        middle, length = rng.uniform(0, case.duration_s, count), case.duration_s * rng.beta(1, 6, count) + 0.2
        label = rng.integers(case.classes)
        spans = np.column_stack([middle - length / 2, middle + length / 2])
        instances = tuple(Instance(*span, f"class {label}") for span in spans.tolist())
        ambiguous = ((0.1 * case.duration_s, 0.12 * case.duration_s),) if video % 2 else ()
        truth[f"video {video}"] = VideoAnnotation(
            f"video {video}", case.duration_s, instances=instances, ambiguous=ambiguous
        )
        near = spans[rng.integers(count, size=case.listed // 3)]
        near = near + rng.normal(0, 0.15, near.shape) * np.diff(near)
        places = rng.uniform(0, case.duration_s, (case.listed - len(near), 2))
        found = np.sort(np.concatenate([near, places]))
        found[:, 1] += 0.1
        labels = np.where(rng.random(len(found)) < 0.7, label, rng.integers(case.classes, size=len(found)))
        results[f"video {video}"] = [
            {"segment": span, "score": score, "label": f"class {of}"}
            for span, score, of in zip(found.tolist(), rng.random(len(found)).tolist(), labels, strict=True)
        ]
    return truth, results


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    value = function()
    return time.process_time() - began, value


def measure(case: Case, file: Path, repeats: int) -> dict[str, Any]:
    """Seconds of both sides; InputError where their numbers differ by more than 1e-9."""
    settings = METRICS[case.data]
    truth, entries = make(case)
    write_json(file, {"results": entries})
    read_s, results = cpu_seconds(lambda: read_results(file))

    by_rule, by_loops = mean_average_precision, plain_precision
    if case.metric == "mAP th14":
        by_rule, by_loops = toolkit_precision, plain_toolkit_precision

    def recall() -> np.ndarray:
        limits = {"tiou_thresholds": settings.recall_thresholds, "max_proposals": settings.max_proposals}
        return average_recall(truth, results, **limits).average_recall

    def precision() -> np.ndarray:
        found = by_rule(truth, results, tiou_thresholds=settings.map_thresholds)
        return found.average_precision[np.argsort(found.labels)]

    def loop_recall() -> np.ndarray:
        return plain_recall(truth, entries, settings.recall_thresholds, settings.max_proposals, settings.max_proposals)

    def loop_precision() -> np.ndarray:  # by label, in their order
        return np.array(list(by_loops(truth, entries, settings.map_thresholds).values()))

    ours, loops = (recall, loop_recall) if case.metric == "AR@AN" else (precision, loop_precision)
    loop_s, expected = cpu_seconds(loops)
    runs = [cpu_seconds(ours) for _ in range(repeats)]
    difference = float(np.abs(runs[0][1] - expected).max())
    if not difference <= 1e-9:
        raise InputError(f"{case.metric}, {case.data}: the loops give other numbers, by up to {difference:.3g}")
    evaluate_s = float(np.median([seconds for seconds, _ in runs]))
    return {
        **case._asdict(),
        "entries": case.videos * case.listed,
        "loops_s": loop_s,
        "read_s": read_s,
        "evaluate_s": evaluate_s,
        "speedup": loop_s / evaluate_s,
        "difference": difference,
    }


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs, of which the median is shown")
    parser.add_argument("--json", metavar="FILE", help="write the rows")
    args = parser.parse_args(argv)
    record = begin(1, [args.json]) | {"numpy": np.__version__}
    print("CPU seconds")
    print(f"{'metric, data':<24}{'entries':>9}{'loops':>9}{'ours':>9}{'x':>7}{'read file':>11}{'difference':>12}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            row = measure(case, Path(folder, "results.json"), args.repeats)
            rows.append(row)
            print(
                f"{f'{case.metric}, {case.data}':<24}{row['entries']:>9}{row['loops_s']:>9.2f}{row['evaluate_s']:>9.3f}"
                f"{row['speedup']:>7.0f}{row['read_s']:>11.2f}{row['difference']:>12.1e}",
                flush=True,
            )
    if args.json:
        write_json(args.json, {"environment": record, "rows": rows}, indent=1)
    return 0


if __name__ == "__main__":
    run(main)
