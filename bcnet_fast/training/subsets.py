"""Training and validation videos of a run, annotated or synthetic."""

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
from ..presets import DATA_SETS
from ..progress import progress
from ..protocols import WindowRules
from ..recipe import Recipe
from ..storage.output import require_writable
from ..text import count, failure_line, some
from ..video.run import ExtractOptions, extract
from .dataset import Subset, check_subset
from .distributed import Processes
from .options import TrainOptions, stated

KEPT_BYTES = 2 << 30  # limit of training features in memory; others are read again for every window
SYNTHETIC_VIDEOS = {"training": 120, "validation": 40}


def with_synthetic_videos(options: TrainOptions, processes: Processes) -> TrainOptions:
    """Write synthetic videos below the output folder; return options whose features and annotations are theirs.

    InputError: a flag requires --features.
    """
    if options.preset != "synthetic":
        raise InputError(f"--features is required with --preset {options.preset}; only synthetic generates videos")
    for flag, value in (("--val-annotations", options.val_annotations), ("--val-subset", options.val_subset)):
        if value is not None:
            raise InputError(f"{flag} requires --features")
    if options.train_subset is not None and options.annotations is None:
        raise InputError("--train-subset requires --annotations")
    kind, like = SyntheticConfig(), "THUMOS14"
    if options.annotations is not None:
        real, like = read_annotations(options.annotations), options.annotations
        if options.train_subset is not None:
            real = in_subset(real, options.train_subset, options.annotations)
        kind = SyntheticConfig(**statistics_of(real.values(), options.annotations))
    folder = Path(options.output) / "data"
    annotations = folder / "annotations.json"
    # A resumed training keeps its videos.
    if processes.first and not (options.resume and annotations.exists()):
        require_writable(annotations)
        print(f"no --features: generating synthetic videos with the statistics of {like}", flush=True)
        videos = (make_videos(number, seed=0, subset=name, config=kind) for name, number in SYNTHETIC_VIDEOS.items())
        total = sum(SYNTHETIC_VIDEOS.values())
        write_dataset(folder, progress(itertools.chain(*videos), total, "videos generated"))
    if processes.count > 1:
        dist.barrier()
    return replace(options, features=str(folder / "features"), annotations=str(annotations), train_subset=None)


def with_videos(options: TrainOptions, processes: Processes, known: Recipe | None = None) -> TrainOptions:
    """Extract the features of --videos; return options whose features they are.

    known: recipe of a checkpoint that will read them too.

    InputError: a flag contradicts --videos, or no video can be used; others that cannot are listed.
    """
    if options.features is not None:
        raise InputError(f"--features is {options.features} beside --videos, expected one of the two")
    folder = options.keep_features or str(Path(options.output) / "features")
    if processes.first:
        report = extract(ExtractOptions(options.videos, folder, options.network, options.read, options.workers), known)
        print(report.summary(), flush=True)
        for video, reason in report.failures:
            print(failure_line(video, reason), file=sys.stderr)
    if processes.count > 1:
        dist.barrier()
    return replace(options, features=folder)


def select_annotations(options: TrainOptions, config: Config) -> list[Mapping[str, VideoAnnotation]]:
    """Annotations of the training videos and of the validation videos."""
    return select_videos(options, strip_prefix=config.data.strip_prefix)


def select_videos(options: TrainOptions, *, strip_prefix: bool) -> list[Mapping[str, VideoAnnotation]]:
    """`select_annotations` by the prefix that is removed of the names."""
    assert options.annotations is not None  # `train` requires them, or generates videos
    paths = options.annotations, options.val_annotations or options.annotations
    files = {path: read_annotations(path, strip_prefix=strip_prefix) for path in dict.fromkeys(paths)}
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
    """The videos of a subset, or all of a file without subsets, unless that file would serve both purposes."""
    if wanted is None and not alone and not any(video.subset for video in annotations.values()):
        return annotations
    try:
        return in_subset(annotations, wanted or usual, path)
    except InputError as error:
        has_subsets = any(video.subset for video in annotations.values())
        hint = (
            f"choose one with {flag}, or give" if has_subsets else "give the validation videos a file of their own with"
        )
        raise InputError(f"{error}; {hint} --val-annotations") from error


def open_archive(options: TrainOptions, config: Config, feature_dim: int | None) -> FeatureArchive:
    assert options.features is not None  # as for annotations
    return open_features(
        options.features,
        feature_dim=feature_dim,
        every=options.time.every,
        strip_prefix=config.data.strip_prefix,
        limits=options.limits,
    )


def require_width(archive: FeatureArchive, config: Config, training: Mapping[str, VideoAnnotation]) -> None:
    """Raise InputError if the features of the first video have another width than the network."""
    first = next((video for video in archive.ids if video in training), None)
    if first is None:
        return
    stored = archive.stored(first)
    if config.model.feature_dim not in stored.shape:
        raise InputError(
            f"{stored.path} has shape {list(stored.shape)}, expected {config.model.feature_dim} channels; "
            "state the width by --set model.feature_dim=C, or add --fit"
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
    """Read every video of both subsets; also return the times of their snippets.

    InputError: a subset is empty, or the stride of the features is unknown.
    """
    times = options.time.resolver(config, archive, known={**chosen[1], **chosen[0]})
    require_stride(options, times, [video for video in archive.ids if video in times.table])
    subsets = []
    for name, videos, kept in zip(("training", "validation"), chosen, (KEPT_BYTES, 0), strict=True):
        here = with_features(archive, name, videos)
        features = iterate(archive, here, workers=options.workers)
        loaded = progress(features, len(here), f"{name} videos read", hidden=quiet)
        subsets.append(check_subset(name, videos, loaded, times, rules, kept_bytes=kept))
    if not quiet and _without_stride(times, [video for subset in subsets for video in subset.truth]):
        stride = f"{config.data.stride:g} video frames between rows, as in preset {config.preset}"
        print(f"note: without --stride, assuming {stride}", file=sys.stderr)
    return *subsets, times


def with_features(archive: FeatureArchive, name: str, videos: Mapping[str, VideoAnnotation]) -> list[str]:
    """The annotated videos of a subset that have features. InputError: none has."""
    here = [video for video in archive.ids if video in videos]
    if not here:
        raise InputError(
            f"{archive.path} has {count(len(archive.ids), 'video')}, such as {archive.ids[0]!r}, "
            f"expected {name} videos, such as {next(iter(videos))!r}"
        )
    return here


def require_stride(options: TrainOptions, times: TimeResolver, videos: Sequence[str]) -> None:
    """InputError: the stride of some of `videos` is unknown, and the preset is not one of a public data set.

    The stride of such a preset belongs to the public features. For any other features it would be a guess, which
    moves every instance and every proposal in time.
    """
    if (options.preset in DATA_SETS and not options.fit) or stated(options, "data", "stride"):
        return
    unknown = _without_stride(times, videos)
    if unknown:
        table = options.time.times or options.annotations
        raise InputError(
            f"--stride is required: {table} does not state the video frames between the feature rows of "
            f"{count(len(unknown), 'video')} ({some(unknown)}); "
            f"`bcnet inspect {options.features} --times {table}` shows the number"
        )


def _without_stride(times: TimeResolver, videos: Sequence[str]) -> list[str]:
    """Videos whose stride only the preset states. Rescaled videos need none."""
    return [video for video in videos if not times.config.data.rescale and times.facts(video).row_stride is None]
