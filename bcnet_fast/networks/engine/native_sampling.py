"""Sampling of anchors by the C++ kernels."""

# Operations must have the signatures of `Kernels`.
# pyright: reportIncompatibleMethodOverride=error

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

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
class AnchorGroups:
    """The same weights by groups of anchors that read alike, as projections take them. See `SamplingPlan`.

    anchors: P
    sources: [N] int32, the stream of a bin
    order: [groups, anchors of a group] int32, -1 where a group has fewer
    step: [groups] int32, rows between the common taps of an anchor and the next
    offsets: [lists + 1] int32, where a list of taps begins
    rows: [listed taps] int32, row n * T + t of a tap
    weights: [listed taps], in the kernels' dtype
    """

    anchors: int
    sources: np.ndarray
    order: np.ndarray
    step: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(plan: SamplingPlan) -> AnchorGroups:
        lists = plan.order, plan.step, plan.group_offsets, plan.group_rows, plan.group_weights
        return AnchorGroups(plan.anchors, _sources(plan), *(tensor.numpy() for tensor in lists))

    @property
    def lists(self) -> tuple[np.ndarray, ...]:
        """The arguments of the C++ functions after the weight."""
        return self.order, self.step, self.offsets, self.rows, self.weights


class NativeAnchors(AnchorKernels[np.ndarray, PackedWeight]):
    """Both ways of sampling, one stream at a time."""

    def __init__(self, plan: SamplingPlan, workspace: Workspace) -> None:
        self.bins, self.groups, self.workspace = Bins.of(plan), AnchorGroups.of(plan), workspace

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
        result = self.workspace.take(out, len(streams), self.groups.anchors, weight.outputs)
        groups, threads = self.groups, torch.get_num_threads()
        for x, more, to in zip(streams, added, result, strict=True):
            extension().project_anchors(x, groups.sources, weight, *groups.lists, to, added=more, threads=threads)
        return result


def _sources(plan: SamplingPlan) -> np.ndarray:
    return np.repeat(np.arange(len(plan.bins), dtype=np.int32), plan.bins)
