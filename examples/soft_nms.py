"""Soft-NMS in other code: the detections of many videos and classes, suppressed in one call.

`class_aware_soft_nms` takes the place of a loop over classes around another toolbox's Soft-NMS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bcnet_fast import ops


def class_aware_soft_nms(segments: Tensor, scores: Tensor, labels: Tensor, **options: float) -> tuple[Tensor, ...]:
    """Suppress each class by itself: segments [n, 2], scores [n], labels [n] -> those that are kept, best first."""
    order = labels.argsort(stable=True)
    _, counts = labels.unique(return_counts=True)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    kept, decayed, rows = ops.soft_nms(segments[order], scores[order], offsets=offsets, **options)
    best = decayed.argsort(descending=True, stable=True)
    return kept[best], decayed[best], labels[order][rows][best]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(2000, generator=generator) * 100
    length = 1 + torch.rand(2000, generator=generator) * 10
    segments = torch.stack([start, start + length], dim=1)
    scores = torch.rand(2000, generator=generator)
    labels = torch.randint(20, (2000,), generator=generator)

    for method in ("gaussian", "linear", "hard"):
        threshold = 0.0 if method == "gaussian" else 0.5
        kept, decayed, classes = class_aware_soft_nms(
            segments, scores, labels, method=method, sigma=0.5, iou_threshold=threshold, min_score=0.001
        )
        first = f"class {int(classes[0])}, {kept[0, 0]:.1f} s to {kept[0, 1]:.1f} s, score {decayed[0]:.3f}"
        print(f"{method:>8}: {len(kept)} of {len(segments)} kept; best: {first}")


if __name__ == "__main__":
    main()
