"""The compiled loop that bcnet_fast.compat.nms_1d_cpu replaces, and the candidates that both are measured on."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import torch

from . import soft_nms_cases
from .compile_library import compile_library


def compile_scalar(folder: Path) -> ctypes.CDLL:
    """Build nms_1d_scalar.cpp as a shared library. InputError without a C++ compiler."""
    library = compile_library(Path(__file__).with_name("nms_1d_scalar.cpp"), folder)
    pointer, number, count = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64
    library.nms_1d_scalar.argtypes = [pointer, pointer, count, number, *[pointer] * 4]
    library.nms_1d_scalar.restype = None
    library.soft_nms_1d_scalar.argtypes = [
        *(pointer, pointer, count, number, number, number, ctypes.c_int, number, number),
        *[pointer] * 6,
    ]
    library.soft_nms_1d_scalar.restype = count
    return library


class Scalar:
    """The functions of the extension on one input, whose memory is taken beforehand: no checks, no PyTorch around."""

    def __init__(self, library: ctypes.CDLL, segs: torch.Tensor, scores: torch.Tensor) -> None:
        self.library, self.segs, self.scores = library, segs, scores
        self.columns = [torch.empty_like(scores) for _ in range(4)]
        self.keep = torch.empty(len(scores), dtype=torch.bool)
        self.index = torch.empty(len(scores), dtype=torch.int64)

    def nms(self, iou_threshold: float) -> torch.Tensor:
        order = self.scores.sort(0, descending=True)[1]
        columns = [column.data_ptr() for column in self.columns[:3]]
        arguments = self.segs.data_ptr(), order.data_ptr(), len(order), iou_threshold, *columns, self.keep.data_ptr()
        self.library.nms_1d_scalar(*arguments)
        return order[self.keep]

    def softnms(
        self,
        dets: torch.Tensor,
        iou_threshold: float,
        sigma: float,
        min_score: float,
        method: int,
        t1: float = 0.0,
        t2: float = 0.0,
    ) -> torch.Tensor:
        options = iou_threshold, sigma, min_score, method, t1, t2
        work = [tensor.data_ptr() for tensor in (*self.columns, self.index, dets)]
        inputs = self.segs.data_ptr(), self.scores.data_ptr(), len(self.scores)
        return self.index[: self.library.soft_nms_1d_scalar(*inputs, *options, *work)]


def candidates(name: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first n of "long video" or "one window", float32."""
    make = {"long video": soft_nms_cases.clustered, "one window": soft_nms_cases.dense}[name]
    segments, scores = make(np.random.default_rng(0))
    return torch.from_numpy(segments[:n]).float(), torch.from_numpy(scores[:n]).float()
