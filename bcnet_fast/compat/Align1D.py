"""`Align1D`, the CUDA extension of G-TAD and OpenTAD, in PyTorch: on CPUs and GPUs, differentiable.

`forward` and `backward` are the functions of the extension; `align1d` and `Align1DLayer` those of G-TAD's
`gtad_lib/align.py`. For whole maps of proposals, `bcnet_fast.layers.GraphAlign` takes less time and memory.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def forward(input: torch.Tensor, roi: torch.Tensor, feature_dim: int, ratio: int) -> torch.Tensor:
    """Sample intervals of sequences: the means of `feature_dim` equal parts of each.

    Args:
        input: sequences, [B, C, T] float32 or float64. Point i of a sequence is at time i.
        roi: batch index, start and end of each interval, [N, 3] in the dtype and on the device of input. An interval
            shorter than 1 is extended to 1 from its start.
        feature_dim: D, parts of an interval.
        ratio: points of a part; below 1, the length of the part, rounded up.

    Returns: [N, C, D]. A point is interpolated linearly; it is 0 before -1 and after T, and takes the first or the last
    value of the sequence in between. Gradients go to input alone.
    """
    _check(input, roi, feature_dim)
    length = input.shape[2]
    batch, start, end = roi.detach().unbind(1)
    size = (end - start).clamp(min=1)
    part = size / feature_dim
    points = torch.full_like(part, ratio) if ratio > 0 else part.ceil()

    # Point p of part d, [N, D, P]; intervals with fewer than P points give the others weight 0.
    bins = torch.arange(feature_dim, device=roi.device, dtype=roi.dtype)
    most = int(points.max()) if len(roi) else 1
    point = torch.arange(most, device=roi.device, dtype=roi.dtype)
    within = (point + 0.5) * part[:, None] / points[:, None]
    time = (start[:, None] + bins * part[:, None])[..., None] + within[:, None]
    counted = (time >= -1) & (time <= length) & (point < points[:, None])[:, None]
    time = time.clamp(0, length - 1)
    low = time.floor()
    upper = time - low
    share = counted / points[:, None, None]

    # A part is a weighted sum of rows of the sequences, [B T, C].
    first = low.long() + batch.long()[:, None, None] * length
    rows = torch.stack([first, first + (upper > 0)], dim=-1).flatten(2)
    weights = torch.stack([(1 - upper) * share, upper * share], dim=-1).flatten(2)
    table = input.transpose(1, 2).flatten(0, 1)
    sampled = functional.embedding_bag(
        rows.flatten(0, 1), table, per_sample_weights=weights.flatten(0, 1).to(table.dtype), mode="sum"
    )
    return sampled.view(len(roi), feature_dim, input.shape[1]).transpose(1, 2).contiguous()


def backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    feature_dim: int,
    batch_size: int,
    channels: int,
    length: int,
    ratio: int,
) -> torch.Tensor:
    """Gradient of the input [batch_size, channels, length] of `forward`, from that of its result."""
    with torch.enable_grad():
        input = grad_output.new_zeros(batch_size, channels, length, requires_grad=True)
        (gradient,) = torch.autograd.grad(forward(input, rois, feature_dim, ratio), input, grad_output)
    return gradient


def align1d(input: torch.Tensor, roi: torch.Tensor, feature_dim: int, ratio: int) -> torch.Tensor:
    """G-TAD's function: `forward`, differentiable."""
    return forward(input, roi, feature_dim, ratio)


class Align1DLayer(nn.Module):
    """G-TAD's layer, without parameters; `feature_dim` and `ratio` as in `forward`."""

    def __init__(self, feature_dim: int, ratio: int = 0) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.ratio = ratio

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        return align1d(input, rois, self.feature_dim, self.ratio)

    def extra_repr(self) -> str:
        return f"feature_dim={self.feature_dim}, sampling_ratio={self.ratio}"


def _check(input: torch.Tensor, roi: torch.Tensor, feature_dim: int) -> None:
    if input.dtype not in (torch.float32, torch.float64) or roi.dtype != input.dtype:
        raise TypeError(f"Align1D: input is {input.dtype} and roi {roi.dtype}, expected both float32 or both float64")
    if roi.device != input.device:
        raise ValueError(f"Align1D: input is on {input.device} and roi on {roi.device}, expected one device")
    if input.dim() != 3 or roi.dim() != 2 or roi.shape[1] != 3:
        raise ValueError(
            f"Align1D: input has shape {list(input.shape)} and roi {list(roi.shape)}, expected [B, C, T] and [N, 3]"
        )
    if feature_dim < 1:
        raise ValueError(f"Align1D: feature_dim is {feature_dim}, expected at least 1")
