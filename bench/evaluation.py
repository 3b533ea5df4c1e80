"""CPU seconds of AR@AN, AUC and mAP beside those of the public evaluators, on the same files.

    python bench/evaluation.py            needs ../shared, the folder of real annotations beside the checkout

The public seconds are those that the reference figures note: NumPy 1.23 on another machine, one process, where this
script measures its own on the machine at hand. The public code cannot run here: it stops on current NumPy. The
ActivityNet and dense THUMOS14 files are generated first (about a minute). Both sides read the same plain JSON, and a
time is reported only when the metric equals the public one to 1e-9.
"""

from __future__ import annotations

import gzip
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from support.environment import environment

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.errors import InputError
from bcnet_fast.evaluation import METRICS, average_recall, mean_average_precision, read_results
from bcnet_fast.storage.files import read_json, require_writable, write_json

ROOT = Path(__file__).resolve().parent.parent

THUMOS_TRUTH, ACTIVITYNET_TRUTH = "thumos_anno_eval.json", "anet13_val_gt.json"


class Case(NamedTuple):
    key: str  # in the reference figures
    preset: str
    results: str  # file name
    truth: str  # file name


CASES = (
    Case("AR_thumos", "thumos14", "thumos.json", THUMOS_TRUTH),
    Case("AR_thumos_dense", "thumos14", "thumos_dense.json", THUMOS_TRUTH),
    Case("AR_anet", "activitynet13", "anet.json", ACTIVITYNET_TRUTH),
    Case("AR_anet_uneven", "activitynet13", "anet_uneven.json", ACTIVITYNET_TRUTH),
    Case("mAP_thumos_bcnet_rule", "thumos14", "thumos_det_bcnet.json", THUMOS_TRUTH),
    Case("mAP_thumos_gtad_rule", "thumos14", "thumos_det_gtad.json", "gtad_thumos_gt.json"),
    Case("mAP_anet", "activitynet13", "anet_det.json", ACTIVITYNET_TRUTH),
)


def make_inputs(reference: Path, annotations: Path, folder: Path, seed: int) -> None:
    """Write every result file of CASES as plain JSON."""
    generator = runpy.run_path(str(reference / "gen_synth.py"))
    made = {}
    for kind in ("thumos", "thumos_dense", "anet", "anet_uneven"):
        print(f"generating {kind}", file=sys.stderr)
        made[kind] = generator["make"](kind, seed, str(annotations))
        generator["dump"](made[kind], str(folder / f"{kind}.json"))
    labels = generator["anet_labels"](seed, str(annotations))
    generator["dump"](generator["anet_detections"](made["anet"], labels), str(folder / "anet_det.json"))
    for rule in ("bcnet", "gtad"):
        packed = (reference / "results" / f"thumos_det_{rule}_{seed}.json.gz").read_bytes()
        (folder / f"thumos_det_{rule}.json").write_bytes(gzip.decompress(packed))


def timed(case: Case, results: Path, truth: Path, expected: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds to load and to evaluate, and the largest difference from the public numbers."""
    protocol = METRICS[case.preset]
    began = time.process_time()
    ground_truth, found = read_annotations(truth, protocol.subset), read_results(results)
    loaded = time.process_time()
    if case.key.startswith("AR"):
        recall = average_recall(
            ground_truth, found, tiou_thresholds=protocol.recall_thresholds, max_proposals=protocol.max_proposals
        )
        ours, public = recall.average_recall, expected["avg_recall_curve"]
    else:
        ours = mean_average_precision(ground_truth, found, tiou_thresholds=protocol.map_thresholds).mean
        public = list(expected["mAP"].values())
    done = time.process_time()
    return loaded - began, done - loaded, float(np.abs(ours - np.array(public)).max())


def measure(reference: dict[str, Any], folder: Path, annotations: Path, repeats: int) -> Iterator[dict[str, Any]]:
    for case in CASES:
        expected = reference[case.key]
        runs = [timed(case, folder / case.results, annotations / case.truth, expected) for _ in range(repeats)]
        load_s, evaluate_s, error = np.median(runs, axis=0)
        if error > 1e-9:
            raise InputError(f"{case.key}: expected the public numbers to 1e-9, found a difference of {error:.3g}")
        public = expected["cpu_seconds"]
        yield {
            "metric": case.key,
            "entries": expected.get("n_proposals", expected.get("n_predictions")),
            "public_load_s": public["load"],
            "public_evaluate_s": public["evaluate"],
            "load_s": load_s,
            "evaluate_s": evaluate_s,
            "speedup": public["evaluate"] / evaluate_s,
            "speedup_with_load": (public["load"] + public["evaluate"]) / (load_s + evaluate_s),
            "difference": error,
        }


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--shared", metavar="DIR", type=Path, default=ROOT.parent / "shared", help="the folder of data")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs, of which the median is shown")
    parser.add_argument("--json", metavar="FILE", help="write the rows")
    args = parser.parse_args(argv)
    if args.json:
        require_writable(args.json)
    folder, annotations = args.shared / "golden" / "evaluation", args.shared / "data" / "annotations"
    reference = read_json(folder / "golden.json", "the reference figures")
    record = environment()
    print(f"{record['device']}, Python {record['python']}, NumPy {np.__version__}, {record['date']}")
    print("CPU seconds; public: NumPy 1.23 on another machine; x: public / ours, evaluation alone and with loading")
    print(f"{'':<30}{'public':>18}{'ours':>18}")
    print(
        f"{'metric':<22}{'entries':>8}{'load':>9}{'evaluate':>9}{'load':>9}{'evaluate':>9}{'x':>7}{'x with load':>13}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as made:
        make_inputs(folder, annotations, Path(made), reference["meta"]["seed"])
        for row in measure(reference, Path(made), annotations, args.repeats):
            seconds = "".join(
                f"{row[name]:>9.2f}" for name in ("public_load_s", "public_evaluate_s", "load_s", "evaluate_s")
            )
            speedups = f"{row['speedup']:>7.0f}{row['speedup_with_load']:>13.0f}"
            print(f"{row['metric']:<22}{row['entries']:>8}{seconds}{speedups}", flush=True)
            rows.append(row)
    if args.json:
        write_json(args.json, {"environment": {**record, "numpy": np.__version__}, "rows": rows}, indent=1)
    return 0


if __name__ == "__main__":
    run(main)
