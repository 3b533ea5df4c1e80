"""The operations that the engine's networks are written in, and the types that pass between them.

A network is written once, against `Kernels`. Two classes implement it: `native.NativeKernels` in C++ for a CPU, and
`torch_backend.TorchKernels` in PyTorch for any device. Type parameters name what differs between them:

    parameter   NativeKernels                               TorchKernels
    S           NumPy array [..., T, d], one window         tensor [..., B, T, d], a batch of windows
    W           packed weight                               tensor [outputs, inputs]
    Stack       list of packed weights                      tensor [n, outputs, inputs]

T is any number of rows: snippets, anchors, edges of a graph. Leading axes count streams.

Every operation that computes a sequence names the buffer of its result, `out`. The result is valid until an operation
takes the same buffer again. Operands must lie in other buffers than the result, unless an operation says otherwise.
TorchKernels ignore the names, because PyTorch manages the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ...ops.sampling_plan import SamplingPlan
from .buffers import Buffer
from .map_cells import MapCells

A = TypeVar("A")


class Array(Protocol):
    """A sequence as networks use it beyond the operations: slices and shapes."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self: A, index: Any, /) -> A: ...


S = TypeVar("S", bound=Array)
W = TypeVar("W")
W_contra = TypeVar("W_contra", contravariant=True)
Stack = TypeVar("Stack")


@dataclass(frozen=True)
class LinearLayer(Generic[S, W]):
    """A linear layer with bias.

    weight: [outputs, inputs]
    bias: [outputs]
    """

    weight: W
    bias: S


@dataclass(frozen=True)
class ConvolutionLayer(Generic[S, W]):
    """A convolution of three taps over time, padded with zeros.

    weight: [outputs, 3 * inputs / groups] packed, or [outputs, inputs / groups, 3]
    bias: [outputs]
    groups: blocks of channels that do not mix
    """

    weight: W
    bias: S
    groups: int


@dataclass(frozen=True)
class FeedForwardWeights(Generic[W]):
    """A feed-forward network without biases.

    first: [hidden, d]
    second: [d, hidden]
    """

    first: W
    second: W


@dataclass(frozen=True)
class FoldedWeights(Generic[S, W]):
    """An attention unit's output layer F and a feed-forward network W1, W2 with the LayerNorm between them folded in.

    output: F, [d, attended columns]
    attended: W1 F, [hidden, attended columns]
    sums: W1 1, [hidden], the sums of W1's rows
    second: W2, [d, hidden]
    """

    output: W
    attended: W
    sums: S
    second: W


class Kernels(Protocol[S, W, Stack]):
    """The arithmetic of a network on one device in one precision.

    device: where results lie
    accumulation_dtype: dtype of sums and results, float32 or float64
    batches_layers: whether one product for all boundary layers pays
    projects_samples: whether projecting features before sampling them can pay
    folding: these kernels where `FoldingKernels` are implemented and pay, else None
    """

    device: torch.device
    accumulation_dtype: torch.dtype
    batches_layers: bool
    projects_samples: bool
    folding: FoldingKernels[S, W] | None

    def arithmetic(self) -> AbstractContextManager[None]:
        """Set PyTorch's precision switches for the operations inside the block."""
        ...

    # ---- Preparation, once per network

    def weight(self, weight: Tensor, exact: bool = False) -> W:
        """Prepare a weight [outputs, inputs]; an `exact` one is not rounded to 8 bits."""
        ...

    def weight_slices(self, weight: Tensor, slices: Sequence[tuple[int, int]]) -> list[W]:
        """Prepare ranges of rows (first, last) of a weight [outputs, inputs]. The first range is all rows.

        Aliases: the other ranges share its memory where the layout allows.
        """
        ...

    def stack(self, weights: list[W]) -> Stack:
        """Combine weights of one shape for `linear_each` and `finish_attention_each`."""
        ...

    def convolution_layer(self, weight: Tensor, bias: Tensor, groups: int) -> ConvolutionLayer[S, W]:
        """Prepare weight [outputs, inputs / groups, 3] and bias [outputs]; never rounded to 8 bits."""
        ...

    def map_weight(self, weight: Tensor) -> W:
        """Prepare the weight [outputs, inputs, 3, 3] of a convolution over a map."""
        ...

    def anchor_weight(self, parts: Iterable[Tensor], outputs: int) -> W:
        """Prepare a weight [outputs, N, C] for N sampled bins, read in parts so that it is never in memory twice.

        Requires: every part but the last has a multiple of the C++ panel (32) outputs.
        """
        ...

    def constant(self, tensor: Tensor) -> S:
        """Copy a tensor into the kernels' dtype and device."""
        ...

    def product(self, x: Tensor, weight: Tensor) -> S:
        """Compute the constant x weight^T from x [rows, inputs] and weight [outputs, inputs]."""
        ...

    def anchors(self, plan: SamplingPlan) -> AnchorKernels[S, W]:
        """Prepare the sampling of anchors."""
        ...

    def map(self, plan: SamplingPlan, cells: MapCells, *, convolved: bool, projects: bool) -> MapKernels[S, W]:
        """Prepare the layers over a proposal map.

        plan: samples `cells.sampled`
        convolved: whether the layers over the map are convolutions of 3 by 3
        projects: whether features are projected before they are sampled
        """
        ...

    # ---- Conversion

    def features(self, features: Tensor) -> S:
        """Convert features [..., C, T] of any float dtype, device and strides to a sequence [..., T, C].

        Aliases: the features' memory where nothing has to be converted.
        """
        ...

    def result(self, x: S) -> Tensor:
        """Convert a sequence to a tensor of `accumulation_dtype` that outlives the buffer."""
        ...

    def cast(self, x: S, *, out: Buffer) -> S:
        """Convert a sequence of kernels of another precision."""
        ...

    def tensor(self, x: S) -> Tensor:
        """View a sequence as a tensor."""
        ...

    def sequence(self, x: Tensor) -> S:
        """View a tensor of the kernels' dtype as a sequence; strided ones are copied."""
        ...

    def select_rows(self, x: S, rows: Tensor) -> S:
        """Select rows of each stream: x [2, ..., T, d] -> [2, ..., n, d].

        rows: [n] int64, ascending, n >= 1

        Aliases: the result may lie in x's memory, whose contents are lost.
        """
        ...

    # ---- Layers

    def linear(
        self,
        x: S,
        weight: W,
        *,
        out: Buffer,
        bias: S | None = None,
        relu: bool = False,
        residual: S | None = None,
        norm: bool = False,
    ) -> S:
        """LayerNorm(relu(x weight^T + bias) + residual), each step where it is asked for: [..., T, outputs]."""
        ...

    def linear_each(self, xs: S, weights: Stack, *, out: Buffer, residual: S | None = None, norm: bool = False) -> S:
        """`linear` for every x of xs [n, ..., T, d] with a weight of its own: [n, ..., T, outputs].

        residual: broadcastable to the result
        """
        ...

    def feed_forward(self, x: S, network: FeedForwardWeights[W], *, out: Buffer) -> S:
        """LayerNorm(relu(x first^T) second^T + x): [..., T, d]."""
        ...

    def feed_forward_each(self, xs: S | list[S], networks: Sequence[FeedForwardWeights[W]], *, out: Buffer) -> S:
        """`feed_forward` for every x with a network of its own: n of [..., T, d] -> [n, ..., T, d]."""
        ...

    def finish_attention_each(
        self, attended: S, outputs: Stack, residual: S, networks: Sequence[FeedForwardWeights[W]], *, scratch: Buffer
    ) -> S:
        """LayerNorm(attended output^T + residual), then a feed-forward network, for every stream: [n, ..., T, d].

        scratch: buffer of the stream between both steps

        Aliases: the result may lie in the memory of residual.
        """
        ...

    def convolution(self, x: S, layer: ConvolutionLayer[S, W], *, out: Buffer, added: S | None = None) -> S:
        """relu(convolution over time + bias) + added: [..., T, inputs] -> [..., T, outputs]."""
        ...

    def attention(self, query: S, key: S, values: tuple[S, ...], heads: int, *, out: Buffer) -> S:
        """softmax(query key^T / sqrt(D)) value per head, for one or two values: [values, ..., T, heads * D'].

        query, key: [..., T, heads * D] and [..., T', heads * D]
        values: [..., T', heads * D'] each
        """
        ...


class FoldingKernels(Protocol[S, W]):
    """Kernels for the rewrite `folded_norm`."""

    def empty(self, buffer: Buffer, *shape: int) -> S:
        """Take a buffer whose parts are written by separate calls."""
        ...

    def folded_feed_forward(self, attended: S, residual: S, hidden: S, weights: FoldedWeights[S, W], out: S) -> None:
        """Write LayerNorm(relu(y W1^T) W2^T + y) with y = LayerNorm(attended F^T + residual), the names of
        `FoldedWeights`.

        attended: [T, attended columns]
        residual: [T, d]
        hidden: residual W1^T, [T, hidden]
        out: [T, d]
        """
        ...


class AnchorKernels(Protocol[S, W_contra]):
    """Sampling of P anchors with N bins each from streams [..., T, C]."""

    def sample(self, streams: list[S], added: list[S], *, out: Buffer) -> S:
        """Sampled features, bin by bin, + added: [streams, ..., P, N * C]. added: [P, N * C] per stream."""
        ...

    def project(self, streams: list[S], weight: W_contra, added: list[S], *, out: Buffer) -> S:
        """Sampled features times a weight of `anchor_weight`, + added: [streams, ..., P, outputs].

        added: [P, outputs] per stream
        """
        ...


class MapKernels(Protocol[S, W]):
    """The layers over a proposal map, on its cells [..., cells, C]. Bins come from one stream or from several.

    spread: [rows * columns] int64, for every cell of the map the computed cell that has its scores
    """

    spread: Tensor

    def sample(self, streams: list[S], *, out: Buffer) -> S:
        """Features of the sampled cells, bin by bin: [..., P, N * C]."""
        ...

    def first_layer(self, x: S, layer: LinearLayer[S, W], *, out: Buffer) -> S:
        """relu(x weight^T + bias) of the sampled cells, laid out as the next layer reads them."""
        ...

    def project(
        self, streams: list[S], sampled: LinearLayer[S, W], first: LinearLayer[S, W], *, scratch: Buffer, out: Buffer
    ) -> S:
        """`first_layer` of relu(sampled features times a weight of `anchor_weight` + bias).

        scratch: buffer of the projection, of which few columns are in memory at a time
        """
        ...

    def convolve(self, x: S, layers: Sequence[LinearLayer[S, W]], *, scratch: Buffer, out: Buffer) -> S:
        """Two convolutions of 3 by 3 with ReLU: the computed cells of the second, [..., cells, C].

        layers: with weights of `map_weight`
        scratch: buffer of the first convolution
        Aliases: x may lie in `out`.
        """
        ...
