"""The engine's arithmetic on a CPU, in C++ (csrc/include/layers.h, attention.h), one window at a time."""

# Operations must have the signatures of `Kernels`.
# pyright: reportIncompatibleMethodOverride=error

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...ops.sampling_plan import SamplingPlan
from .buffers import Buffer, Workspace
from .kernels import ConvolutionLayer, FeedForwardWeights, FoldedWeights, FoldingKernels, Kernels
from .map_cells import MapCells
from .native_map import NativeMap
from .native_sampling import NativeAnchors
from .native_weights import PackedWeight, extension, packed, packed_parts, packed_slices

EPS = 1e-5  # epsilon of every LayerNorm
# Inputs and outputs from which Strassen's algorithm is worth its sums.
STRASSEN_FROM = 256
ROWS_AT_A_TIME = 128  # rows that `select_rows` moves through a small copy


class NativeKernels(Kernels[np.ndarray, PackedWeight, list[PackedWeight]], FoldingKernels[np.ndarray, PackedWeight]):
    """float32, float64, or float32 with the products of most layers in 8 bits. See `Kernels` for the operations.

    A network allocates no sequence from its second window on: results lie in the buffers of a workspace.
    """

    def __init__(self, precision: str, strassen: bool = False) -> None:
        """precision: "fp32", "fp64" or "int8"; strassen: whether to apply the algorithm to large products of fp32."""
        self.int8 = precision == "int8"
        self.strassen = strassen and precision == "fp32"
        self.device = torch.device("cpu")
        self.dtype = np.dtype(np.float64 if precision == "fp64" else np.float32)
        self.accumulation_dtype = torch.float64 if precision == "fp64" else torch.float32
        self.workspace = Workspace(self.dtype)
        self.batches_layers = False  # the product's result would not fit the cache
        # In 8 bits, sampled features are multiplied in less time than their sparse projections are gathered.
        self.projects_samples = not self.int8
        self.folding = None if self.int8 else self

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # the precision is a property of the C++ function

    # ---- Preparation

    def weight(self, weight: Tensor, exact: bool = False) -> PackedWeight:
        return self._slices(weight, [(0, len(weight))], exact)[0]

    def weight_slices(self, weight: Tensor, slices: Sequence[tuple[int, int]]) -> list[PackedWeight]:
        return self._slices(weight, slices)

    def stack(self, weights: list[PackedWeight]) -> list[PackedWeight]:
        return weights

    def convolution_layer(
        self, weight: Tensor, bias: Tensor, groups: int
    ) -> ConvolutionLayer[np.ndarray, PackedWeight]:
        by_tap = self._array(weight).swapaxes(1, 2).reshape(len(weight), -1)
        return ConvolutionLayer(packed(by_tap, groups), self.constant(bias), groups)

    def map_weight(self, weight: Tensor) -> PackedWeight:
        # One group for each row of the kernel, whose channels lie column by column.
        by_row = self._array(weight).transpose(2, 0, 3, 1)  # [3, outputs, 3, inputs]
        return packed(by_row.reshape(*by_row.shape[:2], -1))

    def anchor_weight(self, parts: Iterable[Tensor], outputs: int) -> PackedWeight:
        return packed_parts((self._array(part.transpose(0, 1)) for part in parts), outputs, self.dtype)

    def constant(self, tensor: Tensor) -> np.ndarray:
        # A copy, because a view of a checkpoint would keep all touched pages of its file in memory.
        return np.array(tensor.detach().numpy(), self.dtype, order="C")

    def product(self, x: Tensor, weight: Tensor) -> np.ndarray:
        rows, out = np.ascontiguousarray(self._array(x)), np.empty((len(x), len(weight)), self.dtype)
        self._linear(rows, packed(self._array(weight)), out)
        return out

    def anchors(self, plan: SamplingPlan) -> NativeAnchors:
        return NativeAnchors(plan.to(dtype=self.accumulation_dtype), self.workspace)

    def map(self, plan: SamplingPlan, cells: MapCells, *, convolved: bool, projects: bool) -> NativeMap:
        plan = plan.to(dtype=self.accumulation_dtype)
        return NativeMap(plan, cells, self.workspace, convolved=convolved, projects=projects)

    def _slices(self, weight: Tensor, slices: Sequence[tuple[int, int]], exact: bool = False) -> list[PackedWeight]:
        array = self._array(weight)
        strassen = self.strassen and min(array.shape) >= STRASSEN_FROM and array.shape[1] % 2 == 0
        return packed_slices(array, slices, int8=self.int8 and not exact, strassen=strassen)

    def _array(self, tensor: Tensor) -> np.ndarray:
        """View a tensor that is about to be packed; copied where the dtype differs."""
        return tensor.detach().numpy().astype(self.dtype, copy=False)

    # ---- Conversion

    def features(self, features: Tensor) -> np.ndarray:
        return features.detach().to("cpu", self.accumulation_dtype).contiguous().numpy().T

    def result(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x.copy())

    def cast(self, x: np.ndarray, *, out: Buffer) -> np.ndarray:
        result = self.workspace.take(out, *x.shape)
        result[...] = x
        return result

    def tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x)

    def sequence(self, x: Tensor) -> np.ndarray:
        return x.contiguous().numpy()

    def select_rows(self, x: np.ndarray, rows: Tensor) -> np.ndarray:
        # In place. The numbers ascend, so every row is read before it is overwritten.
        memory = torch.from_numpy(_flat(x))
        numbers = torch.cat([rows, x.shape[1] + rows])
        begin = 0
        for some in numbers.split(ROWS_AT_A_TIME):
            memory[begin : begin + len(some)] = memory.index_select(0, some)
            begin += len(some)
        return memory[: len(numbers)].numpy().reshape(2, len(rows), x.shape[-1])

    # ---- Layers

    def linear(
        self,
        x: np.ndarray,
        weight: PackedWeight,
        *,
        out: Buffer,
        bias: np.ndarray | None = None,
        relu: bool = False,
        residual: np.ndarray | None = None,
        norm: bool = False,
    ) -> np.ndarray:
        result = self.workspace.take(out, *x.shape[:-1], weight.outputs)
        self._linear(x, weight, result, bias=bias, relu=relu, residual=residual, norm=norm)
        return result

    def linear_each(
        self,
        xs: np.ndarray,
        weights: list[PackedWeight],
        *,
        out: Buffer,
        residual: np.ndarray | None = None,
        norm: bool = False,
    ) -> np.ndarray:
        result = self.workspace.take(out, *xs.shape[:-1], weights[0].outputs)
        residuals = [None] * len(weights) if residual is None else np.broadcast_to(residual, result.shape)
        for x, weight, more, to in zip(xs, weights, residuals, result, strict=True):
            self._linear(x, weight, to, residual=more, norm=norm)
        return result

    def feed_forward(self, x: np.ndarray, network: FeedForwardWeights[PackedWeight], *, out: Buffer) -> np.ndarray:
        result = self.workspace.take(out, *x.shape)
        _feed_forward(_flat(x), network, _flat(result))
        return result

    def feed_forward_each(
        self,
        xs: np.ndarray | list[np.ndarray],
        networks: Sequence[FeedForwardWeights[PackedWeight]],
        *,
        out: Buffer,
    ) -> np.ndarray:
        result = self.workspace.take(out, len(networks), *xs[0].shape)
        for x, network, to in zip(xs, networks, result, strict=True):
            _feed_forward(x, network, to)
        return result

    def finish_attention_each(
        self,
        attended: np.ndarray,
        outputs: list[PackedWeight],
        residual: np.ndarray,
        networks: Sequence[FeedForwardWeights[PackedWeight]],
        *,
        scratch: Buffer,
    ) -> np.ndarray:
        # Stream by stream and back into the residual's memory, so that the scratch holds one stream.
        for x, output, network, to in zip(attended, outputs, networks, residual, strict=True):
            _feed_forward(self.linear(x, output, residual=to, norm=True, out=scratch), network, to)
        return residual

    def empty(self, buffer: Buffer, *shape: int) -> np.ndarray:
        return self.workspace.take(buffer, *shape)

    def folded_feed_forward(
        self,
        attended: np.ndarray,
        residual: np.ndarray,
        hidden: np.ndarray,
        weights: FoldedWeights[np.ndarray, PackedWeight],
        out: np.ndarray,
    ) -> None:
        parts = weights.output, weights.attended, weights.sums, weights.second
        options = {"eps": EPS, "threads": torch.get_num_threads()}
        extension().folded_feed_forward(attended, *parts, residual, hidden, out, **options)

    def convolution(
        self,
        x: np.ndarray,
        layer: ConvolutionLayer[np.ndarray, PackedWeight],
        *,
        out: Buffer,
        added: np.ndarray | None = None,
    ) -> np.ndarray:
        result = self.workspace.take(out, len(x), layer.groups * layer.weight.outputs)
        options = {"bias": layer.bias, "relu": True, "added": added, "threads": torch.get_num_threads()}
        extension().convolution(x, layer.weight, result, **options)
        return result

    def attention(
        self, query: np.ndarray, key: np.ndarray, values: tuple[np.ndarray, ...], heads: int, *, out: Buffer
    ) -> np.ndarray:
        options = {"heads": heads, "scale": (query.shape[-1] // heads) ** -0.5, "threads": torch.get_num_threads()}
        result = self.workspace.take(out, len(values), *query.shape[:-1], values[0].shape[-1])
        for stream in itertools.product(*map(range, query.shape[:-2])):
            of_stream = [value[stream] for value in values], [to[stream] for to in result]
            extension().attention(query[stream], key[stream], *of_stream, **options)
        return result

    def _linear(
        self,
        x: np.ndarray,
        weight: PackedWeight,
        out: np.ndarray,
        *,
        bias: np.ndarray | None = None,
        relu: bool = False,
        residual: np.ndarray | None = None,
        norm: bool = False,
    ) -> None:
        options = {"bias": bias, "relu": relu, "eps": EPS if norm else None, "threads": torch.get_num_threads()}
        added = None if residual is None else _flat(residual)
        extension().linear(_flat(x), weight, _flat(out), added=added, **options)


def _feed_forward(x: np.ndarray, network: FeedForwardWeights[PackedWeight], out: np.ndarray) -> None:
    options = {"added": x, "eps": EPS, "threads": torch.get_num_threads()}
    extension().feed_forward(x, network.first, network.second, out, **options)


def _flat(x: np.ndarray) -> np.ndarray:
    """View [..., T, d] as [rows, d]."""
    if x.ndim == 2:
        return x
    flat = x.view()
    flat.shape = (-1, x.shape[-1])  # raises where `reshape` would copy
    return flat
