"""The streams of a second stage: checkpoints that agree, names of their classes, and features for each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from ..config import SecondStageConfig
from ..data.annotations import THUMOS14_CLASSES, read_annotations
from ..data.features import FeatureArchive, FeatureSequence, iterate, open_features
from ..data.source import ReadLimits
from ..data.timing import TimeOptions
from ..errors import InputError
from ..results.proposal_videos import timed_like
from ..storage.checkpoint import read_any_config
from ..storage.files import read_text
from ..text import count, some


def read_configs(checkpoints: Sequence[str]) -> list[SecondStageConfig]:
    """Configurations of the streams. InputError: one is of a proposal network, or they have other classes."""
    configs = []
    for path in checkpoints:
        config = read_any_config(path)
        if not isinstance(config, SecondStageConfig):
            raise InputError(f"{path} has weights of {config.model.name}, expected a network of pgcn or muses")
        configs.append(config)
    first = configs[0]
    for path, config in zip(checkpoints, configs, strict=True):
        if config.model.classes != first.model.classes:
            found = f"{config.model.classes} classes, expected {first.model.classes}"
            raise InputError(f"{path} has {found} as {checkpoints[0]}")
        if config.labels and first.labels and config.labels != first.labels:
            found = f"the classes {some(config.labels)}, expected {some(first.labels)}"
            raise InputError(f"{path} has {found} in this order, as {checkpoints[0]}")
        if config.rows.rescaled != first.rows.rescaled:
            found = "rescaled to a number of rows" if config.rows.rescaled else "as they are"
            raise InputError(f"{path} reads videos {found}, expected the same as {checkpoints[0]}")
    return configs


def class_names(configs: Sequence[SecondStageConfig], checkpoints: Sequence[str], classes: str | None) -> list[str]:
    """Names of the classes, in the order of the networks. InputError: they are unknown, or not as many."""
    number = configs[0].model.classes
    known = next((list(config.labels) for config in configs if config.labels), None)
    if classes is not None:
        names = read_classes(classes)
        if len(names) != number:
            raise InputError(f"{classes} has {count(len(names), 'class')}, expected {number} to fit {checkpoints[0]}")
        if known and names != known:
            raise InputError(
                f"{classes} has the classes {some(names)}, expected {some(known)} in the order of {checkpoints[0]}"
            )
        return names
    if known:
        return known
    if number == len(THUMOS14_CLASSES):
        return list(THUMOS14_CLASSES)
    raise InputError(f"--classes is required: {checkpoints[0]} does not know the names of its {number} classes")


def read_classes(path: str) -> list[str]:
    """Names of classes from a text file, one a line, or in alphabetical order from annotations."""
    text = read_text(path, "names of classes, one a line, or annotations")
    if text.lstrip()[:1] == "{" or "," in text.partition("\n")[0]:
        videos = read_annotations(path).values()
        return sorted({instance.label for video in videos for instance in video.instances})
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or len(set(names)) != len(names):
        raise InputError(f"{path} has {count(len(names), 'name')}, {len(set(names))} of them different, expected all")
    return names


def open_streams(
    features: Sequence[str],
    configs: Sequence[SecondStageConfig],
    checkpoints: Sequence[str],
    time_options: TimeOptions,
    limits: ReadLimits,
) -> list[FeatureArchive]:
    """An archive for each path of --features, of the width that is read from it.

    One archive may hold all streams side by side, in the order of the checkpoints, or be read by each of them.
    InputError: paths and widths do not fit the checkpoints.
    """
    widths = [config.model.feature_dim for config in configs]
    if len(features) not in (1, len(configs)):
        raise InputError(f"--features has {count(len(features), 'path')}, expected 1 or one for each of {len(configs)}")
    archives = []
    for path, config in zip(features, configs, strict=False):
        every = time_options.every_for(timed_like(config))
        strip = bool(config.rows.rescaled)
        archive = open_features(path, feature_dim=None, every=every, strip_prefix=strip, limits=limits)
        archives.append(archive)
    if len(archives) == len(configs):
        for archive, width in zip(archives, widths, strict=True):
            archive.feature_dim = width
        return archives
    (archive,) = archives
    shape = _shape_of_any(archive)
    if sum(widths) in shape:
        archive.feature_dim = sum(widths)
    elif set(widths) == {widths[0]} and widths[0] in shape:
        archive.feature_dim = widths[0]
        print(f"note: {archive.path}: all {len(configs)} checkpoints read the same features", file=sys.stderr)
    else:
        wanted = f"{sum(widths)} ({' + '.join(map(str, widths))}) channels to fit {', '.join(checkpoints)}"
        raise InputError(f"{archive.path} has arrays of shape {list(shape)}, expected {wanted}")
    return archives


def _shape_of_any(archive: FeatureArchive) -> tuple[int, ...]:
    """Shape of the first readable array."""
    error = None
    for video in archive.ids:
        try:
            return archive.stored(video).shape
        except InputError as found:
            error = error or found
    raise error or InputError(f"{archive.path} has no video")


def read_streams(
    archives: Sequence[FeatureArchive], videos: Sequence[str], workers: int
) -> Iterator[tuple[str, list[FeatureSequence | InputError]]]:
    """Features of all archives, video by video."""
    readers = [iterate(archive, videos, workers=workers) for archive in archives]
    for found in zip(*readers, strict=True):
        yield found[0][0], [loaded for _, loaded in found]


def features_of_models(features: Sequence[np.ndarray], configs: Sequence[SecondStageConfig]) -> list[np.ndarray]:
    """Features [T, C] for each checkpoint, from those of each archive, see `open_streams`."""
    if len(features) == len(configs):
        return list(features)
    (rows,) = features
    widths = [config.model.feature_dim for config in configs]
    if rows.shape[1] == sum(widths):
        return [np.ascontiguousarray(part) for part in np.split(rows, np.cumsum(widths)[:-1], axis=1)]
    return [rows] * len(configs)
