"""MUSES-Net's inference on a CPU in C++ (csrc/include/second_stage.h, layers.h). `reference.muses` defines it."""

from __future__ import annotations

import enum
import threading
from collections.abc import Mapping

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from ...config import MUSESConfig
from ...profiling import stage
from ..outputs import SecondStageOutput
from ..reference.muses import BINS, INNER_BINS, roi_bins
from .buffers import CACHE_LINE, Buffer
from .muses import REACH, merged_layer
from .native import NativeKernels
from .native_weights import PackedWeight, extension
from .short_filters import POINTS, TILE, input_sums, output_sums, tiles_of, transformed_taps

MERGED_TAPS = 2 * REACH + 1


class MUSESBuffer(Buffer):
    """The buffers of a video. Both convolutions and both heads use the same."""

    SIGNALS = enum.auto()  # transformed inputs of a convolution, or these with zeros around
    PRODUCTS = enum.auto()  # transformed outputs
    SEQUENCE_1 = enum.auto()
    SEQUENCE_2 = enum.auto()
    POOLED = enum.auto()
    HIDDEN = enum.auto()
    ACTIVITY = enum.auto()
    COMPLETENESS = enum.auto()


class NativeMUSES:
    """Features of a video and regions to scores, with all rewrites. Calls from several threads wait for each other."""

    def __init__(
        self, config: MUSESConfig, state: Mapping[str, Tensor], precision: str, strassen: bool, short_filters: bool
    ) -> None:
        """Prepare all weights.

        state: the parameters of `reference.muses.MUSES` by name, not needed afterwards
        precision: "fp32" or "fp64"
        strassen: whether large products use the algorithm, in fp32
        short_filters: whether convolutions are made of short ones, see `short_filters`
        """
        self.config, self.kernels, self._lock = config, NativeKernels(precision, strassen), threading.Lock()
        convolution = _ShortFilters if short_filters else _Taps
        self.convolutions = [
            convolution(self.kernels, *merged_layer(state, f"backbone.layers.{layer}")) for layer in (0, 2)
        ]

        def linear(*names: str, bins: int = 1) -> tuple[PackedWeight, np.ndarray]:
            weight, bias = (
                torch.cat([state[f"roi_head.{name}.{part}"] for name in names]) for part in ("weight", "bias")
            )
            # Maxima lie channel by channel for each bin; the release flattens them bin by bin for each channel.
            by_bins = weight.unflatten(1, (-1, bins)).transpose(1, 2).flatten(1)
            return self.kernels.weight(by_bins), self.kernels.constant(bias)

        inner = len(range(BINS)[INNER_BINS])
        self.activity = linear("Act_MLP.0", bins=inner), linear("activity_fc")
        self.completeness = linear("Comp_MLP.0", bins=BINS), linear("completeness_fc", "regressor_fc")

    def __call__(self, features: Tensor, rois: Tensor) -> SecondStageOutput:
        """Score proposals; see `reference.muses.MUSES.forward`."""
        kernels, classes, channels = self.kernels, self.config.classes, self.config.channels[1]
        with self._lock:
            with stage("sequence"):
                # Features usually are the transpose of what was read, which is then used as it is.
                x = features.detach().to("cpu", kernels.accumulation_dtype).T.contiguous().numpy()
                first, second = self.convolutions
                x = second(first(x, MUSESBuffer.SEQUENCE_1), MUSESBuffer.SEQUENCE_2)
            with stage("regions"):
                ranges = roi_bins(rois.cpu(), len(x)).contiguous().numpy()
                pooled = kernels.workspace.take(MUSESBuffer.POOLED, len(ranges), BINS * channels)
                extension().range_maxima(x, ranges, pooled, threads=torch.get_num_threads())
            with stage("heads"):
                inner = pooled[:, INNER_BINS.start * channels : INNER_BINS.stop * channels]
                activity = self._head(inner, *self.activity, MUSESBuffer.ACTIVITY)
                of_regions = self._head(pooled, *self.completeness, MUSESBuffer.COMPLETENESS)
        completeness, regression = of_regions.split([classes, 2 * classes], dim=1)
        return SecondStageOutput(activity, completeness, regression.unflatten(1, (classes, 2)))

    def _head(
        self,
        x: np.ndarray,
        first: tuple[PackedWeight, np.ndarray],
        second: tuple[PackedWeight, np.ndarray],
        out: Buffer,
    ) -> Tensor:
        hidden = self.kernels.linear(x, first[0], bias=first[1], relu=True, out=MUSESBuffer.HIDDEN)
        return self.kernels.result(self.kernels.linear(hidden, second[0], bias=second[1], out=out))


class _Taps:
    """relu(convolution + bias) as one product: a row and those after it are the taps of an output."""

    def __init__(self, kernels: NativeKernels, weight: Tensor, bias: Tensor) -> None:
        """weight [outputs, inputs, taps], bias [outputs], float64."""
        self.kernels, self.width = kernels, _padded(weight.shape[1])
        self.weight = kernels.weight(_side_by_side(weight.permute(2, 0, 1), self.width))
        self.bias = kernels.constant(bias)

    def __call__(self, x: np.ndarray, out: Buffer) -> np.ndarray:
        """[T, inputs] -> [T, outputs]."""
        length, channels = x.shape
        rows = self.kernels.workspace.take(MUSESBuffer.SIGNALS, length + 2 * REACH, self.width, padded=False)
        rows[...] = 0
        rows[REACH : REACH + length, :channels] = x
        return self.kernels.linear(
            _overlapping(rows, length, MERGED_TAPS), self.weight, bias=self.bias, relu=True, out=out
        )


class _ShortFilters:
    """The same by short filters."""

    def __init__(self, kernels: NativeKernels, weight: Tensor, bias: Tensor) -> None:
        """weight [outputs, inputs, taps], bias [outputs], float64."""
        self.kernels, self.width = kernels, _padded(weight.shape[1])
        by_point = torch.from_numpy(transformed_taps(weight.numpy()))
        self.weights = [kernels.weight(_side_by_side(groups, self.width)) for groups in by_point]
        self.bias = kernels.constant(bias)

    def __call__(self, x: np.ndarray, out: Buffer) -> np.ndarray:
        """[T, inputs] -> [T, outputs]."""
        library, threads, take = extension(), torch.get_num_threads(), self.kernels.workspace.take
        (length, channels), groups, tiles = x.shape, MERGED_TAPS // TILE, tiles_of(len(x))
        signals = take(MUSESBuffer.SIGNALS, POINTS * (tiles + groups - 1), self.width, padded=False)
        signals[:, channels:] = 0
        rows, weights = input_sums(length, MERGED_TAPS, x.dtype)
        library.weighted_rows(x, rows, weights, signals[:, :channels], threads=threads)
        products = take(MUSESBuffer.PRODUCTS, POINTS * tiles, len(self.bias))
        for point, weight in enumerate(self.weights):
            signal = _overlapping(signals[point * (tiles + groups - 1) :], tiles, groups)
            library.linear(signal, weight, products[point * tiles : (point + 1) * tiles], threads=threads)
        result = take(out, length, len(self.bias))
        rows, weights = output_sums(length, x.dtype)
        library.weighted_rows(products, rows, weights, result, bias=self.bias, relu=True, threads=threads)
        return result


def _padded(channels: int) -> int:
    """Elements of a row with zeros at its end. At a power of two, rows would compete for a few sets of the cache."""
    return (-(-channels // CACHE_LINE) | 1) * CACHE_LINE


def _side_by_side(weights: Tensor, width: int) -> Tensor:
    """Weights [taps, outputs, inputs] of rows of that width as one: [outputs, taps * width]."""
    return torch.nn.functional.pad(weights, (0, width - weights.shape[2])).transpose(0, 1).flatten(1)


def _overlapping(x: np.ndarray, rows: int, taps: int) -> np.ndarray:
    """Each row of x [.., width] with those after it: a view [rows, taps * width]."""
    return as_strided(x, (rows, taps * x.shape[1]), x.strides, writeable=False)
