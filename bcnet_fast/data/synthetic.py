"""Untrimmed videos with ground truth, made from a seed: a data set for anyone, without a download.

A video is a row of scenes (constant vectors) over which events happen. An event of an action class runs through the
three phases of its class, from the first to the last, and is ground truth. A look-alike holds one phase of an action
class or runs through the phases backwards; it is background, and a single snippet of it cannot be told from an action.
Activations rise and fall softly around the exact boundaries, and everything lies under noise that is correlated in
time. Which vectors stand for scenes and phases depends on `SyntheticConfig.world` alone, so that all sets of one
configuration show the same classes; what happens in video i of a subset depends on (seed, subset, i) alone, so that
no set shares a video with a set of another seed or subset.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import write_json
from .annotations import Instance, VideoAnnotation

PHASES = 3


@dataclass(frozen=True)
class SyntheticConfig:
    """What the videos are like. Lengths in seconds that vary are log-normal: (median, deviation of the logarithm)."""

    feature_dim: int = 32  # C
    classes: int = 5
    scenes: int = 6
    world: int = 0  # seed of the vectors of all phases and scenes
    fps: float = 25.0
    stride: int = 8  # video frames between neighbouring snippets
    duration_s: tuple[float, float] = (80.0, 160.0)  # of a video: uniform between these
    event_s: tuple[float, float] = (3.5, 0.5)  # log-normal, of actions and look-alikes
    event_limits_s: tuple[float, float] = (1.0, 9.0)  # shorter and longer ones become as long as this
    gap_s: tuple[float, float] = (3.0, 0.8)  # log-normal, between events
    scene_s: tuple[float, float] = (12.0, 0.6)  # log-normal
    ramp_s: tuple[float, float] = (0.2, 1.2)  # rise or fall around a boundary: uniform between these
    lookalikes: float = 0.35  # share of the events
    main_class: float = 0.7  # share of the events that show the main class of their video
    signal: float = 6.0  # length of the vector of a phase or scene; the noise has deviation 1 in every channel
    gain: float = 0.25  # events are stronger or weaker by up to this part


@dataclass(frozen=True)
class SyntheticVideo:
    """One video: features [T, C] float32, snippet t covers [t, t + 1) * stride / fps seconds."""

    annotation: VideoAnnotation
    features: np.ndarray


def make_videos(
    count: int, *, seed: int, subset: str, config: SyntheticConfig = SyntheticConfig()
) -> Iterator[SyntheticVideo]:
    """Make `count` videos, one at a time; the first n are the same for every `count` >= n."""
    rng = np.random.Generator(np.random.PCG64(config.world))
    phases = config.signal * _unit(rng.standard_normal((config.classes, PHASES, config.feature_dim)))
    scenes = config.signal * _unit(rng.standard_normal((config.scenes, config.feature_dim)))
    for index in range(count):
        entropy = [seed, zlib.crc32(subset.encode()), index]
        yield _make_video(index, subset, phases, scenes, np.random.Generator(np.random.PCG64(entropy)), config)


@dataclass(frozen=True)
class _Event:
    start: float
    end: float
    action: int  # class
    held: int | None = None  # for a look-alike: the phase that it holds, or PHASES for all of them backwards


def _make_events(duration: float, rng: np.random.Generator, config: SyntheticConfig) -> list[_Event]:
    """What happens in a video: events one after the other, in seconds, none of them cut off by the video's end."""
    events = []
    main = int(rng.integers(config.classes))
    start = _lognormal(rng, config.gap_s)
    while True:
        end = start + float(np.clip(_lognormal(rng, config.event_s), *config.event_limits_s))
        if end > duration:
            return events
        action = main if rng.random() < config.main_class else int(rng.integers(config.classes))
        held = int(rng.integers(PHASES + 1)) if rng.random() < config.lookalikes else None
        events.append(_Event(start, end, action, held))
        start = end + _lognormal(rng, config.gap_s)


def _activation(event: _Event, time: np.ndarray, rng: np.random.Generator, config: SyntheticConfig) -> np.ndarray:
    """How strongly each phase of the event's class is active at each moment: time [T] in seconds -> [T, PHASES]"""
    position = np.clip((time - event.start) / (event.end - event.start), 0.0, 1.0) * (PHASES - 1)
    if event.held == PHASES:
        position = PHASES - 1 - position
    elif event.held is not None:
        position = np.full_like(position, event.held)
    # Hat functions: at most two neighbouring phases are active at a moment, and their weights sum to 1.
    weights = np.maximum(1 - np.abs(position[:, None] - np.arange(PHASES)), 0.0)
    rise, fall = rng.uniform(*config.ramp_s, size=2)
    strength = 1 + rng.uniform(-config.gain, config.gain)
    strength = strength * np.clip((time - event.start) / rise + 0.5, 0.0, 1.0)
    strength = strength * np.clip((event.end - time) / fall + 0.5, 0.0, 1.0)
    return strength[:, None] * weights


def _make_video(
    index: int, subset: str, phases: np.ndarray, scenes: np.ndarray, rng: np.random.Generator, config: SyntheticConfig
) -> SyntheticVideo:
    """phases [classes, PHASES, C], scenes [scenes, C]: the vectors of the configuration's world"""
    snippet_s = config.stride / config.fps
    snippets = round(rng.uniform(*config.duration_s) / snippet_s)
    duration = snippets * snippet_s
    time = (np.arange(snippets) + 0.5) * snippet_s

    features = _noise((snippets, config.feature_dim), rng)
    changes = np.cumsum([_lognormal(rng, config.scene_s) for _ in range(1 + int(duration))])
    features += scenes[rng.integers(config.scenes, size=len(changes) + 1)][np.searchsorted(changes, time)]
    events = _make_events(duration, rng, config)
    for event in events:
        features += _activation(event, time, rng, config) @ phases[event.action]

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
    return SyntheticVideo(annotation, features.astype(np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _lognormal(rng: np.random.Generator, median_and_deviation: tuple[float, float]) -> float:
    median, deviation = median_and_deviation
    return median * math.exp(deviation * rng.standard_normal())


def _noise(shape: tuple[int, int], rng: np.random.Generator, correlated: int = 8) -> np.ndarray:
    """Gaussian noise [T, C] of variance 1: half of it white, half a running mean over `correlated` snippets."""
    total = np.cumsum(rng.standard_normal((shape[0] + correlated, shape[1])), axis=0)
    running = (total[correlated:] - total[:-correlated]) / math.sqrt(correlated)
    return math.sqrt(0.5) * (rng.standard_normal(shape) + running)


def write_dataset(folder: str | os.PathLike, videos: Iterable[SyntheticVideo]) -> tuple[Path, Path]:
    """Write `features/<id>.npy` and `annotations.json` (ActivityNet layout) below `folder`, and return both paths.

    InputError when the folder cannot be written.
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
        raise InputError(f"{folder}: expected a folder to write to, found: {error.strerror or error}") from error
    write_json(annotations, {"version": "bcnet_fast synthetic", "database": database})
    return features, annotations
