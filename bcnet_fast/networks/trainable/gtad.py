"""G-TAD for training. The sampled features of all cells are never in memory at once."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.precision import gpu_products
from ..graph import nearest as graph_of
from ..graph import neighbours
from ..outputs import MapOutput
from ..reference import gtad as reference
from ..reference.gtad import GraphBlock
from .map_heads import map_output


@torch.no_grad()
def nearest(x: Tensor, count: int) -> Tensor:
    """`networks.graph.nearest` in float32, though the products around it may be in bfloat16 or TF32."""
    with torch.autocast(x.device.type, enabled=False), gpu_products():
        return graph_of(x, count)


def graph_block(block: GraphBlock, x: Tensor, graph: Tensor) -> Tensor:
    """Apply a block. Its first layer on edges is linear in both nodes, so it is applied to nodes instead of edges."""
    first = cast(nn.Conv2d, block.sconvs[0])
    neighbour, node = first.weight.squeeze(-1).chunk(2, dim=1)
    edges = neighbours(F.conv1d(x, neighbour), graph) + F.conv1d(x, node, first.bias)[..., None]
    return torch.relu(block.tconvs(x) + x + block.sconvs[1:](edges).amax(dim=-1))


class GTAD(reference.GTAD):
    """Sub-graph localization: features [B, C, T] -> `MapOutput`."""

    def forward(self, features: Tensor) -> MapOutput:
        count = self.config.neighbours
        stem = self.backbone1[:2](features)
        base = graph_block(_block(self.backbone1, 2), stem, nearest(stem, count))
        graph = nearest(base, count)
        start, end = (head[1:](graph_block(_block(head), base, graph)) for head in (self.regu_s, self.regu_e))
        sequence = graph_block(_block(self.backbone2), base, graph)
        context = neighbours(sequence, nearest(sequence, count)).mean(dim=-1)
        first, heads = cast(nn.Conv2d, self.localization[0]), cast(nn.Sequential, self.localization[2:])
        return map_output(self, start, end, [sequence, context], first, heads)


def _block(modules: nn.Sequential, index: int = 0) -> GraphBlock:
    return cast(GraphBlock, modules[index])
