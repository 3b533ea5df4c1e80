"""The videos of a training: which are for training and which for validation, and the synthetic ones."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from ..config import Config
from ..data.annotations import VideoAnnotation, in_subset, read_annotations
from ..data.features import FeatureArchive, iterate, open_features
from ..data.synthetic import SyntheticConfig, make_videos, statistics_of, write_dataset
from ..data.timing import TimeResolver
from ..errors import InputError
from ..progress import progress
from ..protocols import WindowRules
from ..storage.files import require_writable
from .dataset import Subset, check_subset
from .distributed import Processes
from .options import TrainOptions
from .run_folder import require_new

KEPT_BYTES = 2 << 30  # of training features in memory; what does not fit is read anew for every window
SYNTHETIC_VIDEOS = {"training": 120, "validation": 40}


def with_synthetic_videos(options: TrainOptions, processes: Processes) -> TrainOptions:
    """Write the synthetic data set below the output folder; returns the options of a user who gave it.

    InputError for flags that only make sense beside --features.
    """
    if options.preset != "synthetic":
        raise InputError("--features: expected a path, found none; only --preset synthetic makes its own videos")
    for flag, value in (("--val-annotations", options.val_annotations), ("--val-subset", options.val_subset)):
        if value is not None:
            raise InputError(f"{flag}: expected it beside --features, found none")
    if options.train_subset is not None and options.annotations is None:
        raise InputError("--train-subset: expected it beside --annotations, found none")
    if not options.resume:
        require_new(options.output)  # before the videos of a training that is there are replaced
    kind, like = SyntheticConfig(), "THUMOS14"
    if options.annotations is not None:
        real, like = read_annotations(options.annotations), options.annotations
        if options.train_subset is not None:
            real = in_subset(real, options.train_subset, options.annotations)
        kind = SyntheticConfig(**statistics_of(real.values(), options.annotations))
    folder = Path(options.output) / "data"
    annotations = folder / "annotations.json"
    # A training that goes on has its videos already, and other ones must not take their place.
    if processes.first and not (options.resume and annotations.exists()):
        require_writable(annotations)
        print(f"no --features: synthetic videos with the statistics of {like}", flush=True)
        videos = (make_videos(count, seed=0, subset=name, config=kind) for name, count in SYNTHETIC_VIDEOS.items())
        total = sum(SYNTHETIC_VIDEOS.values())
        write_dataset(folder, progress(itertools.chain(*videos), total, "videos made"))
    if processes.count > 1:
        dist.barrier()
    return replace(options, features=str(folder / "features"), annotations=str(annotations), train_subset=None)


def select_annotations(options: TrainOptions, config: Config) -> list[Mapping[str, VideoAnnotation]]:
    """Those of the training and of the validation videos."""
    paths = options.annotations, options.val_annotations or options.annotations
    prefix = config.data.strip_prefix
    files = {path: read_annotations(path, strip_prefix=prefix) for path in dict.fromkeys(paths)}
    return [
        _select(files[path], path, flag, wanted, name, alone=len(files) == 1)
        for path, flag, wanted, name in (
            (paths[0], "--train-subset", options.train_subset, "training"),
            (paths[1], "--val-subset", options.val_subset, "validation"),
        )
    ]


def _select(
    annotations: Mapping[str, VideoAnnotation], path: str, flag: str, wanted: str | None, usual: str, *, alone: bool
) -> Mapping[str, VideoAnnotation]:
    """The videos of a subset; of a file without subsets all, unless it would serve for training and validation both."""
    if wanted is None and not alone and not any(video.subset for video in annotations.values()):
        return annotations
    try:
        return in_subset(annotations, wanted or usual, path)
    except InputError as error:
        raise InputError(f"{error} (choose with {flag}, or give --val-annotations)") from error


def open_archive(options: TrainOptions, config: Config, feature_dim: int | None) -> FeatureArchive:
    return open_features(
        options.features, feature_dim=feature_dim, every=options.time.every, strip_prefix=config.data.strip_prefix
    )


def require_width(archive: FeatureArchive, config: Config, training: Mapping[str, VideoAnnotation]) -> None:
    """InputError, with the way out, when the first video has features of another width."""
    first = next((video for video in archive.ids if video in training), None)
    if first is None:
        return
    stored = archive.stored(first)
    if config.model.feature_dim not in stored.shape:
        raise InputError(
            f"{stored.path}: expected {config.model.feature_dim} channels, found shape {list(stored.shape)}; "
            "give --set model.feature_dim=C, or --fit"
        )


def read_subsets(
    options: TrainOptions,
    config: Config,
    archive: FeatureArchive,
    chosen: Sequence[Mapping[str, VideoAnnotation]],
    rules: WindowRules,
    *,
    quiet: bool,
) -> tuple[Subset, Subset, TimeResolver]:
    """Both subsets with every video looked at, and when their snippets happen."""
    times = options.time.resolver(config, archive, known={**chosen[1], **chosen[0]})
    subsets = []
    for name, videos, kept in zip(("training", "validation"), chosen, (KEPT_BYTES, 0), strict=True):
        here = [video for video in archive.ids if video in videos]
        if not here:
            raise InputError(
                f"{options.features}: expected {name} videos, such as {next(iter(videos))!r}, "
                f"found {len(archive.ids)} others, such as {archive.ids[0]!r}"
            )
        features = iterate(archive, here, workers=options.workers)
        loaded = progress(features, len(here), f"{name} videos read", hidden=quiet)
        subsets.append(check_subset(name, videos, loaded, times, rules, kept_bytes=kept))
    ids = [video for subset in subsets for video in subset.truth]
    if not quiet and not config.data.rescale and any(times.facts(video).row_stride is None for video in ids):
        stride = f"{config.data.stride:g} video frames apart, as {config.preset} has it"
        print(f"note: nothing states --stride; rows are taken to be {stride}", file=sys.stderr)
    return *subsets, times
