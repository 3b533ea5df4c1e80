"""Train on your own features and annotations, then predict with the result.

A few synthetic videos stand in for your data: `features/<video>.npy` and one annotation file with the subsets
`training` and `validation`. The settings make this a matter of seconds; real trainings leave out `--epochs`.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from bcnet_fast import infer, train
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.evaluation import read_results


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        videos = itertools.chain(
            make_videos(4, seed=0, subset="training"),
            make_videos(2, seed=0, subset="validation"),
        )
        features, annotations = write_dataset(folder, videos)

        run = Path(folder) / "run"
        # The same as: python -m bcnet_fast.train --model bmn --preset small ...
        train.main(
            [
                *("--model", "bmn", "--preset", "small", "--device", "cpu"),
                *("--features", str(features), "--annotations", str(annotations), "--output", str(run)),
                *("--epochs", "2", "--batch-size", "4"),
            ]
        )

        output = Path(folder) / "proposals.json"
        infer.main(
            [
                *("--checkpoint", str(run / "best.safetensors"), "--device", "cpu"),
                *("--features", str(features), "--times", str(annotations), "--output", str(output)),
            ]
        )
        results = read_results(output)
        print(f"{len(results.scores)} proposals for {len(results.video_names)} videos")


if __name__ == "__main__":
    main()
