"""How much each switch of a protocol changes AR and mAP, on unseen synthetic videos with the bundled network.

Prints the table of docs/protocols.md. For mAP every proposal gets the label that most instances of its video have,
as a perfect video classifier would give it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from importlib import resources

import numpy as np

from bcnet_fast.cli.parser import Parser, run
from bcnet_fast.data.features import open_features
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.data.timing import TimeResolver
from bcnet_fast.evaluation import average_recall, mean_average_precision
from bcnet_fast.inference.model import load
from bcnet_fast.inference.predict import predict
from bcnet_fast.protocols import DEFAULT, RELEASES
from bcnet_fast.results.writer import entries

# Switches of labels and losses act in training only.
SWITCHES = (
    "skip_short_tail",
    "score_padding",
    "clamp_boundaries",
    "drop_last",
    "decay_twice",
    "round_output",
    "keep_outside",
)
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--videos", type=int, default=100, help="number of videos")
    parser.add_argument("--seed", type=int, default=11, help="of the videos")
    args = parser.parse_args(argv)
    model = load(str(resources.files("bcnet_fast") / "assets" / "demo.safetensors"), device="cpu")
    videos = list(make_videos(args.videos, seed=args.seed, subset="validation"))
    truth = {video.annotation.id: video.annotation for video in videos}
    labels = {name: Counter(i.label for i in a.instances).most_common(1)[0][0] for name, a in truth.items()}

    rows = [DEFAULT, *map(DEFAULT.with_switch, SWITCHES), RELEASES["bcnet"]]
    print("| protocol | AR@1 | AR@10 | AR@50 | AR@100 | AUC | mAP |\n| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        features, _ = write_dataset(folder, videos)
        archive = open_features(features, feature_dim=model.config.model.feature_dim)
        times = TimeResolver(model.config, table=truth)
        for protocol in rows:
            results = {
                found.video: entries(found.segments, found.scores, [labels[found.video]] * len(found.scores))
                for found in predict(model, archive, archive.ids, times, protocol)
            }
            recall = average_recall(truth, results, tiou_thresholds=THRESHOLDS, max_proposals=100)
            precision = mean_average_precision(truth, results, tiou_thresholds=THRESHOLDS)
            figures = [*(100 * recall.at(an) for an in (1, 10, 50, 100)), recall.auc, 100 * precision.average]
            print(f"| {protocol.name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
