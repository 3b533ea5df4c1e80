"""The engine's arithmetic by PyTorch and `bcnet_fast.ops`: any device, any dtype, whole batches of windows.

PyTorch manages the memory, and a CUDA graph keeps it, so the operations ignore the names of buffers.
"""

# Operations must have the signatures of `Kernels`.
# pyright: reportIncompatibleMethodOverride=error

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...ops.precision import gpu_products
from ...ops.sampling_plan import SamplingPlan
from .buffers import Buffer
from .kernels import AnchorKernels, ConvolutionLayer, FeedForwardWeights, Kernels, LinearLayer, MapKernels
from .map_cells import MapCells


class TorchKernels(Kernels[Tensor, Tensor, Tensor]):
    """One dtype for all weights and sequences. See `Kernels` for the operations."""

    def __init__(self, device: torch.device, dtype: torch.dtype, tf32: bool = False) -> None:
        """tf32: whether products of float32 may round their inputs to TF32 on a GPU."""
        self.device, self.dtype, self.tf32 = device, dtype, tf32
        self.accumulation_dtype = torch.promote_types(dtype, torch.float32)
        self.batches_layers = self.projects_samples = True
        self.folding = None  # saves less than its extra passes over memory take without C++

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        return gpu_products(self.tf32)

    # ---- Preparation

    def weight(self, weight: Tensor, exact: bool = False) -> Tensor:
        return self.constant(weight)

    def weight_slices(self, weight: Tensor, slices: Sequence[tuple[int, int]]) -> list[Tensor]:
        whole = self.constant(weight)
        return [whole[first:last] for first, last in slices]

    def stack(self, weights: list[Tensor]) -> Tensor:
        return torch.stack(weights)

    def convolution_layer(self, weight: Tensor, bias: Tensor, groups: int) -> ConvolutionLayer[Tensor, Tensor]:
        return ConvolutionLayer(self.constant(weight), self.constant(bias), groups)

    def map_weight(self, weight: Tensor) -> Tensor:
        return self.constant(weight)

    def anchor_weight(self, parts: Iterable[Tensor], outputs: int) -> Tensor:
        first, *rest = parts
        weight = torch.cat([first, *rest]) if rest else first
        return self.constant(weight.permute(1, 2, 0))  # [N, C, outputs]

    def constant(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self.dtype).contiguous()

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.constant(x.double() @ weight.double().T)

    def anchors(self, plan: SamplingPlan) -> TorchAnchors:
        return TorchAnchors(plan.to(self.device, self.accumulation_dtype))

    def map(self, plan: SamplingPlan, cells: MapCells, *, convolved: bool, projects: bool) -> TorchMap:
        # Libraries have convolutions for whole maps, so all cells are convolved.
        rows, columns = cells.source.shape
        source = torch.from_numpy(cells.source.ravel()).to(self.device)
        spread = torch.arange(rows * columns, device=self.device) if convolved else source
        return TorchMap(plan.to(self.device, self.accumulation_dtype), source, (rows, columns), spread)

    # ---- Conversion

    def features(self, features: Tensor) -> Tensor:
        return features.to(self.device, self.accumulation_dtype).to(self.dtype).mT

    def result(self, x: Tensor) -> Tensor:
        return x.to(self.accumulation_dtype)

    def cast(self, x: Tensor, *, out: Buffer) -> Tensor:
        return x.to(self.dtype)

    def tensor(self, x: Tensor) -> Tensor:
        return x

    def sequence(self, x: Tensor) -> Tensor:
        return x

    def select_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(-2, rows)

    # ---- Layers

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        out: Buffer,
        bias: Tensor | None = None,
        relu: bool = False,
        residual: Tensor | None = None,
        norm: bool = False,
    ) -> Tensor:
        result = F.linear(x, weight, bias)
        return _finish(result.relu_() if relu else result, residual, norm)

    def linear_each(
        self, xs: Tensor, weights: Tensor, *, out: Buffer, residual: Tensor | None = None, norm: bool = False
    ) -> Tensor:
        result = torch.matmul(xs, weights.mT.view(len(weights), *[1] * (xs.dim() - 3), *weights.mT.shape[1:]))
        return _finish(result, residual, norm)

    def feed_forward(self, x: Tensor, network: FeedForwardWeights[Tensor], *, out: Buffer) -> Tensor:
        return _finish(F.linear(F.linear(x, network.first).relu_(), network.second), x, norm=True)

    def feed_forward_each(
        self, xs: Tensor | list[Tensor], networks: Sequence[FeedForwardWeights[Tensor]], *, out: Buffer
    ) -> Tensor:
        results = [self.feed_forward(x, network, out=out) for x, network in zip(xs, networks, strict=True)]
        return torch.stack(results)

    def finish_attention_each(
        self,
        attended: Tensor,
        outputs: Tensor,
        residual: Tensor,
        networks: Sequence[FeedForwardWeights[Tensor]],
        *,
        scratch: Buffer,
    ) -> Tensor:
        normalized = self.linear_each(attended, outputs, residual=residual, norm=True, out=scratch)
        return self.feed_forward_each(normalized, networks, out=scratch)

    def convolution(
        self, x: Tensor, layer: ConvolutionLayer[Tensor, Tensor], *, out: Buffer, added: Tensor | None = None
    ) -> Tensor:
        result = F.conv1d(x.mT, layer.weight, layer.bias, padding=1, groups=layer.groups).relu_().mT
        return result.contiguous() if added is None else result + added

    def attention(self, query: Tensor, key: Tensor, values: tuple[Tensor, ...], heads: int, *, out: Buffer) -> Tensor:
        leading = query.shape[:-2]
        by_head = [t.flatten(0, -3).unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, *values)]
        query, key, value, *second = by_head
        if second:
            results = ops.difference_attention(query, key, value, second[0])
        else:
            results = (F.scaled_dot_product_attention(query, key, value),)
        merged = [result.transpose(1, 2).flatten(2).unflatten(0, leading) for result in results]
        return torch.stack(merged) if second else merged[0][None]


@dataclass(frozen=True, eq=False)
class TorchAnchors(AnchorKernels[Tensor, Tensor]):
    """Both ways of sampling by the operators of `bcnet_fast.ops`."""

    plan: SamplingPlan

    def sample(self, streams: list[Tensor], added: list[Tensor], *, out: Buffer) -> Tensor:
        plan = self.plan
        return torch.stack(
            [ops.anchor_sampling(x.mT, plan).flatten(2) + more for x, more in zip(streams, added, strict=True)]
        )

    def project(self, streams: list[Tensor], weight: Tensor, added: list[Tensor], *, out: Buffer) -> Tensor:
        plan = self.plan
        return torch.stack(
            [ops.anchor_projection(x.mT, plan, weight) + more for x, more in zip(streams, added, strict=True)]
        )


@dataclass(frozen=True, eq=False)
class TorchMap(MapKernels[Tensor, Tensor]):
    """Layers on sampled cells, then on the whole map.

    plan: of the sampled cells
    source: [cells] int64, the sampled cell that stands for each cell of the map
    shape: rows and columns of the map
    spread: [cells] int64, the row of the last layer with the scores of each cell
    """

    plan: SamplingPlan
    source: Tensor
    shape: tuple[int, int]
    spread: Tensor

    def sample(self, streams: list[Tensor], *, out: Buffer) -> Tensor:
        return ops.anchor_sampling(_features(streams), self.plan).flatten(2)

    def first_layer(self, x: Tensor, layer: LinearLayer[Tensor, Tensor], *, out: Buffer) -> Tensor:
        return F.linear(x, layer.weight, layer.bias).relu_()

    def project(
        self,
        streams: list[Tensor],
        sampled: LinearLayer[Tensor, Tensor],
        first: LinearLayer[Tensor, Tensor],
        *,
        scratch: Buffer,
        out: Buffer,
    ) -> Tensor:
        x = ops.anchor_projection(
            _features(streams), self.plan, sampled.weight, sampled.bias, relu=True, strategy="project"
        )
        return self.first_layer(x, first, out=out)

    def convolve(
        self, x: Tensor, layers: Sequence[LinearLayer[Tensor, Tensor]], *, scratch: Buffer, out: Buffer
    ) -> Tensor:
        cells = x[..., self.source, :].mT.unflatten(-1, self.shape)
        for layer in layers:
            cells = F.conv2d(cells, layer.weight, layer.bias, padding=1).relu_()
        return cells.flatten(-2).mT


def _features(streams: list[Tensor]) -> Tensor:
    """Arrange streams [B, T, C] as the operators take them: [B, C, T], or [B, G, C, T] of several."""
    return streams[0].mT if len(streams) == 1 else torch.stack(streams, dim=1).mT


def _finish(x: Tensor, residual: Tensor | None, norm: bool) -> Tensor:
    """x + residual, then LayerNorm: each where it is asked for. LayerNorm needs a residual."""
    if norm:
        assert residual is not None
        return ops.add_layer_norm(x, residual.expand_as(x))
    return x if residual is None else x + residual
