"""The layers over a proposal map by the C++ kernels, on the cells that have to be computed."""

# Operations must have the signatures of `Kernels`.
# pyright: reportIncompatibleMethodOverride=error

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from ...ops.sampling_plan import SamplingPlan
from .buffers import Buffer, Workspace
from .kernels import LinearLayer, MapKernels
from .map_cells import MapCells, dilated
from .native_sampling import Bins, PackedAnchors
from .native_weights import PackedWeight, extension

LONGEST_RUN = 64  # rows, about as many as the C++ kernels work on at a time


class CellRows:
    """The row of each cell in memory.

    With convolutions, the cells that they read lie row by row, with zeros around the map where these are read. Without,
    cells lie in the order in which they are sampled.

    convolved: whether the layers over the map are convolutions of 3 by 3
    n_rows: stored rows
    row_runs: per layer, runs of source and target rows as `linear_runs` takes them, see `_runs`
    border: rows of zeros
    identical: rows of the cells that are no proposals but are read; the first is computed, the others are copies
    n_computed: cells of the last layer, in their order on the map
    spread: [rows * columns] int64, for every cell of the map the computed cell that has its scores
    """

    def __init__(self, cells: MapCells, convolved: bool) -> None:
        self.convolved = convolved
        if not convolved:
            self.n_rows = self.n_computed = len(cells.sampled)
            self.border = self.identical = slice(0)
            rows = np.arange(self.n_rows)
            self.row_runs = [_runs(rows[None], rows)]
            self.spread = torch.from_numpy(cells.source.ravel())
            return
        read, first, second = cells.layers
        stored = dilated(np.pad(first, 1), 1)  # with a border around the map
        self.n_rows = int(stored.sum())
        padded_row = _numbers(stored)
        row = padded_row[1:-1, 1:-1]
        self.border = padded_row[stored & ~np.pad(np.ones_like(read), 1)]
        self.identical = row[read & ~cells.valid]
        sampled = np.concatenate([row[cells.valid], self.identical[:1]])
        self.n_computed = int(second.sum())
        computed = _numbers(second)
        self.spread = torch.from_numpy(computed.ravel()[cells.copied.ravel()])
        # One group for each row of the kernel. It reads three cells side by side, from the left neighbour on.
        sources = np.stack([padded_row[above : above + len(read), :-2] for above in range(3)])
        self.row_runs = [
            _runs(np.arange(len(sampled))[None], sampled),
            _runs(sources[:, first], row[first]),
            _runs(sources[:, second], computed[second]),
        ]

    def copy_identical(self, x: np.ndarray) -> np.ndarray:
        """Copy the first of the identical cells to the others, in place."""
        x[self.identical] = x[self.identical][:1]
        return x


class NativeMap(MapKernels[np.ndarray, PackedWeight]):
    """Layers on the stored cells of a map."""

    def __init__(
        self, plan: SamplingPlan, cells: MapCells, workspace: Workspace, *, convolved: bool, projects: bool
    ) -> None:
        self.bins = None if projects else Bins.of(plan)
        self.packed = PackedAnchors.of(plan) if projects else None
        self.rows, self.workspace = CellRows(cells, convolved), workspace
        self.spread = self.rows.spread

    def sample(self, streams: list[np.ndarray], *, out: Buffer) -> np.ndarray:
        assert self.bins is not None
        anchors, bins = self.bins.first.shape
        result = self.workspace.take(out, anchors, bins * streams[0].shape[-1], padded=False)
        self.bins.sample(np.stack(streams), result)
        return result

    def first_layer(self, x: np.ndarray, layer: LinearLayer[np.ndarray, PackedWeight], *, out: Buffer) -> np.ndarray:
        result = self._cells(out, layer.weight.outputs)
        _linear_runs(x, self.rows.row_runs[0], layer, result)
        return self.rows.copy_identical(result)

    def project(
        self,
        streams: list[np.ndarray],
        sampled: LinearLayer[np.ndarray, PackedWeight],
        first: LinearLayer[np.ndarray, PackedWeight],
        *,
        scratch: Buffer,
        out: Buffer,
    ) -> np.ndarray:
        assert self.packed is not None
        x = streams[0] if len(streams) == 1 else np.concatenate(streams)
        anchors, runs = self.packed, self.rows.row_runs[0]
        # The projection is the largest of all results. It is computed some columns at a time, and the next layer's
        # products with these columns are added up.
        projected = self.workspace.take(scratch, anchors.plan.anchors, _columns_at_a_time(sampled.weight.outputs))
        result = self._cells(out, first.weight.outputs)
        options = {"bias": sampled.bias, "layer_bias": first.bias, "threads": torch.get_num_threads()}
        arguments = x, anchors.sources, sampled.weight, anchors.plan, projected, runs, first.weight, result
        extension().project_runs(*arguments, **options)
        return self.rows.copy_identical(result)

    def convolve(
        self,
        x: np.ndarray,
        layers: Sequence[LinearLayer[np.ndarray, PackedWeight]],
        *,
        scratch: Buffer,
        out: Buffer,
    ) -> np.ndarray:
        first, second = layers
        between = self._cells(scratch, first.weight.outputs)
        _linear_runs(x, self.rows.row_runs[1], first, between)
        result = self.workspace.take(out, self.rows.n_computed, second.weight.outputs, padded=False)
        _linear_runs(between, self.rows.row_runs[2], second, result)
        return result

    def _cells(self, buffer: Buffer, channels: int) -> np.ndarray:
        """Take a buffer for the stored cells, with zeros in the border.

        Convolutions read three cells as one row, so these must lie side by side.
        """
        out = self.workspace.take(buffer, self.rows.n_rows, channels, padded=not self.rows.convolved)
        out[self.rows.border] = 0
        return out


def _linear_runs(
    x: np.ndarray, runs: np.ndarray, layer: LinearLayer[np.ndarray, PackedWeight], out: np.ndarray
) -> None:
    threads = torch.get_num_threads()
    extension().linear_runs(x, runs, layer.weight, out, bias=layer.bias, relu=True, threads=threads)


def _columns_at_a_time(columns: int) -> int:
    """The fewest columns of a projection at a time that leave no thread idle. A thread takes panels of columns."""
    module = extension()
    together = module.PANEL * torch.get_num_threads()
    for part in range(module.RUN_PART, columns, module.RUN_PART):
        if -(-columns // part) * -(-part // together) <= -(-columns // together):
            return part
    return columns


def _numbers(mask: np.ndarray) -> np.ndarray:
    """Number the true elements of a mask in order; the values elsewhere mean nothing."""
    return mask.cumsum().reshape(mask.shape) - 1


def _runs(sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Split a mapping of rows into runs of consecutive ones, at most LONGEST_RUN long.

    sources: [groups, n], the first row that each group of the weight reads for a target row
    targets: [n]

    Returns [runs, groups + 2] int32: the source row of each group, the target row, the number of rows.
    """
    numbers = np.concatenate([sources, targets[None]])[:, np.argsort(targets)]
    apart = (np.diff(numbers) != 1).any(axis=0)
    begin = np.concatenate([[0], np.flatnonzero(apart) + 1, [len(targets)]])
    pieces = [np.linspace(a, b, -(-(b - a) // LONGEST_RUN), endpoint=False) for a, b in itertools.pairwise(begin)]
    begin = np.append(np.concatenate(pieces), len(targets)).astype(np.int64)
    return np.concatenate([numbers[:, begin[:-1]], np.diff(begin)[None]]).T.astype(np.int32, order="C")
