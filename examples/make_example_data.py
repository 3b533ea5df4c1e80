"""Write the data that the documentation works with: synthetic videos as features, annotations and class scores.

    python examples/make_example_data.py          writes example/

`example/features/<video>.npy` (float32 [T, 32], a row every 8 frames of 25 a second), `example/annotations.json` with
the subsets `training` and `validation`, and `example/class_scores.csv`, scores as from a classifier of whole videos.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np

from bcnet_fast.data.synthetic import make_videos, write_dataset

FOLDER = Path("example")


def main() -> None:
    videos = itertools.chain(
        make_videos(40, seed=1, subset="training"),
        make_videos(20, seed=1, subset="validation"),
    )
    features, annotations = write_dataset(FOLDER, videos)

    database = json.loads(annotations.read_text(encoding="utf-8"))["database"]
    labels = sorted({instance["label"] for video in database.values() for instance in video["annotations"]})
    rng = np.random.default_rng(1)
    with open(FOLDER / "class_scores.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["video", "label", "score"])
        for name, video in database.items():
            counts = Counter(instance["label"] for instance in video["annotations"])
            logits = np.array([counts[label] / counts.total() for label in labels]) * 4 + rng.normal(size=len(labels))
            scores = np.exp(logits) / np.exp(logits).sum()
            table.writerows((name, label, f"{score:.4f}") for label, score in zip(labels, scores, strict=True))
    print(f"written: {features}, {annotations} and {FOLDER / 'class_scores.csv'}; {len(database)} videos")


if __name__ == "__main__":
    main()
