"""Sampling of anchors by the C++ kernels."""

# Operations must have the signatures of `Kernels`.
# pyright: reportIncompatibleMethodOverride=error

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...ops.anchor_groups import packed_plan
from ...ops.sampling_plan import SamplingPlan
from .buffers import Buffer, Workspace
from .kernels import AnchorKernels
from .native_weights import PackedWeight, extension


@dataclass(frozen=True, eq=False)
class Bins:
    """The snippets and weights of each bin, in the order of `ops.sample`'s arguments.

    first: [P, N] int32, the first snippet of a bin
    offsets: [P * N + 1] int32, where the weights of a bin begin
    weights: [taps], in the kernels' dtype
    sources: [N] int32, the stream of a bin
    """

    first: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray
    sources: np.ndarray

    @staticmethod
    def of(plan: SamplingPlan) -> Bins:
        return Bins(plan.first.numpy(), plan.offsets.numpy(), plan.weights.numpy(), _sources(plan))

    def sample(self, streams: np.ndarray, out: np.ndarray) -> None:
        """Write the features of every bin: streams [G, T, C] -> out [P, N * C], contiguous."""
        anchors, bins = self.first.shape
        out = out.reshape(1, anchors, bins, -1)
        lists = self.first, self.offsets, self.weights, self.sources
        extension().sample(streams[None], *lists, out, torch.get_num_threads())


@dataclass(frozen=True, eq=False)
class PackedAnchors:
    """The same weights as projections take them.

    sources: [N] int32, the stream of a bin
    plan: PackedPlan of the native extension
    """

    sources: np.ndarray
    plan: Any

    @staticmethod
    def of(plan: SamplingPlan) -> PackedAnchors:
        return PackedAnchors(_sources(plan), packed_plan(plan))


class NativeAnchors(AnchorKernels[np.ndarray, PackedWeight]):
    """Both ways of sampling, one stream at a time."""

    def __init__(self, plan: SamplingPlan, workspace: Workspace) -> None:
        self.bins, self.packed, self.workspace = Bins.of(plan), PackedAnchors.of(plan), workspace

    def sample(self, streams: list[np.ndarray], added: list[np.ndarray], *, out: Buffer) -> np.ndarray:
        anchors, bins = self.bins.first.shape
        result = self.workspace.take(out, len(streams), anchors, bins * streams[0].shape[-1], padded=False)
        for x, more, to in zip(streams, added, result, strict=True):
            self.bins.sample(np.ascontiguousarray(x)[None], to)
            torch.from_numpy(to).add_(torch.from_numpy(more))  # NumPy would use one thread
        return result

    def project(
        self, streams: list[np.ndarray], weight: PackedWeight, added: list[np.ndarray], *, out: Buffer
    ) -> np.ndarray:
        result = self.workspace.take(out, len(streams), self.packed.plan.anchors, weight.outputs)
        packed, threads = self.packed, torch.get_num_threads()
        for x, more, to in zip(streams, added, result, strict=True):
            extension().project_anchors(x, packed.sources, weight, packed.plan, to, added=more, threads=threads)
        return result


def _sources(plan: SamplingPlan) -> np.ndarray:
    return np.repeat(np.arange(len(plan.bins), dtype=np.int32), plan.bins)
