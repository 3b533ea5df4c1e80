"""Demo of `python -m bcnet_fast.infer`: a complete run on generated videos.

Synthetic untrimmed videos from a seed that no training used, the small network shipped with the package and, for
comparison, the same network with random weights. All data passes through files, as it would for a user. With PyAV, the
videos become clips, too: see `demo_clips`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from ..data.annotations import VideoAnnotation, read_annotations
from ..data.features import open_features
from ..data.synthetic import make_videos, write_dataset
from ..data.timing import TimeOptions, TimeResolver
from ..evaluation import AverageRecall, average_recall
from ..inference.model import demo_checkpoint, load
from ..inference.options import InferOptions
from ..inference.predict import Predictor, VideoProposals
from ..inference.run import infer
from ..results.reader import Results, read_results
from ..storage.checkpoint import read_config
from .demo_clips import watch
from .parser import program

VIDEOS = 8
SEED = 7
POINTS = (5, 10, 50, 100)
ROWS = ("trained (bundled)", "same, from pixels", "same, random weights")
THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()


def run_demo(folder: Path) -> int:
    """Generate videos, run the bundled network, print its proposals next to the truth; return the exit code."""
    threads = torch.get_num_threads()
    # The network is too small to gain from threads.
    torch.set_num_threads(1)
    try:
        return _run_demo(folder)
    finally:
        torch.set_num_threads(threads)


def _run_demo(folder: Path) -> int:
    checkpoint = demo_checkpoint()
    config = read_config(checkpoint)
    output, pictures = folder / "proposals.json", folder / "pictures"
    # Leftover files of an interrupted demo, or of another version, must not mix with the new ones.
    shutil.rmtree(folder / "features", ignore_errors=True)
    videos = list(make_videos(VIDEOS, seed=SEED, subset="demo"))
    features, annotations = write_dataset(folder, videos)
    print(
        f"BCNet demo: {VIDEOS} synthetic untrimmed videos, generated from seed {SEED}; the network has never seen them"
    )
    print(
        f"running: {program('infer')} --checkpoint {checkpoint} --features {features} --times {annotations} "
        f"--output {output} --plot {pictures} --ground-truth {annotations} --device cpu"
    )
    report = infer(
        InferOptions(
            features=str(features),
            output=str(output),
            checkpoint=str(checkpoint),
            device="cpu",
            time=TimeOptions(times=str(annotations)),
            plot=str(pictures),
            ground_truth=str(annotations),
            overwrite=True,
        )
    )
    print(report.summary())

    truth = read_annotations(annotations)
    results = read_results(output)
    first = next(iter(truth))
    _print_beside_truth(truth[first], results)

    torch.manual_seed(SEED)
    untrained = load(config, device="cpu")
    archive = open_features(features, feature_dim=config.model.feature_dim)
    times = TimeResolver(config, table=truth, every=archive.every, row_stride=archive.row_stride)
    found = Predictor(untrained)(archive, archive.ids, times)
    random = {
        one.video: np.column_stack([one.segments, one.scores]) for one in found if isinstance(one, VideoProposals)
    }

    watched = watch(folder, videos, checkpoint, annotations)
    compared = [results, watched and watched.results, random]

    print(f"\nAverage recall over tIoU 0.5:0.05:0.95, {len(truth)} videos (ActivityNet protocol)")
    print(f"{'':>24}" + "".join(f"{f'AR@{an}':>8}" for an in POINTS))
    for name, proposals in zip(ROWS, compared, strict=True):
        if proposals is None:
            continue
        recall = _recall(truth, proposals)
        print(f"{name:>24}" + "".join(f"{100 * recall.at(an):8.1f}" for an in POINTS))
    if watched is not None:
        print(
            f"\nfeatures from pixels: {watched.error:.2f} from those that the clips were drawn from (root mean square; "
            "their noise has 1.00)"
        )
    print(f"\nwritten: {output}, {pictures / first}.png and one picture for each other video")
    if watched is not None:
        print(f"to watch in a browser: {watched.page}")
    print(
        f"next: {program('evaluate')} --proposals {output} --ground-truth {annotations} "
        "--metric activitynet13 --subset demo"
    )
    return 1 if report.failures or (watched is not None and watched.failed) else 0


def _recall(truth: dict[str, VideoAnnotation], proposals: Results | dict[str, np.ndarray]) -> AverageRecall:
    return average_recall(truth, proposals, tiou_thresholds=THRESHOLDS, max_proposals=POINTS[-1])


def _print_beside_truth(annotation: VideoAnnotation, results: Results) -> None:
    """Print the highest-ranked proposal with tIoU >= 0.5 for each true instance of a video."""
    mine = results.video == results.video_names.index(annotation.id)
    segments, scores = results.segments[mine], results.scores[mine]
    print(
        f"\n{annotation.id}, {annotation.duration:.1f} s: each true action next to the highest-ranked of "
        f"{len(scores)} proposals with tIoU >= 0.5"
    )
    print(f"{'true action':>18}  {'label':<10}{'proposal':>18}{'tIoU':>8}{'rank':>6}{'confidence':>12}")
    for instance in annotation.instances:
        start, end = segments.T
        overlap = np.maximum(np.minimum(end, instance.end) - np.maximum(start, instance.start), 0)
        tiou = overlap / (end - start + instance.end - instance.start - overlap)
        row = f"{instance.start:8.2f} -{instance.end:7.2f} s  {instance.label:<10}"
        if (tiou >= 0.5).any():
            best = int(np.argmax(tiou >= 0.5))
            row += f"{start[best]:8.2f} -{end[best]:7.2f} s{tiou[best]:8.2f}{best + 1:6d}{scores[best]:12.3f}"
        print(row)
