"""The three attention units of BCNet (paper, Figure 3) and what surrounds them, in plain PyTorch.

Sequences are [B, T, d]. No linear layer has a bias. Every LayerNorm has eps 1e-5 and no parameters: the public release
creates it in each forward pass, so it never learned a scale. Parameter names are those of the public release.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...config import BCNetConfig


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm over the last axis, without scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


def attention_map(query: Tensor, key: Tensor) -> Tensor:
    """Compute softmax(Q K^T / sqrt(D)) (paper, Eq. 3 and 6): [B, H, Tq, D], [B, H, Tk, D] -> [B, H, Tq, Tk]."""
    return torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), dim=-1)


class MultiHead(nn.Module):
    """Base of the attention units: linear layers d -> heads * head_dim, and the split into heads."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim

    def projection(self, width: int) -> nn.Linear:
        """A layer for queries, keys or values."""
        return nn.Linear(width, self.heads * self.head_dim, bias=False)

    def output(self, width: int) -> nn.Linear:
        """A layer for the merged heads."""
        return nn.Linear(self.heads * self.head_dim, width, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """Split heads: [B, T, heads * head_dim] -> [B, heads, T, head_dim]."""
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    @staticmethod
    def merge(x: Tensor) -> Tensor:
        """Merge heads: [B, heads, T, head_dim] -> [B, T, heads * head_dim]."""
        return x.transpose(1, 2).flatten(-2)


class Attention(MultiHead):
    """Self-attention and cross-attention unit: queries from x, keys and values from y (paper, Eq. 3-5)."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__(heads, head_dim)
        self.W_Q, self.W_K, self.W_V = (self.projection(width) for _ in range(3))
        self.fc = self.output(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Sequences x [B, Tq, d], y [B, Tk, d] -> [B, Tq, d]."""
        weights = attention_map(self.split(self.W_Q(x)), self.split(self.W_K(y)))
        return layer_norm(self.fc(self.merge(weights @ self.split(self.W_V(y)))) + x)


class DifferenceAttention(MultiHead):
    """Difference-attention unit: one map from a to b reweights the values of both (paper, Eq. 6)."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__(heads, head_dim)
        self.W_Q, self.W_K, self.W_V_A, self.W_V_B = (self.projection(width) for _ in range(4))
        self.fc_a, self.fc_b = self.output(width), self.output(width)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Streams a, b [B, T, d] -> the same shapes."""
        weights = attention_map(self.split(self.W_Q(a)), self.split(self.W_K(b)))
        out_a = self.fc_a(self.merge(weights @ self.split(self.W_V_A(a))))
        out_b = self.fc_b(self.merge(weights @ self.split(self.W_V_B(b))))
        return layer_norm(out_a + a), layer_norm(out_b + b)


class FeedForward(nn.Module):
    """Linear layers d -> hidden -> d with ReLU, residual and LayerNorm (paper, Eq. 5)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(self.fc(x) + x)


class PositionalEncoding(nn.Module):
    """Add the sinusoidal encoding of the position on axis 1; dropout follows in training."""

    pe: Tensor  # [length, 1, width]

    pe: Tensor

    def __init__(self, width: int, length: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("pe", sinusoid(length, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pe.transpose(0, 1))


def sinusoid(length: int, width: int) -> Tensor:
    """The encoding of Vaswani et al. (2017), float32 [length, 1, width]: sines in even columns, cosines in odd ones.

    As in the public release, the angle is rounded to float32 before its sine is taken. This moves far positions by up
    to 1e-4, and trained weights expect it. The release's float32 exponential depends on the machine in its last bit,
    so its checkpoints carry a table of their own, and this one is for new networks.
    """
    if torch.empty(0).is_meta:  # the default device, see `shapes_only`
        return torch.empty(length, 1, width)
    exponent = np.arange(0, width, 2, dtype=np.float32) * np.float32(-math.log(10000.0) / width)
    rate = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = (np.arange(length, dtype=np.float32)[:, None] * rate).astype(np.float64)
    encoding = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, -1)[:, :width]
    return torch.from_numpy(encoding.astype(np.float32))[:, None]


class InteractionLayer(nn.Module):
    """One layer of action-background interaction, for frames and clips alike (paper, section 3.3).

    Both streams share one self-attention unit; all feed-forward networks are separate. An attention unit that the
    configuration leaves out (paper, Table 7) is None, and the streams pass unchanged.
    """

    def __init__(self, config: BCNetConfig, width: int) -> None:
        super().__init__()
        heads = config.heads, config.head_dim
        self.enc_self_attn = Attention(width, *heads) if config.self_attention else None
        self.enc_abi_attn = DifferenceAttention(width, *heads) if config.difference_attention else None
        self.pos_ffn_a, self.pos_ffn_b, self.pos_ffn_aa, self.pos_ffn_bb = (
            FeedForward(width, config.feedforward) for _ in range(4)
        )

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Streams a, b [B, T, d] -> the same shapes."""
        if self.enc_self_attn is not None:
            a, b = self.enc_self_attn(a, a), self.enc_self_attn(b, b)
        a, b = self.pos_ffn_a(a), self.pos_ffn_b(b)
        if self.enc_abi_attn is not None:
            a, b = self.enc_abi_attn(a, b)
        return self.pos_ffn_aa(a), self.pos_ffn_bb(b)


class InteractionEncoder(nn.Module):
    """Positional encodings of both streams, then one interaction layer or none."""

    def __init__(self, config: BCNetConfig, width: int, length: int, layers: int = 1) -> None:
        super().__init__()
        self.pos_emb_action = PositionalEncoding(width, length, config.dropout)
        self.pos_emb_background = PositionalEncoding(width, length, config.dropout)
        self.layers = nn.ModuleList([InteractionLayer(config, width) for _ in range(layers)])

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Streams a, b [B, T, d] -> the same shapes."""
        a, b = self.pos_emb_action(a), self.pos_emb_background(b)
        for layer in self.layers:
            a, b = layer(a, b)
        return a, b


class _SkipInitialisation(TorchFunctionMode):
    """Leave out the functions of torch.nn.init, in the thread that entered the mode."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the device "meta": parameters and buffers have shapes and dtypes, but no memory.

    Modules that other threads build meanwhile are not affected. Initialisation is skipped because the first random
    number on "meta" makes PyTorch import some 900 modules, which takes a second and 200 MB.
    """
    with torch.device("meta"), _SkipInitialisation():
        yield


def convolution(channels_in: int, channels_out: int) -> nn.Conv1d:
    """A convolution of three taps with bias, in four groups, or fewer where four do not divide the channels."""
    groups = math.gcd(4, channels_in, channels_out)
    return nn.Conv1d(channels_in, channels_out, kernel_size=3, padding=1, groups=groups)


def linear_head(inputs: int, outputs: int) -> nn.Linear:
    """A layer that gives scores of a second-stage network, with its small initial weights."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.001)
    nn.init.zeros_(layer.bias)
    return layer


def backbone(channels: int, hidden: int, width: int) -> nn.Sequential:
    """Three convolutions with ReLU: [B, C, T] -> [B, width, T]."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((channels, hidden), (hidden, hidden), (hidden, width)):
        layers += [convolution(channels_in, channels_out), nn.ReLU()]
    return nn.Sequential(*layers)
