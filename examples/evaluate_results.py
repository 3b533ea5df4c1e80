"""Evaluate a result file of any system: AR@AN and AUC of proposals, mAP of detections.

The example writes a small annotation file and a small submission; yours take their place.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.evaluation import average_recall, mean_average_precision, read_results

TRUTH = {
    "jump": {"subset": "test", "annotations": [{"segment": [2.0, 6.0], "label": "Long jump"}]},
    "throw": {"subset": "test", "annotations": [{"segment": [10.0, 14.0], "label": "Shot put"}]},
}
RESULTS = {
    "jump": [
        {"segment": [2.2, 6.1], "score": 0.9, "label": "Long jump"},
        {"segment": [8.0, 9.0], "score": 0.2, "label": "Long jump"},
    ],
    "throw": [{"segment": [9.0, 14.0], "score": 0.7, "label": "Shot put"}],
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        annotations, submission = Path(folder) / "annotations.json", Path(folder) / "results.json"
        annotations.write_text(json.dumps({"database": TRUTH}))
        submission.write_text(json.dumps({"results": RESULTS}))
        truth, results = read_annotations(annotations, subset="test"), read_results(submission)

    recall = average_recall(truth, results, tiou_thresholds=[0.5, 0.7, 0.9], max_proposals=10)
    print(f"AR@1 {100 * recall.at(1):.1f} %, AR@10 {100 * recall.at(10):.1f} %, AUC {recall.auc:.1f}")

    precision = mean_average_precision(truth, results, tiou_thresholds=[0.5, 0.7, 0.9])
    for tiou, value in zip(precision.tiou_thresholds, precision.average_precision.mean(axis=0), strict=True):
        print(f"mAP at tIoU {tiou}: {100 * value:.1f} %")


if __name__ == "__main__":
    main()
