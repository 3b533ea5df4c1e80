"""Synthetic untrimmed videos with ground truth, generated from a seed.

Number, lengths and gaps of the instances follow THUMOS14 or given annotations. A video is a sequence of scenes
(constant vectors) with events on top. An action passes through the three phases of its class in order; it is ground
truth. A look-alike holds one phase, or passes through the phases backwards; it is background, although each of its
snippets looks like an action. Activations rise and fall smoothly around the exact boundaries, and noise that is
correlated in time is added.

The vectors of scenes and phases depend only on `SyntheticConfig.world`: all data sets of a configuration have the same
classes. The events of video i of a subset depend only on (seed, subset, i): sets of another seed or subset share no
video.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from ..errors import InputError
from ..storage.output import write_json
from ..text import count
from .annotations import Instance, VideoAnnotation

PHASES = 3
Quantiles = tuple[float, ...]  # of a distribution, at equally spaced ranks; draws interpolate linearly
# Ranks of quantiles from annotations. They exclude the extremes, towards which interpolation would put too many draws.
_RANKS = np.linspace(0.005, 0.995, 21)
_SHORTEST_S = 0.01  # lower limit of an instance length


@dataclass(frozen=True)
class SyntheticConfig:
    """Statistics of the videos. Defaults of the first four fields: annotated validation videos of THUMOS14."""

    instances: Quantiles = (
        *(1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0, 6.0, 7.0, 8.0, 9.2),
        *(12.0, 14.0, 18.0, 21.0, 26.45, 33.61, 50.15, 95.16),
    )  # per video
    instance_s: Quantiles = (
        *(0.4, 0.7, 0.93, 1.1, 1.3, 1.5, 1.8, 2.1, 2.3, 2.6, 2.95, 3.3, 3.8),
        *(4.5, 5.0, 5.6, 6.2, 7.1, 7.9, 9.6, 20.27),
    )  # length of an instance
    gap_s: Quantiles = (
        *(0.0, 0.2, 0.3, 0.5, 0.79, 1.0, 1.3, 1.8, 2.3, 2.9, 3.7, 4.5, 5.5),
        *(6.7, 8.2, 10.4, 12.9, 17.4, 24.3, 38.41, 127.43),
    )  # before, between and after instances
    alike: tuple[float, float] = (0.68, 0.42)  # correlation of lengths, and of gaps, within a video
    pause_s: Quantiles = (2.0, 20.0)  # before a look-alike in a gap
    feature_dim: int = 32  # C
    classes: int = 5
    scenes: int = 6
    world: int = 0  # seed of the vectors of phases and scenes
    fps: float = 25.0
    stride: int = 8  # video frames between consecutive snippets
    scene_s: Quantiles = (4.0, 8.0, 12.0, 18.0, 36.0)
    ramp_s: Quantiles = (0.2, 1.2)  # rise or fall around a boundary
    main_class: float = 0.7  # fraction of events with the main class of their video
    signal: float = 6.0  # norm of the vector of a phase or scene; noise has standard deviation 1 per channel
    gain: float = 0.25  # largest relative change of the strength of an event


def statistics_of(annotations: Iterable[VideoAnnotation], source: str) -> dict[str, Any]:
    """Number, lengths and gaps of the instances of real videos, as arguments of `SyntheticConfig`.

    Duplicates, instances of zero length and those beyond the end of their video are ignored. There is no
    gap between overlapping instances, nor at the end of a video of unknown duration.

    InputError: fewer than two videos have instances; names `source`.
    """
    numbers, lengths, gaps = [], [], []
    for video in annotations:
        duration = math.inf if video.duration is None else video.duration
        segments = sorted({(i.start, i.end) for i in video.instances if i.start < i.end <= duration})
        if not segments:
            continue
        numbers.append(len(segments))
        lengths.append([max(end - start, _SHORTEST_S) for start, end in segments])
        latest = np.maximum.accumulate([0.0, *(end for _, end in segments)])
        after = np.array([*(start for start, _ in segments), duration]) - latest
        gaps.append(after[(after >= 0) & np.isfinite(after)])
    if len(numbers) < 2:
        raise InputError(f"{source} has instances in {count(len(numbers), 'video')}, expected at least 2")
    values = {"instances": numbers, "instance_s": np.concatenate(lengths), "gap_s": np.concatenate(gaps)}
    settings = {name: tuple(np.quantile(of_one, _RANKS).round(2).tolist()) for name, of_one in values.items()}
    return settings | {"alike": (_alike(lengths), _alike(gaps))}


def _alike(groups: Sequence[Sequence[float]]) -> float:
    """Mean correlation of two values of a group. It uses normal scores, so that only the order of values matters."""
    values = np.concatenate(groups)
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = ((np.cumsum(counts) - counts / 2) / len(values))[which]  # ties have their mean rank
    scores = np.split([NormalDist().inv_cdf(rank) for rank in ranks], np.cumsum([len(group) for group in groups])[:-1])
    products = sum((s.sum() ** 2 - (s**2).sum()) / (len(s) - 1) for s in scores if len(s) > 1)
    number = sum(len(s) for s in scores if len(s) > 1)
    return round(float(np.clip(products / max(number, 1), 0, 1)), 2)


@dataclass(frozen=True)
class Event:
    """An action or look-alike, in seconds.

    action: number of the class.
    held: the phase that a look-alike holds, or PHASES if it runs through all phases backwards; None for an action.
    rise, fall: how long its activation takes to rise around the start, and to fall around the end.
    strength: activation in between.
    """

    start: float
    end: float
    action: int
    held: int | None = None
    rise: float = 1.0
    fall: float = 1.0
    strength: float = 1.0

    def position(self, time: np.ndarray) -> np.ndarray:
        """Place in the course of the phases, from 0 to PHASES - 1, at times [T] -> [T]."""
        position = np.clip((time - self.start) / (self.end - self.start), 0.0, 1.0) * (PHASES - 1)
        if self.held == PHASES:
            return PHASES - 1 - position
        return position if self.held is None else np.full_like(position, self.held)

    def activation(self, time: np.ndarray) -> np.ndarray:
        """Activation at times [T] -> [T]."""
        strength = self.strength * np.clip((time - self.start) / self.rise + 0.5, 0.0, 1.0)
        return strength * np.clip((self.end - time) / self.fall + 0.5, 0.0, 1.0)

    def phases(self, time: np.ndarray) -> np.ndarray:
        """Activation of each phase of the class at times [T] -> [T, PHASES]."""
        # Hat functions: at most two consecutive phases are active, and their weights sum to 1.
        weights = np.maximum(1 - np.abs(self.position(time)[:, None] - np.arange(PHASES)), 0.0)
        return self.activation(time)[:, None] * weights


@dataclass(frozen=True)
class SyntheticVideo:
    """A video: features [T, C] float32; snippet t covers the seconds [t, t + 1) * stride / fps.

    events: actions and look-alikes, in temporal order.
    scene_ends: seconds at which scenes end, [S - 1].
    scenes: their numbers, [S].
    """

    annotation: VideoAnnotation
    features: np.ndarray
    events: tuple[Event, ...]
    scene_ends: np.ndarray
    scenes: np.ndarray

    def scene(self, time: np.ndarray) -> np.ndarray:
        """Number of the scene at times [T] -> [T]."""
        return self.scenes[np.searchsorted(self.scene_ends, time)]


def world_vectors(config: SyntheticConfig) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the phases [classes, PHASES, C] and of the scenes [scenes, C]."""
    rng = np.random.Generator(np.random.PCG64(config.world))
    phases = config.signal * _unit(rng.standard_normal((config.classes, PHASES, config.feature_dim)))
    return phases, config.signal * _unit(rng.standard_normal((config.scenes, config.feature_dim)))


def make_videos(
    count: int, *, seed: int, subset: str, config: SyntheticConfig = SyntheticConfig()
) -> Iterator[SyntheticVideo]:
    """Generate `count` videos one by one; a larger `count` only adds videos."""
    phases, scenes = world_vectors(config)
    for index in range(count):
        entropy = [seed, zlib.crc32(subset.encode()), index]
        yield _make_video(index, subset, phases, scenes, np.random.Generator(np.random.PCG64(entropy)), config)


def _make_events(rng: np.random.Generator, config: SyntheticConfig) -> tuple[list[Event], float]:
    """Events of a video in temporal order, and its duration in seconds."""
    main = int(rng.integers(config.classes))

    def action() -> int:
        return main if rng.random() < config.main_class else int(rng.integers(config.classes))

    number = max(1, round(_draw(rng, config.instances)))
    lengths = _alike_draws(rng, config.instance_s, config.alike[0], number)
    gaps = _alike_draws(rng, config.gap_s, config.alike[1], number + 1)
    events: list[Event] = []
    now = after = 0.0
    for gap, length in zip(gaps, [*lengths, None], strict=True):
        # Instances that touch could not be told apart by their features.
        after = now + max(gap, 0.1)
        while True:
            start = now + _draw(rng, config.pause_s)
            end = start + _draw(rng, config.instance_s)
            if end >= after:
                break
            events.append(Event(start, end, action(), held=int(rng.integers(PHASES + 1))))
            now = end
        if length is not None:
            events.append(Event(after, after + length, action()))
            now = after + length
    return events, after


def _make_video(
    index: int, subset: str, phases: np.ndarray, scenes: np.ndarray, rng: np.random.Generator, config: SyntheticConfig
) -> SyntheticVideo:
    """phases: vectors [classes, PHASES, C]. scenes: vectors [scenes, C]."""
    snippet_s = config.stride / config.fps
    events, duration = _make_events(rng, config)
    snippets = math.ceil(duration / snippet_s)
    duration = snippets * snippet_s
    time = (np.arange(snippets) + 0.5) * snippet_s

    features = _noise((snippets, config.feature_dim), rng)
    changes = np.cumsum([_draw(rng, config.scene_s) for _ in range(1 + int(duration / config.scene_s[0]))])
    shown = rng.integers(config.scenes, size=len(changes) + 1)
    features += scenes[shown][np.searchsorted(changes, time)]
    for place, event in enumerate(events):
        rise, fall = _draw(rng, config.ramp_s), _draw(rng, config.ramp_s)
        strength = 1 + rng.uniform(-config.gain, config.gain)
        events[place] = dataclasses.replace(event, rise=rise, fall=fall, strength=strength)
        features += events[place].phases(time) @ phases[event.action]

    annotation = VideoAnnotation(
        id=f"{subset}_{index:04d}",
        duration=duration,
        fps=config.fps,
        frames=snippets * config.stride,
        feature_stride=float(config.stride),
        feature_offset=0.0,
        subset=subset,
        instances=tuple(Instance(e.start, e.end, f"action_{e.action}") for e in events if e.held is None),
    )
    return SyntheticVideo(annotation, features.astype(np.float32), tuple(events), changes, shown)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _draw(rng: np.random.Generator, quantiles: Quantiles) -> float:
    return _at(quantiles, rng.random())


def _alike_draws(rng: np.random.Generator, quantiles: Quantiles, alike: float, number: int) -> list[float]:
    """Draw values of one video: each follows `quantiles`, and any two have the correlation `alike`."""
    scores = math.sqrt(alike) * rng.standard_normal() + math.sqrt(1 - alike) * rng.standard_normal(number)
    return [_at(quantiles, NormalDist().cdf(score)) for score in scores]


def _at(quantiles: Quantiles, rank: float) -> float:
    return float(np.interp(rank * (len(quantiles) - 1), np.arange(len(quantiles)), quantiles))


def _noise(shape: tuple[int, int], rng: np.random.Generator, correlated: int = 8) -> np.ndarray:
    """Gaussian noise [T, C] of variance 1: half white noise, half a running mean over `correlated` snippets."""
    total = np.cumsum(rng.standard_normal((shape[0] + correlated, shape[1])), axis=0)
    running = (total[correlated:] - total[:-correlated]) / math.sqrt(correlated)
    return math.sqrt(0.5) * (rng.standard_normal(shape) + running)


def write_dataset(folder: str | os.PathLike, videos: Iterable[SyntheticVideo]) -> tuple[Path, Path]:
    """Write `features/<id>.npy` and `annotations.json` (ActivityNet layout) to `folder`; return both paths.

    InputError: the folder cannot be written.
    """
    features, annotations = Path(folder) / "features", Path(folder) / "annotations.json"
    database = {}
    try:
        features.mkdir(parents=True, exist_ok=True)
        for video in videos:
            np.save(features / f"{video.annotation.id}.npy", video.features)
            entry = dataclasses.asdict(video.annotation)
            instances = entry.pop("instances")
            entry["annotations"] = [{"segment": [i["start"], i["end"]], "label": i["label"]} for i in instances]
            database[entry.pop("id")] = entry
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from error
    write_json(annotations, {"version": "bcnet_fast synthetic", "database": database})
    return features, annotations
