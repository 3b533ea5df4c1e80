"""BCNet in plain PyTorch: the definition that every faster version is tested against.

Runs on any device in float32 and float64, and is trainable. Parameter names are those of the public release, under
`bpm.` (boundary prediction) and `abi.` (action-background interaction). Anchors are sampled by the release's dense
matrix, so that the fast operators are tested against independent code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...config import BCNetConfig
from ...geometry.anchors import make_anchors
from ..background import background_layer
from ..outputs import BCNetOutput
from .dense_sampling import sampling_weights
from .layers import Attention, FeedForward, InteractionEncoder, PositionalEncoding, backbone, convolution


class BoundaryLayer(nn.Module):
    """One layer of boundary prediction: a single attention unit, used three times (paper, section 3.4)."""

    def __init__(self, config: BCNetConfig) -> None:
        super().__init__()
        self.enc_self_attn = Attention(config.width, config.heads, config.head_dim)
        self.pos_ffn = FeedForward(config.width, config.feedforward)

    def forward(self, original: Tensor, x: Tensor) -> Tensor:
        """Sequences F_o (the original) and F_i (the input), [B, T, d] each -> F_{i+1}."""
        attention = self.enc_self_attn
        return self.pos_ffn(attention(attention(original, original), attention(x, x)))


class BoundaryEncoder(nn.Module):
    """Positional encoding, then layers that all attend to the original sequence."""

    def __init__(self, config: BCNetConfig) -> None:
        super().__init__()
        self.pos_emb = PositionalEncoding(config.width, config.window, config.dropout)
        self.layers = nn.ModuleList([BoundaryLayer(config) for _ in range(config.boundary_layers)])

    def forward(self, x: Tensor) -> Tensor:
        original = x = self.pos_emb(x)
        for layer in self.layers:
            x = layer(original, x)
        return x


class BoundaryPrediction(nn.Module):
    """BP module: features [B, C, T] -> probabilities [B, T, 3] of actionness, start and end."""

    def __init__(self, config: BCNetConfig) -> None:
        super().__init__()
        self.bpm_base = backbone(config.feature_dim, config.base_channels, config.width)
        self.query = nn.Embedding(config.window, config.width)
        self.encoder = BoundaryEncoder(config)
        self.fc_cls = nn.Sequential(nn.Linear(config.width, 3, bias=False), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        sequence = self.bpm_base(features).transpose(1, 2) + self.query.weight
        return self.fc_cls(self.encoder(sequence))


def sigmoid_head(width: int) -> nn.Sequential:
    """A linear layer without bias: [..., width] -> probabilities [..., 1]."""
    return nn.Sequential(nn.Linear(width, 1, bias=False), nn.Sigmoid())


class FrameInteraction(nn.Module):
    """Frame level of ABI: features [B, C, T] -> action and background sequences [B, T, d] and probabilities [B, T].

    Without `frame_level` (paper, Table 6), both sequences are the backbone's with positions, and the probabilities are
    None.
    """

    def __init__(self, config: BCNetConfig) -> None:
        super().__init__()
        self.base_module = backbone(config.feature_dim, config.base_channels, config.width)
        self.query = nn.Embedding(config.window, config.width)
        self.encoder = InteractionEncoder(config, config.width, config.window, layers=int(config.frame_level))
        self.fc_cls_a = sigmoid_head(config.width) if config.frame_level else None
        self.fc_cls_b = sigmoid_head(config.width) if config.frame_level else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        sequence = self.base_module(features).transpose(1, 2) + self.query.weight
        a, b = self.encoder(sequence, sequence)
        if self.fc_cls_a is None or self.fc_cls_b is None:
            return a, b, None, None
        return a, b, self.fc_cls_a(a).squeeze(-1), self.fc_cls_b(b).squeeze(-1)


class ActionBackgroundInteraction(nn.Module):
    """ABI module: frame level, sampling of every anchor's features, clip level (paper, section 3.3)."""

    sampling: Tensor | None  # [T, N * P], computed at the first call

    def __init__(self, config: BCNetConfig) -> None:
        super().__init__()
        self.config = config
        anchors = make_anchors(config.window, config.max_duration)
        clip_width = config.bins * config.clip_channels
        self.frame_model = FrameInteraction(config)
        self.base_module = nn.Sequential(convolution(config.width, config.clip_channels), nn.ReLU())
        self.register_buffer("sampling", None, persistent=False)
        self.encoder = InteractionEncoder(config, clip_width, len(anchors))
        self.fc_reg_a = nn.Sequential(nn.Linear(clip_width, 1, bias=False))
        self.fc_cls_a = sigmoid_head(clip_width)
        self.fc_cls_b = background_layer(nn.Linear, clip_width, bias=False) if config.background_constraint else None

    def sample_anchors(self, sequence: Tensor) -> Tensor:
        """Sample every anchor: [B, T, d] -> N vectors, flattened bin by bin, [B, P, N * clip_channels]."""
        if self.sampling is None:
            config = self.config
            anchors = make_anchors(config.window, config.max_duration)
            weights = sampling_weights(anchors, config.window, config.bins, config.points_per_bin)
            with torch.inference_mode(False):  # a training may come later
                self.sampling = torch.from_numpy(weights).flatten(1).to(next(self.base_module.parameters()))
        clips = self.base_module(sequence.transpose(1, 2)) @ self.sampling  # [B, C', N * P]
        return clips.unflatten(-1, (self.config.bins, -1)).permute(0, 3, 2, 1).flatten(-2)

    def forward(self, features: Tensor) -> tuple[Tensor | None, ...]:
        """Features [B, C, T] -> frame action, frame background [B, T]; regression, classification, background [B, P].

        Without frame level the first two are None, and without background constraint the last.
        """
        a, b, frame_action, frame_background = self.frame_model(features)
        a, b = self.encoder(self.sample_anchors(a), self.sample_anchors(b))
        regression, classification = self.fc_reg_a(a).squeeze(-1), self.fc_cls_a(a).squeeze(-1)
        background = None if self.fc_cls_b is None else self.fc_cls_b(b).squeeze(-1)
        return frame_action, frame_background, regression, classification, background


class BCNet(nn.Module):
    """Background Constraint Network: features [B, C, T] -> `BCNetOutput`."""

    def __init__(self, config: BCNetConfig) -> None:
        super().__init__()
        self.config = config
        self.bpm = BoundaryPrediction(config)
        self.abi = ActionBackgroundInteraction(config)

    def check(self, features: Tensor) -> None:
        """Raise ValueError unless `features` is [B, C, T] with the configured C and T."""
        expected = (self.config.feature_dim, self.config.window)
        if features.ndim != 3 or features.shape[1:] != expected:
            raise ValueError(f"features has shape {list(features.shape)}, expected [B, {expected[0]}, {expected[1]}]")

    def forward(self, features: Tensor) -> BCNetOutput:
        self.check(features)
        actionness, start, end = self.bpm(features).unbind(-1)
        return BCNetOutput(start, end, actionness, *self.abi(features))
