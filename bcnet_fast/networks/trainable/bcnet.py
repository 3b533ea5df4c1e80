"""BCNet for training: no attention maps and no dense sampling matrix in memory, residuals added inside LayerNorm.

Unlike inference, the clip level is sampled before it is projected. Dropout lies between both, and draws anew for each
anchor that shares a snippet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ... import ops
from ...config import BCNetConfig
from ...geometry.anchors import make_anchors
from ...ops.constants import cached_tensors
from ...ops.reference import accumulation_dtype
from ...ops.sampling_plan import SamplingPlan, interpolated_plan
from ..outputs import BCNetOutput
from ..reference import bcnet as reference
from ..reference.bcnet import BoundaryLayer
from ..reference.layers import (
    Attention,
    DifferenceAttention,
    FeedForward,
    InteractionEncoder,
    InteractionLayer,
    PositionalEncoding,
)
from .onednn_linear import linear, two_layers


@cached_tensors(8)
def anchor_plan(config: BCNetConfig, device: torch.device, dtype: torch.dtype) -> SamplingPlan:
    """The sampling plan of all anchors."""
    anchors = make_anchors(config.window, config.max_duration)
    return interpolated_plan(anchors, config.window, config.bins, config.points_per_bin, dtype).to(device)


def attend(unit: Attention, x: Tensor, y: Tensor) -> Tensor:
    """Apply a unit up to its last layer: [B, T, heads * head_dim]."""
    query, key, value = (
        unit.split(linear(z, layer.weight)) for z, layer in ((x, unit.W_Q), (y, unit.W_K), (y, unit.W_V))
    )
    return unit.merge(F.scaled_dot_product_attention(query, key, value))


def attention(unit: Attention, x: Tensor, y: Tensor) -> Tensor:
    """Apply a self- or cross-attention unit."""
    return ops.add_layer_norm(linear(attend(unit, x, y), unit.fc.weight), x)


def difference_attention(unit: DifferenceAttention, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a difference-attention unit to both streams."""
    pairs = (a, unit.W_Q), (b, unit.W_K), (a, unit.W_V_A), (b, unit.W_V_B)
    query, key, value_a, value_b = (unit.split(linear(x, layer.weight)) for x, layer in pairs)
    attended = ops.difference_attention(query, key, value_a, value_b)
    out_a, out_b = (
        linear(unit.merge(out), layer.weight) for out, layer in zip(attended, (unit.fc_a, unit.fc_b), strict=True)
    )
    return ops.add_layer_norm(out_a, a), ops.add_layer_norm(out_b, b)


def feed_forward(unit: FeedForward, x: Tensor) -> Tensor:
    """Apply a feed-forward network, residual and LayerNorm included."""
    first, second = cast(nn.Linear, unit.fc[0]), cast(nn.Linear, unit.fc[2])
    return ops.add_layer_norm(two_layers(x, first.weight, second.weight), x)


def boundary_layer(layer: BoundaryLayer, original: Tensor, x: Tensor) -> Tensor:
    """Apply a layer of boundary prediction."""
    unit = layer.enc_self_attn
    from_original = attention(unit, original, original)
    own = from_original if x is original else attention(unit, x, x)
    return feed_forward(layer.pos_ffn, attention(unit, from_original, own))


def only_layer(encoder: InteractionEncoder) -> InteractionLayer:
    """The single layer of an encoder."""
    (layer,) = encoder.layers
    return cast(InteractionLayer, layer)


def interaction(
    encoder: InteractionEncoder, inputs: Callable[[Tensor], Tensor], a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply an encoder up to its last feed-forward networks.

    inputs: computes a stream, without positions, from a or b
    """
    layer = only_layer(encoder)
    unit, difference = layer.enc_self_attn, layer.enc_abi_attn

    def attend_self(embedding: PositionalEncoding, unit: Attention, sequence: Tensor) -> tuple[Tensor, Tensor]:
        x = embedding(inputs(sequence))
        return x, attend(unit, x, x)

    def first_half(embedding: PositionalEncoding, network: FeedForward, sequence: Tensor) -> Tensor:
        if unit is None:
            return feed_forward(network, embedding(inputs(sequence)))
        # Recomputed in the backward: an eighth of the clip level's work, for a quarter of its memory.
        x, attended = checkpoint(attend_self, embedding, unit, sequence, use_reentrant=False)
        return feed_forward(network, ops.add_layer_norm(linear(attended, unit.fc.weight), x))

    a = first_half(encoder.pos_emb_action, layer.pos_ffn_a, a)
    b = first_half(encoder.pos_emb_background, layer.pos_ffn_b, b)
    return (a, b) if difference is None else difference_attention(difference, a, b)


class BCNet(reference.BCNet):
    """Background Constraint Network: features [B, C, T] -> `BCNetOutput`."""

    def forward(self, features: Tensor) -> BCNetOutput:
        self.check(features)
        actionness, start, end = self._boundary(features).unbind(-1)
        a, b, frame_action, frame_background = self._frames(features)
        module = self.abi
        a, b = interaction(module.encoder, self._sample, a, b)
        layer = only_layer(module.encoder)
        # Stream by stream up to the scores, so that the gradients of both are not in memory at once. One product for
        # both scores of the action, whose backward computes one gradient instead of two.
        weight = torch.cat([cast(nn.Linear, head[0]).weight for head in (module.fc_reg_a, module.fc_cls_a)])
        regression, classification = linear(feed_forward(layer.pos_ffn_aa, a), weight).unbind(-1)
        background = None
        if module.fc_cls_b is not None:
            background = module.fc_cls_b(feed_forward(layer.pos_ffn_bb, b)).squeeze(-1)
        return BCNetOutput(
            start, end, actionness, frame_action, frame_background, regression, classification.sigmoid(), background
        )

    def _boundary(self, features: Tensor) -> Tensor:
        """Boundary prediction: [B, C, T] -> [B, T, 3]."""
        module = self.bpm
        sequence = module.bpm_base(features).transpose(1, 2) + module.query.weight
        original = x = module.encoder.pos_emb(sequence)
        for layer in module.encoder.layers:
            # Recomputed in the backward: 5 % of a step's time, for a third of its memory.
            x = checkpoint(boundary_layer, layer, original, x, use_reentrant=False, preserve_rng_state=False)
        return module.fc_cls(x)

    def _frames(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Action and background sequences [B, T, d] and probabilities [B, T], which are None without frame level."""
        module = self.abi.frame_model
        if module.fc_cls_a is None or module.fc_cls_b is None:
            return module(features)  # backbone and positions only, which have no faster version
        sequence = module.base_module(features).transpose(1, 2) + module.query.weight
        a, b = interaction(module.encoder, lambda x: x, sequence, sequence)
        layer = only_layer(module.encoder)
        a, b = feed_forward(layer.pos_ffn_aa, a), feed_forward(layer.pos_ffn_bb, b)
        return a, b, module.fc_cls_a(a).squeeze(-1), module.fc_cls_b(b).squeeze(-1)

    def _sample(self, sequence: Tensor) -> Tensor:
        """Sample every anchor: [B, T, d] -> N vectors, bin by bin, [B, P, N * clip_channels]."""
        clips = self.abi.base_module(sequence.transpose(1, 2))
        plan = anchor_plan(self.config, clips.device, accumulation_dtype(clips.dtype))
        return ops.anchor_sampling(clips, plan).flatten(2)
