"""The engine's arithmetic on the CPU, in C++ (csrc/include/layers.h, attention.h), one window at a time.

Sequences are arrays [..., T, d]. Results lie in buffers that are made on their first use and kept, so that a network
allocates nothing from its second window on.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ops import native as _native
from ...ops.anchor_groups import anchor_groups
from ...ops.sampling_plan import SamplingPlan
from .map_cells import MapCells
from .native_map import NativeMap, _columns_at_a_time

EPS = 1e-5  # of every LayerNorm
LINE = 16  # elements, a cache line of float32
# What sampling and projecting read of a plan; gradients need more.
BIN_LISTS = ("first", "offsets", "weights")
# Inputs and outputs from which Strassen's algorithm is worth its sums.
STRASSEN_FROM = 256


class NativeKernels:
    """In float32 or float64, or in float32 with the products of most layers in 8 bits: "int8"."""

    device = torch.device("cpu")
    # The result of one product for all boundary layers would not fit the cache.
    batches = False

    def __init__(self, precision: str, strassen: bool = False) -> None:
        """precision: "fp32", "fp64" or "int8"; strassen: whether large products of fp32 are made that way."""
        self.int8 = precision == "int8"
        self.strassen = strassen and precision == "fp32"
        self.dtype = np.dtype(np.float64 if precision == "fp64" else np.float32)
        self.accumulated = torch.float64 if precision == "fp64" else torch.float32  # the same, as PyTorch has it
        self.buffers: dict[str, np.ndarray] = {}
        self.views: dict[str, tuple[Any, np.ndarray]] = {}  # the last one of each slot, with its shape
        # In 8 bits, sampled features are multiplied in less time than their sparse projections are gathered.
        self.projects = self.folds = not self.int8

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """Nothing to set: the precision is a matter of the kernels that run."""
        return contextlib.nullcontext()

    # ---- Weights

    def weights(self, weight: Tensor, cuts: Iterable[tuple[int, int]], exact: bool = False) -> list[Any]:
        """For each of `cuts`, a weight of the rows from one number to another of `weight` [outputs, inputs].

        The first cut is all of them, and the others share its memory where they are whole panels.
        """
        array, panel = self._array(weight), _native.module.PANEL
        outputs, inputs = array.shape
        strassen = self.strassen and min(outputs, inputs) >= STRASSEN_FROM and inputs % 2 == 0
        how = {"int8": self.int8 and not exact, "strassen": strassen}
        whole = _packed(array, **how)
        parts = []
        for first, last in cuts:
            if (first, last) == (0, len(array)):
                parts.append(whole)
            elif first % panel == 0 and last % panel == 0:
                parts.append(whole.part(first, last))
            else:
                parts.append(_packed(array[first:last], **how))
        return parts

    def weight(self, weight: Tensor, exact: bool = False) -> Any:
        """A weight [outputs, inputs]; `exact` ones are not rounded to 8 bits."""
        return self.weights(weight, [(0, len(weight))], exact)[0]

    def each(self, weights: list[Any]) -> list[Any]:
        """Weights of one shape for `linear_each`."""
        return weights

    def convolution_weight(self, weight: Tensor, bias: Tensor, groups: int) -> tuple[Any, np.ndarray]:
        """weight [C', C / groups, 3] and bias [C'], not rounded to 8 bits: convolutions are 1 % of the work."""
        by_tap = self._array(weight).swapaxes(1, 2).reshape(len(weight), -1)
        return _packed(by_tap, groups=groups), self.constant(bias)

    def anchor_weight(self, parts: Iterable[Tensor], outputs: int) -> Any:
        """A weight [outputs, bins, C] for `project`, in parts of whole panels of outputs."""
        packed, first = None, 0
        for part in parts:
            _, bins, columns = part.shape
            if packed is None:
                _native.module.return_freed_memory()  # see `_packed`
                packed = _native.module.PackedWeight.unpacked(bins, outputs, columns, self.dtype == np.float64)
            array = self._array(part.transpose(0, 1))
            packed.pack_outputs(array, first, torch.get_num_threads())
            first += len(part)
        return packed

    def constant(self, tensor: Tensor) -> np.ndarray:
        """A copy: a part of a checkpoint's file would keep in memory all of the file that was looked at with it."""
        return np.array(tensor.detach().numpy(), self.dtype, order="C")

    def _array(self, tensor: Tensor) -> np.ndarray:
        """For packing alone: without a copy where the dtype is right."""
        return tensor.detach().numpy().astype(self.dtype, copy=False)

    def product(self, x: Tensor, weight: Tensor) -> np.ndarray:
        """x weight^T as a constant."""
        x, out = np.ascontiguousarray(self._array(x)), np.empty((len(x), len(weight)), self.dtype)
        self._linear(x, _packed(self._array(weight)), out, None, False)
        return out

    def plan(self, plan: SamplingPlan, samples: bool = True, projects: bool = True) -> dict[str, Any]:
        """What sampling, projecting or both need of a plan."""
        plan = plan.to(dtype=self.accumulated)
        arrays: dict[str, Any] = {name: getattr(plan, name).numpy() for name in (BIN_LISTS if samples else ())}
        if projects:
            arrays["groups"] = anchor_groups(plan)
        sources = np.repeat(np.arange(len(plan.bins), dtype=np.int32), plan.bins)
        return arrays | {"anchors": plan.anchors, "sources": sources}

    # ---- Sequences

    def buffer(self, slot: str, *shape: int, padded: bool = True) -> np.ndarray:
        """Memory for [..., d] in the slot, which grows to the largest that was ever asked for.

        Padded rows are an odd number of cache lines apart: at a power of two, those of a tile would share a few places
        in the cache.
        """
        asked, view = self.views.get(slot, (None, None))
        if asked == (shape, padded):
            return view
        columns = (-(-shape[-1] // LINE) | 1) * LINE if padded else shape[-1]
        size = math.prod(shape[:-1]) * columns
        held = self.buffers.get(slot)
        if held is None or len(held) < size:
            held = self.buffers[slot] = _pages(size, self.dtype)
        view = held[:size].reshape(*shape[:-1], columns)[..., : shape[-1]]
        self.views[slot] = (shape, padded), view
        return view

    def features(self, window: Tensor) -> np.ndarray:
        """[C, T] of any float dtype, device and strides -> [T, C], without a copy where it can be looked at as that."""
        return window.detach().to("cpu", self.accumulated).contiguous().numpy().T

    def result(self, x: np.ndarray) -> Tensor:
        """A copy that outlives the buffer, float32 or float64."""
        return torch.from_numpy(x.copy())

    def rounded(self, x: np.ndarray, slot: str) -> np.ndarray:
        """A sequence of another precision in that of these kernels."""
        out = self.buffer(slot, *x.shape)
        out[...] = x
        return out

    def rows(self, x: np.ndarray, needed: Tensor) -> np.ndarray:
        """[2, P, d] -> [2, needed, d], in the same memory, whose contents are lost.

        needed: at least one number; they ascend, so what is overwritten was read before.
        """
        rows = torch.from_numpy(_flat(x))
        numbers = torch.cat([needed, x.shape[1] + needed])
        begin = 0
        for some in numbers.split(128):  # a small copy at a time
            rows[begin : begin + len(some)] = rows.index_select(0, some)
            begin += len(some)
        return rows[: len(numbers)].numpy().reshape(2, len(needed), x.shape[-1])

    def add(self, x: np.ndarray, other: np.ndarray, slot: str) -> np.ndarray:
        return np.add(x, other, out=self.buffer(slot, *x.shape))

    def tensor(self, x: np.ndarray) -> Tensor:
        """A sequence as PyTorch sees it, without a copy."""
        return torch.from_numpy(x)

    def sequence(self, x: Tensor) -> np.ndarray:
        """The way back."""
        return x.contiguous().numpy()

    def linear(
        self,
        x: np.ndarray,
        weight: Any,
        *,
        slot: str,
        bias: np.ndarray | None = None,
        relu: bool = False,
        added: np.ndarray | None = None,
        norm: bool = False,
    ) -> np.ndarray:
        """relu(x weight^T + bias) + added, LayerNorm: each where it is asked for"""
        out = self.buffer(slot, *x.shape[:-1], weight.outputs)
        self._linear(x, weight, out, added, norm, bias=bias, relu=relu)
        return out

    def linear_each(
        self, xs: Any, weights: list[Any], *, slot: str, added: np.ndarray | None = None, norm: bool = False
    ) -> np.ndarray:
        """The same for each x with a weight of its own."""
        out = self.buffer(slot, len(weights), *xs[0].shape[:-1], weights[0].outputs)
        for i, weight in enumerate(weights):
            self._linear(xs[i], weight, out[i], None if added is None else added[i], norm)
        return out

    def _linear(
        self, x: np.ndarray, weight: Any, out: np.ndarray, added: np.ndarray | None, norm: bool, **options: Any
    ) -> None:
        options |= {"added": None if added is None else _flat(added), "eps": EPS if norm else None}
        _native.module.linear(_flat(x), weight, _flat(out), threads=torch.get_num_threads(), **options)

    def feed_forward(self, x: np.ndarray, first: Any, second: Any, *, slot: str) -> np.ndarray:
        """LayerNorm(relu(x first^T) second^T + x); x lies in another slot."""
        out = self.buffer(slot, *x.shape)
        _native.module.feed_forward(
            _flat(x), first, second, _flat(out), added=_flat(x), eps=EPS, threads=torch.get_num_threads()
        )
        return out

    def feed_forward_each(self, xs: Any, weights: Any, *, slot: str) -> np.ndarray:
        out = self.buffer(slot, len(weights), *xs[0].shape)
        for x, network, to in zip(xs, weights, out, strict=True):
            _native.module.feed_forward(
                x, network.first, network.second, to, added=x, eps=EPS, threads=torch.get_num_threads()
            )
        return out

    def attended_each(
        self, xs: np.ndarray, outputs: list[Any], added: np.ndarray, networks: Any, *, slot: str
    ) -> np.ndarray:
        """LayerNorm(x output^T + added) and its feed-forward, for each x, in the memory of what is added.

        One after the other, so that what is between takes half the memory.
        """
        for x, output, network, to in zip(xs, outputs, networks, added, strict=True):
            y = self.linear(x, output, added=to, norm=True, slot=slot)
            _native.module.feed_forward(
                y, network.first, network.second, to, added=y, eps=EPS, threads=torch.get_num_threads()
            )
        return added

    def folded_feed_forward(
        self, x: np.ndarray, attention: Any, added: np.ndarray, first: np.ndarray, weights: Any, out: np.ndarray
    ) -> None:
        """y = LayerNorm(x attention^T + added), then its feed-forward, whose first weight makes `first` of `added`."""
        parts = attention, weights.attended, weights.sums, weights.second
        _native.module.folded_feed_forward(x, *parts, added, first, out, EPS, torch.get_num_threads())

    def convolution(
        self, x: np.ndarray, weight: tuple[Any, np.ndarray], *, slot: str, added: np.ndarray | None = None
    ) -> np.ndarray:
        """relu(convolution over time + bias) [+ added]"""
        packed, bias = weight
        out = self.buffer(slot, len(x), packed.groups * packed.outputs)
        _native.module.convolution(x, packed, out, bias=bias, relu=True, added=added, threads=torch.get_num_threads())
        return out

    def attention(
        self, query: np.ndarray, key: np.ndarray, values: tuple[np.ndarray, ...], heads: int, *, slot: str
    ) -> np.ndarray:
        """softmax(query key^T / sqrt(D)) value for each of the values: [values, ..., T, heads * D']"""
        scale = (query.shape[-1] // heads) ** -0.5
        out = self.buffer(slot, len(values), *query.shape[:-1], values[0].shape[-1])
        for index in itertools.product(*map(range, query.shape[:-2])):
            each = [value[index] for value in values], [o[index] for o in out]
            _native.module.attention(query[index], key[index], *each, heads, scale, torch.get_num_threads())
        return out

    def sample(self, streams: list[np.ndarray], plan: dict, added: list[np.ndarray], *, slot: str) -> np.ndarray:
        """Every anchor's sampled features, bin by bin, + added: [streams, P, N * C]"""
        anchors, bins = plan["first"].shape
        out = self.buffer(slot, len(streams), anchors, bins * streams[0].shape[-1], padded=False)
        for x, more, to in zip(streams, added, out, strict=True):
            rows = np.ascontiguousarray(x)[None, None]
            arrays = *(plan[name] for name in BIN_LISTS), plan["sources"]
            _native.module.sample(rows, *arrays, to.reshape(1, anchors, bins, -1), torch.get_num_threads())
            torch.from_numpy(to).add_(torch.from_numpy(more))  # by all threads
        return out

    def project(
        self, streams: list[np.ndarray], plan: dict, weight: Any, added: list[np.ndarray], *, slot: str
    ) -> np.ndarray:
        """Every anchor's sampled features times a weight, + added: [streams, P, O]"""
        out = self.buffer(slot, len(streams), plan["anchors"], weight.outputs)
        for x, more, to in zip(streams, added, out, strict=True):
            self._project(x, plan, weight, to, added=more)
        return out

    def _project(self, x: np.ndarray, plan: dict, weight: Any, out: np.ndarray, **options: Any) -> None:
        options["threads"] = torch.get_num_threads()
        _native.module.project_anchors(x, plan["sources"], weight, *plan["groups"], out, **options)

    # ---- Maps

    def map_weight(self, weight: Tensor) -> Any:
        """A convolution over the map [C', C, 3, 3]: a group for each of its rows, in which channels lie column by
        column."""
        by_row = self._array(weight).transpose(2, 0, 3, 1)  # [3, C', 3, C]
        return _packed(by_row.reshape(*by_row.shape[:2], -1))

    def map(self, cells: MapCells, convolved: bool) -> NativeMap:
        return NativeMap(cells, convolved)

    def project_cells(
        self, streams: list[np.ndarray], plan: dict, sampled: tuple[Any, np.ndarray], of: NativeMap, first: Any
    ) -> np.ndarray:
        """What `first_cells` makes of relu(every cell's sampled features times a weight + bias).

        Which is the largest of all results, and so is made some columns at a time. The plan's bins are of several
        streams.
        """
        (weight, bias), (layer, layer_bias) = sampled, first
        x = streams[0] if len(streams) == 1 else np.concatenate(streams)
        projected = self.buffer("sampled", plan["anchors"], _columns_at_a_time(weight.outputs))
        out = self._cells("cells", of, layer.outputs)
        options = {"bias": bias, "layer_bias": layer_bias, "threads": torch.get_num_threads()}
        groups, runs = plan["groups"], of.runs[0]
        _native.module.project_runs(x, plan["sources"], weight, *groups, projected, runs, layer, out, **options)
        return of.with_copies(out)

    def sample_cells(self, streams: list[np.ndarray], plan: dict, *, slot: str) -> np.ndarray:
        """Every cell's sampled features, bin by bin: [P, N * C]"""
        anchors, bins = plan["first"].shape
        out = self.buffer(slot, anchors, bins * streams[0].shape[-1], padded=False)
        arrays = *(plan[name] for name in BIN_LISTS), plan["sources"]
        to = out.reshape(1, anchors, bins, -1)
        _native.module.sample(np.stack(streams)[None], *arrays, to, torch.get_num_threads())
        return out

    def first_cells(self, x: np.ndarray, of: NativeMap, first: tuple[Any, np.ndarray]) -> np.ndarray:
        """relu(x first^T + bias) where the map has its cells, in the slot `cells`."""
        weight, bias = first
        out = self._cells("cells", of, weight.outputs)
        self._linear_runs(x, of.runs[0], weight, bias, out)
        return of.with_copies(out)

    def convolve_cells(self, x: np.ndarray, of: NativeMap, convolutions: list[tuple[Any, np.ndarray]]) -> np.ndarray:
        """What is computed of the last convolution over the map, [cells, C].

        x lies in the slot `cells`. Results lie in `sampled`, which nobody reads any more, and then there.
        """
        (weight, bias), (last, last_bias) = convolutions
        between = self._cells("sampled", of, weight.outputs)
        self._linear_runs(x, of.runs[1], weight, bias, between)
        out = self.buffer("cells", of.computed, last.outputs, padded=False)
        self._linear_runs(between, of.runs[2], last, last_bias, out)
        return out

    def _cells(self, slot: str, of: NativeMap, channels: int) -> np.ndarray:
        """A map to write to; its cells lie side by side where convolutions read them."""
        out = self.buffer(slot, of.rows, channels, padded=not of.convolved)
        out[of.border] = 0
        return out

    def _linear_runs(self, x: np.ndarray, runs: np.ndarray, weight: Any, bias: np.ndarray, out: np.ndarray) -> None:
        options = {"bias": bias, "relu": True, "threads": torch.get_num_threads()}
        _native.module.linear_runs(x, runs, weight, out, **options)


def _pages(size: int, dtype: np.dtype) -> np.ndarray:
    """Memory from the system, which goes back to it as a whole when a buffer grows: it leaves no hole behind."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, max(size, 1) * dtype.itemsize, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # only a wish
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype)


def _packed(weight: np.ndarray, **options: Any) -> Any:
    # Packed weights have pages of their own: what the C library keeps of what was freed before is of no use for them.
    _native.module.return_freed_memory()
    return _native.module.PackedWeight(weight, threads=torch.get_num_threads(), **options)


def _flat(x: np.ndarray) -> np.ndarray:
    """[..., T, d] -> [rows, d], without a copy."""
    if x.ndim == 2:
        return x
    flat = x.view()
    flat.shape = (-1, x.shape[-1])
    return flat
