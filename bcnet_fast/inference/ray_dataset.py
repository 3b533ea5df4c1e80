"""`inference.ray.predict`: a Ray dataset of features to one of proposals, by an actor pool of Ray Data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.annotations import VideoAnnotation
from ..data.features import FeatureSequence, from_array
from ..data.timing import TimeResolver
from ..errors import InputError
from ..protocols import protocol_for
from ..results.parquet import Columns, parquet_table
from ..storage.files import readable
from ..storage.optional import require_pyarrow
from .model import load
from .predict import Failure, Predictor
from .ray_cluster import most_workers, require_ray

_TIMES = ("fps", "stride", "offset", "duration")


@dataclass(frozen=True)
class _Settings:
    """Arguments of `predict` that workers need; times: by the names of `_TIMES`."""

    checkpoint: str
    times: Mapping[str, float | None]
    every: int | None
    precision: str
    device: str
    backend: str
    protocol: str
    batch_size: int
    threads: int


def predict(
    dataset: Any,
    checkpoint: str,
    *,
    fps: float | None = None,
    stride: float | None = None,
    offset: float | None = None,
    every: int | None = None,
    precision: str = "fp32",
    device: str = "auto",
    backend: str = "auto",
    protocol: str = "default",
    batch_size: int = 8,
    workers: int = 0,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0.0,
    videos_a_batch: int = 8,
) -> Any:
    """Turn a Ray dataset of features into one of proposals, with the values of `infer`.

    A worker is a process that loads the network once. It keeps `videos_a_batch` videos in memory, and their windows
    share batches of the network.

    Args:
        dataset: rows with `video`, the id, and `features`, numbers [T, C] or [C, T] by the length C of the network.
            `fps`, `stride`, `offset` and `duration` are optional columns, with the meaning of `Model.propose`.
        checkpoint: file of weights that all machines see, or "demo".
        fps, stride, offset: for rows without these columns. None: as in the training of the network.
        every: use every N-th row of the features; as in the training, or all.
        precision, device, backend: as in `load`. device: "auto" is a CPU unless `gpus_per_worker` is given.
        protocol: "default", or "release" for the rules of the public code.
        batch_size: windows per batch.
        workers: their number. 0: as many as fit in the cluster beside one CPU, which reads the dataset.
        cpus_per_worker: CPUs that Ray reserves for each, and its threads.
        gpus_per_worker: GPUs of each.
        videos_a_batch: rows that a worker takes at once.

    Returns:
        A dataset that is computed when it is read or written, with a row for each proposal, best first for each video.
        Columns: video text, rank int32 from 1, start and end float64 in seconds, score float64, label null, error null.
        A video that could not be used has one row, with its error and without rank and numbers.

    Raises:
        InputError: Ray or pyarrow is not installed, or no CPU would be left to read the dataset.
    """
    ray = require_ray()
    require_pyarrow()
    if device == "auto" and not gpus_per_worker:
        device = "cpu"
    chosen = workers or most_workers(ray, cpus_per_worker, gpus_per_worker, free_cpus=1)
    has = ray.cluster_resources().get("CPU", 0)
    if chosen * cpus_per_worker >= has:
        raise InputError(
            f"workers is {chosen} with {cpus_per_worker} CPUs each, expected fewer than the {has:g} CPUs of the "
            "cluster: reading the dataset needs one, too"
        )
    times = {"fps": fps, "stride": stride, "offset": offset}
    settings = _Settings(
        checkpoint, times, every, precision, device, backend, protocol, batch_size, threads=cpus_per_worker
    )
    return dataset.map_batches(
        _Worker,
        fn_constructor_args=(settings,),
        batch_size=videos_a_batch,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=chosen),
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker,
    )


class _Worker:
    """An actor of Ray Data: columns of videos to a table of proposals."""

    def __init__(self, settings: _Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._settings = settings
        model = load(
            settings.checkpoint, device=settings.device, precision=settings.precision, backend=settings.backend
        )
        self._config, trained_on = model.config, model.config.trained_on
        self._every = settings.every or (trained_on.every if trained_on else 1)
        self._predictor = Predictor(model, protocol_for(settings.protocol, model.config))

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Any:
        for column in ("video", "features"):
            if column not in batch:
                raise InputError(f"the dataset has the columns {', '.join(batch)}, expected {column!r} among them")
        names = [str(name) for name in batch["video"]]
        table = {name: self._times(name, batch, row) for row, name in enumerate(names)}
        resolver = TimeResolver(self._config, table=table, every=self._every)
        results: dict[str, Columns] = {}
        failures: list[tuple[str, str]] = []
        found = self._predictor.run(
            self._sequences(names, batch["features"]), resolver, batch_size=self._settings.batch_size
        )
        for result in found:
            if isinstance(result, Failure):
                failures.append((result.video, result.reason))
            else:
                results[result.video] = Columns(result.segments, result.scores)
        ordered = [(name, results[name]) for name in dict.fromkeys(names) if name in results]
        return _table(ordered, failures)

    def _times(self, name: str, batch: Mapping[str, np.ndarray], row: int) -> VideoAnnotation:
        stated = dict(self._settings.times)
        for column in _TIMES:
            value = batch[column][row] if column in batch else None
            if value is not None and np.isfinite(value):
                stated[column] = float(value)
        return VideoAnnotation(
            name,
            fps=stated.get("fps"),
            feature_stride=stated.get("stride"),
            feature_offset=stated.get("offset"),
            duration=stated.get("duration"),
        )

    def _sequences(
        self, names: Sequence[str], features: np.ndarray
    ) -> Iterator[tuple[str, FeatureSequence | InputError]]:
        seen: set[str] = set()
        for name, value in zip(names, features, strict=True):
            where = f"features of {name!r}"
            try:
                if name in seen:
                    raise InputError(f"the dataset has video {name!r} twice, expected each once")
                with readable(where, "an array [T, C] of numbers"):
                    yield name, from_array(_array(value), self._config.model.feature_dim, where, every=self._every)
            except InputError as error:
                yield name, error
            seen.add(name)


def _array(value: Any) -> np.ndarray:
    """Features as Arrow gives them back: an array, or lists of lists."""
    array = np.asarray(value)
    return np.stack([np.asarray(row) for row in array]) if array.dtype == object else array


def _table(videos: Sequence[tuple[str, Columns]], failures: Sequence[tuple[str, str]]) -> Any:
    arrow = require_pyarrow()
    found = parquet_table(videos)
    good = found.append_column("error", arrow.nulls(len(found), arrow.string()))
    names, reasons = zip(*failures, strict=True) if failures else ((), ())
    missing = [arrow.nulls(len(names), field.type) for field in found.schema][1:]
    columns = [arrow.array(names, arrow.string()), *missing, arrow.array(reasons, arrow.string())]
    return arrow.concat_tables([good, arrow.Table.from_arrays(columns, schema=good.schema)])
