"""The operators inside another model: a small proposal scorer that learns which intervals are loud.

Any intervals work: here all of 4, 8 and 16 snippets. The sampled features of an interval are never stored.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bcnet_fast import ops
from bcnet_fast.ops.sampling_plan import interpolated_plan

SNIPPETS, CHANNELS, HIDDEN, BINS = 64, 16, 32, 8


class Scorer(nn.Module):
    """Features [B, C, T] to one score of each interval, [B, P]."""

    def __init__(self, intervals: np.ndarray) -> None:
        super().__init__()
        self.plan = interpolated_plan(intervals, SNIPPETS, bins=BINS)
        self.weight = nn.Parameter(torch.randn(BINS, CHANNELS, HIDDEN) * (BINS * CHANNELS) ** -0.5)
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = ops.anchor_projection(features, self.plan, self.weight, relu=True)  # [B, P, O]
        hidden = ops.add_layer_norm(self.mix(hidden), hidden)
        return self.head(hidden).squeeze(-1)


def main() -> None:
    torch.manual_seed(0)
    starts = [(s, s + n) for n in (4, 8, 16) for s in range(0, SNIPPETS - n + 1, 2)]
    intervals = np.array(starts, dtype=np.float64)
    features = torch.randn(8, CHANNELS, SNIPPETS)
    loudness = features.square().mean(dim=1)  # [B, T]
    target = torch.stack([loudness[:, s:e].mean(dim=1) for s, e in starts], dim=1)

    model = Scorer(intervals)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(61):
        loss = nn.functional.mse_loss(model(features), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:3d}, loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
