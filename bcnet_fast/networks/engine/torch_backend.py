"""The engine's arithmetic by PyTorch and `bcnet_fast.ops`: any device, any dtype, whole batches of windows.

Sequences are tensors [..., B, T, d]. `slot` means nothing here: PyTorch has its own memory, and a CUDA graph keeps it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops
from ...ops.precision import gpu_products
from ...ops.sampling_plan import SamplingPlan
from .map_cells import MapCells


class PortableKernels:
    """On a device, in the dtype of all weights and sequences; float32 in TF32 where that is asked for by name."""

    projects = batches = True
    folds = False  # what it saves is less than what the passes over memory take that C++ saves

    def __init__(self, device: torch.device, dtype: torch.dtype, tf32: bool = False) -> None:
        self.device, self.dtype, self.tf32 = device, dtype, tf32
        self.accumulated = torch.promote_types(dtype, torch.float32)  # of sums and results

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """The precision of products for all calls inside."""
        return gpu_products(self.tf32)

    # ---- Weights; `exact` is a matter of 8 bits alone

    def constant(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self.dtype).contiguous()

    def weight(self, weight: Tensor, exact: bool = False) -> Tensor:
        return self.constant(weight)

    def weights(self, weight: Tensor, cuts: Iterable[tuple[int, int]], exact: bool = False) -> list[Tensor]:
        whole = self.constant(weight)
        return [whole[first:last] for first, last in cuts]

    def each(self, weights: list[Tensor]) -> Tensor:
        return torch.stack(weights)

    def convolution_weight(self, weight: Tensor, bias: Tensor, groups: int) -> tuple[Tensor, Tensor, int]:
        return self.constant(weight), self.constant(bias), groups

    def anchor_weight(self, parts: Iterable[Tensor], outputs: int) -> Tensor:
        first, *others = parts
        weight = torch.cat([first, *others]) if others else first
        return self.constant(weight.permute(1, 2, 0))  # [N, C, O]

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x weight^T as a constant."""
        return self.constant(x.double() @ weight.double().T)

    def plan(self, plan: SamplingPlan, samples: bool = True, projects: bool = True) -> SamplingPlan:
        return plan.to(self.device, self.accumulated)

    # ---- Sequences

    def features(self, features: Tensor) -> Tensor:
        """[B, C, T] -> [B, T, C]"""
        return features.to(self.device, self.accumulated).to(self.dtype).mT

    def result(self, x: Tensor) -> Tensor:
        return x.to(self.accumulated)

    def rounded(self, x: Tensor, slot: str) -> Tensor:
        return x.to(self.dtype)

    def split(self, x: Tensor, parts: int) -> Tensor:
        """[B, T, parts * d] -> [parts, B, T, d]"""
        return x.unflatten(-1, (parts, -1)).movedim(-2, 0)

    def rows(self, x: Tensor, needed: Tensor) -> Tensor:
        return x.index_select(-2, needed)

    def add(self, x: Tensor, other: Tensor, slot: str) -> Tensor:
        return x + other

    def tensor(self, x: Tensor) -> Tensor:
        return x

    def sequence(self, x: Tensor) -> Tensor:
        return x

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        slot: str,
        bias: Tensor | None = None,
        relu: bool = False,
        added: Tensor | None = None,
        norm: bool = False,
    ) -> Tensor:
        out = F.linear(x, weight, bias)
        return _finish(out.relu_() if relu else out, added, norm)

    def linear_each(
        self, xs: Tensor, weights: Tensor, *, slot: str, added: Tensor | None = None, norm: bool = False
    ) -> Tensor:
        out = torch.matmul(xs, weights.mT.view(len(weights), *[1] * (xs.dim() - 3), *weights.mT.shape[1:]))
        return _finish(out, added, norm)

    def feed_forward(self, x: Tensor, first: Tensor, second: Tensor, *, slot: str) -> Tensor:
        return _finish(F.linear(F.linear(x, first).relu_(), second), x, norm=True)

    def feed_forward_each(self, xs: Any, weights: Any, *, slot: str) -> Tensor:
        made = [self.feed_forward(x, w.first, w.second, slot=slot) for x, w in zip(xs, weights, strict=True)]
        return torch.stack(made)

    def attended_each(self, xs: Tensor, outputs: Tensor, added: Tensor, networks: Any, *, slot: str) -> Tensor:
        return self.feed_forward_each(
            self.linear_each(xs, outputs, added=added, norm=True, slot=slot), networks, slot=slot
        )

    def convolution(
        self, x: Tensor, weight: tuple[Tensor, Tensor, int], *, slot: str, added: Tensor | None = None
    ) -> Tensor:
        kernel, bias, groups = weight
        out = F.conv1d(x.mT, kernel, bias, padding=1, groups=groups).relu_().mT
        return out.contiguous() if added is None else out + added

    def attention(self, query: Tensor, key: Tensor, values: tuple[Tensor, ...], heads: int, *, slot: str) -> Any:
        leading = query.shape[:-2]
        split = [t.flatten(0, -3).unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, *values)]
        function = F.scaled_dot_product_attention if len(values) == 1 else ops.difference_attention
        made = function(*split)
        made = (made,) if len(values) == 1 else made
        merged = [out.transpose(1, 2).flatten(2).unflatten(0, leading) for out in made]
        return merged if len(values) == 1 else torch.stack(merged)

    def sample(self, streams: list[Tensor], plan: SamplingPlan, added: list[Tensor], *, slot: str) -> Tensor:
        made = [ops.anchor_sampling(x.mT, plan).flatten(2) + more for x, more in zip(streams, added, strict=True)]
        return torch.stack(made)

    def project(
        self, streams: list[Tensor], plan: SamplingPlan, weight: Tensor, added: list[Tensor], *, slot: str
    ) -> Tensor:
        made = [ops.anchor_projection(x.mT, plan, weight) + more for x, more in zip(streams, added, strict=True)]
        return torch.stack(made)

    # ---- Maps

    def map_weight(self, weight: Tensor) -> Tensor:
        return self.constant(weight)

    def map(self, cells: MapCells, convolved: bool) -> PortableMap:
        """All cells are convolved: libraries have convolutions for whole maps."""
        rows, columns = cells.source.shape
        source = torch.from_numpy(cells.source.ravel()).to(self.device)
        spread = torch.arange(rows * columns, device=self.device) if convolved else source
        return PortableMap(source, (rows, columns), spread)

    def project_cells(
        self,
        streams: list[Tensor],
        plan: SamplingPlan,
        sampled: tuple[Tensor, Tensor],
        of: PortableMap,
        first: tuple[Tensor, Tensor],
    ) -> Tensor:
        x = ops.anchor_projection(_sources(streams), plan, *sampled, relu=True, strategy="project")
        return self.first_cells(x, of, first)

    def sample_cells(self, streams: list[Tensor], plan: SamplingPlan, *, slot: str) -> Tensor:
        return ops.anchor_sampling(_sources(streams), plan).flatten(2)

    def first_cells(self, x: Tensor, of: PortableMap, first: tuple[Tensor, Tensor]) -> Tensor:
        return F.linear(x, *first).relu_()

    def convolve_cells(self, x: Tensor, of: PortableMap, convolutions: list[tuple[Tensor, Tensor]]) -> Tensor:
        cells = x[..., of.source, :].mT.unflatten(-1, of.shape)
        for weight, bias in convolutions:
            cells = F.conv2d(cells, weight, bias, padding=1).relu_()
        return cells.flatten(-2).mT


@dataclass(frozen=True)
class PortableMap:
    source: Tensor  # [cells], the sampled features of each
    shape: tuple[int, int]
    spread: Tensor  # [cells], the results of each


def _sources(streams: list[Tensor]) -> Tensor:
    """As the operators take them: [B, C, T], or [B, G, C, T] of several."""
    return streams[0].mT if len(streams) == 1 else torch.stack(streams, dim=1).mT


def _finish(out: Tensor, added: Tensor | None, norm: bool) -> Tensor:
    if norm:
        return ops.add_layer_norm(out, added.expand_as(out))
    return out if added is None else out + added
