"""Soft-NMS in other code, and the candidates that it is measured on."""

from __future__ import annotations

import ctypes
import itertools
import math
from pathlib import Path

import numpy as np
import torch

from .compile_library import compile_library

SIGMA, MIN_SCORE = 0.5, 0.001
EPSILON = {torch.float32: 1e-6, torch.float64: 0.0}


def compile_scalar(folder: Path) -> ctypes.CDLL:
    """Build soft_nms_scalar.cpp as a shared library. InputError without a C++ compiler."""
    loaded = compile_library(Path(__file__).with_name("soft_nms_scalar.cpp"), folder)
    for name, number in (("float", ctypes.c_float), ("double", ctypes.c_double)):
        function = getattr(loaded, f"soft_nms_scalar_{name}")
        pointer = ctypes.c_void_p
        function.argtypes = [pointer, pointer, ctypes.c_int64, ctypes.c_int, *[number] * 4, *[pointer] * 5]
        function.restype = ctypes.c_int64
    return loaded


class Scalar:
    """The scalar loop on one input; its memory is taken beforehand."""

    def __init__(self, library: ctypes.CDLL, segments: torch.Tensor, scores: torch.Tensor, offsets: list[int]) -> None:
        name = "float" if scores.dtype == torch.float32 else "double"
        self.function = getattr(library, f"soft_nms_scalar_{name}")
        self.inputs, self.offsets, self.epsilon = (segments, scores), offsets, EPSILON[scores.dtype]
        self.work = [torch.empty_like(scores) for _ in range(4)]  # start, end, score, area
        self.index = torch.empty(len(scores), dtype=torch.int64)

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        indices, scores = [], []
        for first, last in itertools.pairwise(self.offsets):
            pointers = [t[first:].data_ptr() for t in (*self.work, self.index)]
            inputs = [t[first:].data_ptr() for t in self.inputs]
            options = 0, SIGMA, 0.0, MIN_SCORE, self.epsilon
            picks = self.function(*inputs, last - first, *options, *pointers)
            indices.append(first + self.index[first : first + picks])
            scores.append(self.work[2][first : first + picks])
        return torch.cat(indices), torch.cat(scores)


def python_loop(
    segments: list[list[float]],
    scores: list[float],
    epsilon: float,
    sigma: float = SIGMA,
    min_score: float = MIN_SCORE,
    most: int | None = None,
    iou_threshold: tuple[float, float] = (0.0, 0.0),
) -> tuple[list[int], list[float]]:
    """The same in plain Python, as the research code of BSN, BMN and BCNet writes it; `most` picks, or all.

    Others decay where their tIoU is above low + (high - low) * length of the picked segment.
    """
    low, slope = iou_threshold[0], iou_threshold[1] - iou_threshold[0]
    start, end, score = [s for s, _ in segments], [e for _, e in segments], list(scores)
    index = list(range(len(scores)))
    indices, picked = [], []
    while score and len(picked) != most:
        top = score.index(max(score))
        if score[top] < min_score:
            break
        s, e, _, i = (column.pop(top) for column in (start, end, score, index))
        indices.append(i)
        picked.append(_)
        kept = []
        for j in range(len(score)):
            inter = max(0.0, min(e, end[j]) - max(s, start[j]))
            tiou = inter / ((e - s) + (end[j] - start[j]) - inter + 2 * epsilon)
            if tiou > low + slope * (e - s):
                score[j] *= math.exp(-(tiou * tiou) / sigma)
            if score[j] >= min_score:
                kept.append(j)
        if len(kept) < len(score):
            start, end, score, index = ([column[j] for j in kept] for column in (start, end, score, index))
    return indices, picked


def clustered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """3000 proposals over two minutes, 0.5 to 30 s long: a long video."""
    start, length = rng.uniform(0, 100, 3000), np.exp(rng.uniform(np.log(0.5), np.log(30), 3000))
    return np.stack([start, start + length], 1), rng.random(3000)


def dense(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """3500 proposals on the grid of one window of 256 snippets, 1 to 64 long, as BCNet gives for one window."""
    start, length = rng.integers(0, 256, 3500), rng.integers(1, 65, 3500)
    return np.stack([start, np.minimum(start + length, 256)], 1).astype(float), rng.random(3500) ** 2
