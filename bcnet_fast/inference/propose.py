"""`Model.propose`: from feature arrays in memory to proposals in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from ..data.annotations import VideoAnnotation
from ..data.features import from_array
from ..data.timing import TimeResolver
from ..protocols import protocol_for
from ..text import count
from .network import LoadedNetwork
from .predict import Failure, Predictor, VideoProposals

Array = np.ndarray | Tensor
Number = float | Sequence[float] | None


def propose(
    model: LoadedNetwork,
    features: Array | Sequence[Array] | Mapping[str, Array],
    *,
    fps: Number,
    stride: Number,
    offset: Number,
    duration: Number,
    every: int | None,
    protocol: str,
    batch_size: int,
) -> VideoProposals | list[VideoProposals] | dict[str, VideoProposals]:
    """See `Model.propose`."""
    arrays = _named(features)
    config = model.config
    if every is None:
        every = config.trained_on.every if config.trained_on else 1
    for name, value in (("every", every), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    stated = {"fps": fps, "stride": stride, "offset": offset, "duration": duration}
    columns = (_for_each(name, value, len(arrays)) for name, value in stated.items())
    table = {
        video: VideoAnnotation(video, duration=seconds, fps=rate, feature_stride=step, feature_offset=first)
        for video, rate, step, first, seconds in zip(arrays, *columns, strict=True)
    }
    times = TimeResolver(config, table=table, every=every)
    for video in arrays:
        _require_times(times, video)
    loaded = (
        (video, from_array(array, config.model.feature_dim, f"features of {video!r}", every=every))
        for video, array in arrays.items()
    )
    found: dict[str, VideoProposals] = {}
    for result in Predictor(model, protocol_for(protocol, config)).run(loaded, times, batch_size=batch_size):
        if isinstance(result, Failure):
            raise ValueError(result.reason)
        found[result.video] = result
    ordered = {video: found[video] for video in arrays}
    if isinstance(features, Mapping):
        return ordered
    return ordered["video"] if isinstance(features, np.ndarray | Tensor) else list(ordered.values())


def _named(features: Array | Sequence[Array] | Mapping[str, Array]) -> dict[str, np.ndarray]:
    if isinstance(features, np.ndarray | Tensor):
        items: Iterable[tuple[str, Array]] = [("video", features)]
    elif isinstance(features, Mapping):
        items = features.items()
    else:
        items = ((f"video {number}", array) for number, array in enumerate(features))
    return {name: _as_numpy(name, array) for name, array in items}


def _as_numpy(name: str, array: Array) -> np.ndarray:
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        return (array if array.dtype.is_floating_point and array.dtype.itemsize > 2 else array.float()).numpy()
    if not isinstance(array, np.ndarray):
        raise TypeError(f"features of {name!r} are {type(array).__name__}, expected a NumPy array or a tensor")
    return array


def _for_each(name: str, value: Number, videos: int) -> Sequence[float | None]:
    """One value per video. ValueError: another number of values, or one that is not positive (offset: not finite)."""
    values = list(value) if isinstance(value, Sequence | np.ndarray | Tensor) else [value] * videos
    if len(values) != videos:
        raise ValueError(f"{name} has {len(values)} values, expected one for each of {count(videos, 'video')}")
    for one in values:
        if one is not None and not (np.isfinite(one) and (name == "offset" or one > 0)):
            raise ValueError(f"{name} is {one}, expected a {'finite' if name == 'offset' else 'positive'} number")
    return values


def _require_times(times: TimeResolver, video: str) -> None:
    """Raise ValueError if the times of a video would have to be guessed."""
    facts = times.facts(video)
    if times.config.data.rescale and facts.duration is not None:
        return
    missing = [
        f"{name} ({meaning})"
        for name, value, meaning in (
            ("fps", facts.fps, "video frames per second"),
            ("stride", facts.row_stride, "video frames between consecutive rows"),
        )
        if value is None
    ]
    if missing:
        instead = ", or duration (seconds)" if times.config.data.rescale else ""
        raise ValueError(f"expected {' and '.join(missing)}{instead}, which the checkpoint does not state")
