"""G-TAD for training, without the samples of every cell in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.precision import gpu_products
from ..graph import nearest as graph_of
from ..graph import neighbours
from ..outputs import MapOutput
from ..reference import gtad as reference
from ..reference.gtad import GraphBlock
from .map_heads import map_output


@torch.no_grad()
def nearest(x: Tensor, count: int) -> Tensor:
    """`reference.gtad.nearest` in float32, though the products around it may be in bfloat16 or TF32."""
    with torch.autocast(x.device.type, enabled=False), gpu_products():
        return graph_of(x, count)


def graph_block(block: GraphBlock, x: Tensor, graph: Tensor) -> Tensor:
    """The first layer on edges is linear in both nodes, so it is made for nodes, not for edges."""
    first = block.sconvs[0]
    of_others, of_own = first.weight.squeeze(-1).chunk(2, dim=1)
    edges = neighbours(F.conv1d(x, of_others), graph) + F.conv1d(x, of_own, first.bias)[..., None]
    return torch.relu(block.tconvs(x) + x + block.sconvs[1:](edges).amax(dim=-1))


class GTAD(reference.GTAD):
    """Sub-graph localization: features [B, C, T] -> `MapOutput`."""

    def forward(self, features: Tensor) -> MapOutput:
        count = self.config.neighbours
        stem = self.backbone1[1](self.backbone1[0](features))
        base = graph_block(self.backbone1[2], stem, nearest(stem, count))
        graph = nearest(base, count)
        start, end = (head[1:](graph_block(head[0], base, graph)) for head in (self.regu_s, self.regu_e))
        sequence = graph_block(self.backbone2[0], base, graph)
        context = neighbours(sequence, nearest(sequence, count)).mean(dim=-1)
        return map_output(self, start, end, [sequence, context], self.localization[0], self.localization[2:])
