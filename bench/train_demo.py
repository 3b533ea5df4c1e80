"""Train the small BCNet of the bundled demo again, on synthetic videos, from a seed.

Everything is made from the seed, so the same seed gives the same file on the same machine. Afterwards average recall
is reported on videos that were never trained on, beside that of the same network with random weights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import default_collate

from bcnet_fast._cli import Parser, progress, run
from bcnet_fast.anchors import make_anchors
from bcnet_fast.checkpoint import save_checkpoint
from bcnet_fast.config import PRESETS, Config
from bcnet_fast.data.features import open_features
from bcnet_fast.data.synthetic import SyntheticVideo, make_videos, write_dataset
from bcnet_fast.data.timing import TimeResolver
from bcnet_fast.data.windows import cut
from bcnet_fast.evaluation import AverageRecall
from bcnet_fast.files import require_writable
from bcnet_fast.labels import Targets, window_targets
from bcnet_fast.loading import Model, load
from bcnet_fast.losses import bcnet_loss
from bcnet_fast.protocols import DEFAULT
from bcnet_fast.reference.bcnet import BCNet
from bcnet_fast.training import initialise, validate

SIZES = PRESETS["bcnet"]["synthetic"]
CONFIG = Config("demo", SIZES.model, SIZES.data, SIZES.proposals)
BATCH = 8
WINDOWS_PER_VIDEO = 3  # random ones, in each epoch
LEARNING_RATE = 2e-3  # falls to 0 along a cosine


def training_batches(
    videos: Sequence[SyntheticVideo], rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, Targets]]:
    """One epoch: windows [B, C, T] from random places of all videos in random order, and their targets."""
    model, stride = CONFIG.model, CONFIG.data.stride
    anchors = make_anchors(model.window, model.max_duration)
    order = rng.permutation(np.repeat(np.arange(len(videos)), WINDOWS_PER_VIDEO))
    for batch in np.split(order, range(BATCH, len(order), BATCH)):
        windows, targets = [], []
        for video in (videos[index] for index in batch):
            start = int(rng.integers(len(video.features) - model.window + 1))
            segments = [(i.start, i.end) for i in video.annotation.instances]
            frames = np.array(segments) * video.annotation.fps
            windows.append(cut(video.features, [start], model.window)[0])
            targets.append(window_targets(frames, anchors, model.window, first=start * stride, stride=stride))
        yield torch.from_numpy(np.stack(windows)), default_collate(targets)


def train(videos: Sequence[SyntheticVideo], epochs: int, seed: int) -> BCNet:
    """Train from random weights with Adam."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = BCNet(CONFIG.model).train()
    initialise(network)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    steps = epochs * -(-len(videos) * WINDOWS_PER_VIDEO // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in progress(range(epochs), epochs, "epochs"):
        history = []
        for features, targets in training_batches(videos, rng):
            losses = bcnet_loss(network(features), targets)
            optimizer.zero_grad()
            losses["total"].backward()
            optimizer.step()
            schedule.step()
            history.append(torch.stack([loss.detach() for loss in losses.values()]))
        means = zip(losses, torch.stack(history).mean(dim=0).tolist(), strict=True)
        print(f"epoch {epoch + 1}: " + ", ".join(f"{name} {mean:.3f}" for name, mean in means), flush=True)
    return network


def evaluate(model: Model, videos: Sequence[SyntheticVideo], folder: Path) -> AverageRecall:
    """Average recall of the model's proposals by the ActivityNet protocol; `folder` takes the features."""
    features, _ = write_dataset(folder, videos)
    archive = open_features(features, feature_dim=CONFIG.model.feature_dim)
    truth = {video.annotation.id: video.annotation for video in videos}
    return validate(model, archive, truth, TimeResolver(CONFIG, table=truth), DEFAULT)[0]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write (.safetensors)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the training videos and their order")
    parser.add_argument("--epochs", type=int, default=16, help=f"{WINDOWS_PER_VIDEO} windows of every video in each")
    parser.add_argument("--videos", type=int, default=240, help="number of training videos")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    args = parser.parse_args(argv)
    output = require_writable(args.output)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)

    started = time.perf_counter()
    videos = list(make_videos(args.videos, seed=args.seed, subset="training"))
    network = train(videos, args.epochs, args.seed)
    save_checkpoint(output, network.state_dict(), CONFIG)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB after {time.perf_counter() - started:.0f} s")

    unseen = list(make_videos(40, seed=args.seed, subset="validation"))
    print(f"average recall over tIoU 0.5:0.05:0.95 on {len(unseen)} videos that were not trained on")
    with tempfile.TemporaryDirectory() as folder:
        for name, source in (("trained", output), ("random weights", CONFIG)):
            recall = evaluate(load(source, device="cpu"), unseen, Path(folder))
            print(f"{name:>14}: " + ", ".join(f"AR@{an} {100 * recall.at(an):.1f} %" for an in (10, 50, 100)))
    return 0


if __name__ == "__main__":
    run(main)
