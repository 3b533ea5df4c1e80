"""BCNet's inference, written once for all devices: which products are made, and what is fused with them.

The arithmetic itself is that of a set of kernels: `native` (C++ on the CPU) or `portable` (PyTorch and
`bcnet_fast.ops`, on any device). Both offer the same few operations on sequences [..., T, d], NumPy arrays or tensors.
A result lies in the buffer that `slot` names, and is gone once that is written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...config import BCNetConfig
from ...geometry.anchors import make_anchors
from ...ops.anchor_sampling import cheaper_strategy
from ...ops.sampling_plan import interpolated_plan
from ...profiling import stage
from ..outputs import BCNetOutput, Boundaries
from .rewrites import Rewrites

Sequence = Any  # [..., T, d], an array or tensor of the kernels
ATTENTION = ("W_Q", "W_K", "W_V")


@dataclass(frozen=True)
class AttentionWeights:
    """Of a self- or cross-attention unit; `joint` is query, key and value side by side."""

    joint: Any
    query: Any
    key_value: Any
    output: Any


@dataclass(frozen=True)
class FeedForwardWeights:
    first: Any
    second: Any


@dataclass(frozen=True)
class Projection:
    """A weight for all anchors' features, which are sampled features and a positional encoding.

    `weight` is for the former. What it makes of the encoding of each stream is `positions`, or is made each time by
    `position_weight`.
    """

    weight: Any
    positions: list[Any] | None
    position_weight: Any


@dataclass(frozen=True)
class FoldedWeights:
    """What one stream of the clip level needs where its first LayerNorm is folded into the product after it.

    With W1 the feed-forward's first weight and F the attention's output weight: `attended` is W1 F, `sampled` projects
    sampled features by W1, `sums` is W1 1, and `second` is the second weight.
    """

    attended: Any
    sampled: Projection
    sums: Any
    second: Any


@dataclass(frozen=True)
class DifferenceWeights:
    """Of a difference-attention unit, whose streams are a and b; key and value of b are side by side."""

    query: Any
    value_a: Any
    key_value_b: Any
    output: Any  # of both


@dataclass(frozen=True)
class InteractionWeights:
    """One layer of action-background interaction; an attention unit is None where the network is without it."""

    attention: AttentionWeights | None
    before: tuple[FeedForwardWeights | None, FeedForwardWeights | None]
    difference: DifferenceWeights | None
    after: tuple[FeedForwardWeights, FeedForwardWeights]


class BCNetEngine:
    """Features to scores: `boundary` and `frames`, then `clips` for all anchors or for those that are needed."""

    def __init__(
        self, config: BCNetConfig, state: Mapping[str, Tensor], kernels: Any, careful: Any, rewrites: Rewrites
    ) -> None:
        """`state` maps the parameter names of `reference.bcnet.BCNet` to tensors, and is not needed afterwards.

        `careful` kernels, of higher precision where that is cheap, make the start of the frame level: 1 % of the work,
        whose rounding errors all that follows repeats and enlarges.
        """
        self.config, self.kernels, self.careful, self.rewrites = config, kernels, careful, rewrites
        self.inner = config.heads * config.head_dim
        self.batched_original = rewrites.batched_original and kernels.batches
        self._prepare_boundary(state)
        self._prepare_frames(state)
        self._prepare_clips(state)

    # ---- Preparation: every weight is packed once, and constants are multiplied once

    def _convolutions(self, state: Mapping[str, Tensor], prefix: str, channels: int, kernels: Any) -> list[Any]:
        """The convolutions of a base module, for sequences of so many channels."""
        made = []
        while f"{prefix}.{2 * len(made)}.weight" in state:  # a ReLU is between each two
            weight, bias = (state[f"{prefix}.{2 * len(made)}.{name}"] for name in ("weight", "bias"))
            made.append(kernels.convolution_weight(weight, bias, channels // weight.shape[1]))
            channels = len(bias)
        return made

    def _joint(self, state: Mapping[str, Tensor], prefix: str, names: tuple[str, ...] = ATTENTION) -> Tensor:
        return torch.cat([state[f"{prefix}.{name}.weight"] for name in names])

    def _attention(self, state: Mapping[str, Tensor], prefix: str, kernels: Any) -> AttentionWeights:
        cuts = [(0, 3 * self.inner), (0, self.inner), (self.inner, 3 * self.inner)]
        parts = kernels.weights(self._joint(state, prefix), cuts)
        return AttentionWeights(*parts, kernels.weight(state[f"{prefix}.fc.weight"]))

    def _feed_forward(self, state: Mapping[str, Tensor], prefix: str) -> FeedForwardWeights:
        return FeedForwardWeights(*(self.kernels.weight(state[f"{prefix}.fc.{i}.weight"]) for i in (0, 2)))

    def _interaction(
        self, state: Mapping[str, Tensor], prefix: str, attention: AttentionWeights | None, folded: bool = False
    ) -> InteractionWeights:
        unit, weight = f"{prefix}.enc_abi_attn", self.kernels.weight
        before = (None, None) if folded else tuple(self._feed_forward(state, f"{prefix}.pos_ffn_{s}") for s in "ab")
        difference = None
        if self.config.difference_attention:
            difference = DifferenceWeights(
                weight(state[f"{unit}.W_Q.weight"]),
                weight(state[f"{unit}.W_V_A.weight"]),
                weight(self._joint(state, unit, ("W_K", "W_V_B"))),
                self.kernels.each([weight(state[f"{unit}.fc_{s}.weight"]) for s in "ab"]),
            )
        after = tuple(self._feed_forward(state, f"{prefix}.pos_ffn_{s}") for s in ("aa", "bb"))
        return InteractionWeights(attention, before, difference, after)

    def _position(self, query: Tensor, encoding: Tensor, kernels: Any) -> tuple[Any, Any]:
        """What is added to a sequence: the learned and the sinusoidal table, or their sum and nothing."""
        encoding = encoding[: len(query), 0]
        if self.rewrites.constant_positions:
            return kernels.constant(query.double() + encoding.double()), None
        return kernels.constant(query), kernels.constant(encoding)

    def _prepare_boundary(self, state: Mapping[str, Tensor]) -> None:
        layers, inner, kernels = range(self.config.boundary_layers), self.inner, self.kernels
        units = [f"bpm.encoder.layers.{i}.enc_self_attn" for i in layers]
        self.boundary_base = self._convolutions(state, "bpm.bpm_base", self.config.feature_dim, kernels)
        self.boundary_position = self._position(state["bpm.query.weight"], state["bpm.encoder.pos_emb.pe"], kernels)
        if self.batched_original:
            cuts = [(0, 3 * inner * len(layers))]
            for begin in range(0, cuts[0][1], 3 * inner):
                cuts += [(begin, begin + 3 * inner), (begin, begin + inner), (begin + inner, begin + 3 * inner)]
            self.original, *parts = kernels.weights(torch.cat([self._joint(state, unit) for unit in units]), cuts)
            outputs = [kernels.weight(state[f"{unit}.fc.weight"]) for unit in units]
            self.boundary_outputs = kernels.each(outputs)
            self.boundary_attention = [AttentionWeights(*parts[3 * i : 3 * i + 3], outputs[i]) for i in layers]
        else:
            self.boundary_attention = [self._attention(state, unit, kernels) for unit in units]
        self.boundary_feed_forward = [self._feed_forward(state, f"bpm.encoder.layers.{i}.pos_ffn") for i in layers]
        self.boundary_head = kernels.weight(state["bpm.fc_cls.0.weight"], exact=True)

    def _prepare_frames(self, state: Mapping[str, Tensor]) -> None:
        prefix, layer = "abi.frame_model", "abi.frame_model.encoder.layers.0"
        self.frame_base = self._convolutions(state, f"{prefix}.base_module", self.config.feature_dim, self.careful)
        query = state[f"{prefix}.query.weight"]
        encodings = [state[f"{prefix}.encoder.pos_emb_{s}.pe"][: len(query)] for s in ("action", "background")]
        if self.rewrites.shared_streams and torch.equal(*encodings):
            del encodings[1]  # both streams have one input
        self.frame_positions = [self._position(query, encoding, self.careful) for encoding in encodings]
        self.frame_layer = None
        if not self.config.frame_level:
            return
        attention = None
        if self.config.self_attention:
            attention = self._attention(state, f"{layer}.enc_self_attn", self.careful)
        self.frame_layer = self._interaction(state, layer, attention)
        heads = [self.kernels.weight(state[f"{prefix}.fc_cls_{s}.0.weight"], exact=True) for s in "ab"]
        self.frame_heads = self.kernels.each(heads)

    def _prepare_clips(self, state: Mapping[str, Tensor]) -> None:
        config, kernels, rewrites = self.config, self.kernels, self.rewrites
        layer, unit = "abi.encoder.layers.0", "abi.encoder.layers.0.enc_self_attn"
        anchors = make_anchors(config.window, config.max_duration)
        plan = interpolated_plan(anchors, config.window, config.bins, config.points_per_bin)
        self.anchor_count, self.plan = len(anchors), kernels.plan(plan)
        self.clip_base = self._convolutions(state, "abi.base_module", config.width, kernels)
        encodings = [state[f"abi.encoder.pos_emb_{s}.pe"][: len(anchors), 0] for s in ("action", "background")]
        if torch.equal(*encodings):
            encodings[1] = encodings[0]  # so that what is made of them is kept once
        self.clip_positions = self._constants(encodings)
        projects = rewrites.project_sampling and kernels.projects

        def pays(outputs: int) -> bool:
            return projects and cheaper_strategy(plan, config.clip_channels, outputs, kernels.device.type) == "project"

        self.projection = attention = None
        if config.self_attention and pays(3 * self.inner):
            self.projection = self._projection(encodings, self._joint(state, unit))
            attention = AttentionWeights(None, None, None, kernels.weight(state[f"{unit}.fc.weight"]))
        elif config.self_attention:
            attention = self._attention(state, unit, kernels)
        self.folded = None
        # Only with both units: what is folded is self-attention's LayerNorm, and it is done for all anchors, where
        # without difference attention the needed ones will do.
        units = config.self_attention and config.difference_attention
        if units and rewrites.folded_norm and kernels.folds and pays(config.feedforward):
            output = state[f"{unit}.fc.weight"]
            self.folded = [self._fold(state, f"{layer}.pos_ffn_{s}", output, encodings) for s in "ab"]
        self.clip_layer = self._interaction(state, layer, attention, folded=self.folded is not None)
        heads = [state[f"abi.{name}.0.weight"] for name in ("fc_reg_a", "fc_cls_a")]
        self.action_head = kernels.weight(torch.cat(heads), exact=True)
        self.background_head = None
        if config.background_constraint:
            self.background_head = kernels.weight(state["abi.fc_cls_b.0.weight"], exact=True)

    def _constants(self, tensors: list[Tensor]) -> list[Any]:
        made = {id(tensor): self.kernels.constant(tensor) for tensor in tensors}
        return [made[id(tensor)] for tensor in tensors]

    def _projection(self, encodings: list[Tensor], weight: Tensor) -> Projection:
        packed = self.kernels.anchor_weight([weight.unflatten(1, (self.config.bins, -1))], len(weight))
        if not self.rewrites.constant_positions:
            return Projection(packed, None, self.kernels.weight(weight))
        products = {id(encoding): self.kernels.product(encoding, weight) for encoding in encodings}
        return Projection(packed, [products[id(encoding)] for encoding in encodings], None)

    def _fold(self, state: Mapping[str, Tensor], prefix: str, output: Tensor, encodings: list[Tensor]) -> FoldedWeights:
        first, weight = state[f"{prefix}.fc.0.weight"], self.kernels.weight
        return FoldedWeights(
            weight(torch.as_tensor(self.kernels.product(first, output.T))),
            self._projection(encodings, first),
            self.kernels.constant(first.double().sum(1)),
            weight(state[f"{prefix}.fc.2.weight"]),
        )

    # ---- Inference

    def __call__(self, features: Tensor) -> BCNetOutput:
        """features as the kernels take them, one window or a batch -> scores."""
        return self.anchors(features, self.boundaries(features))

    def boundaries(self, features: Tensor) -> Boundaries:
        """The first step: boundary probabilities, which decide what anchors are read."""
        logits = self.kernels.result(self.boundary(features)).view(-1, self.config.window, 3)
        actionness, start, end = logits.sigmoid().unbind(-1)
        return Boundaries(start, end, actionness)

    def anchors(self, features: Tensor, boundaries: Boundaries, needed: Tensor | None = None) -> BCNetOutput:
        """The second step: frame level and clip level.

        needed: bool [P], of one window: the anchors to compute. The others get the score 0.
        """
        result, start = self.kernels.result, boundaries.start
        both, frames = self.frames(features)
        frames = (None, None) if frames is None else result(frames).view(2, *start.shape).sigmoid().unbind(0)
        which = None if needed is None else needed.nonzero()[:, 0]
        if which is not None and not len(which):
            action, background = start.new_zeros(1, 0, 2), start.new_zeros(1, 0, 1)
        else:
            logits = self.clips(both, which)
            action, background = (x if x is None else result(x).view(len(start), -1, x.shape[-1]) for x in logits)
        # As logits, so that each has its place in the row: a sigmoid's last bit can depend on that.
        regression = self._placed(action[..., 0], which, 0.0)
        classification = self._placed(action[..., 1], which, -torch.inf).sigmoid()
        if self.background_head is None:
            background = None
        else:
            background = self._placed(background[..., 0], which, -torch.inf).sigmoid()
        return BCNetOutput(*vars(boundaries).values(), *frames, regression, classification, background)

    def _placed(self, scores: Tensor, which: Tensor | None, others: float) -> Tensor:
        """[B, needed] -> [B, P], where anchors that are not computed have the score `others`."""
        if which is None:
            return scores.contiguous()
        return scores.new_full((len(scores), self.anchor_count), others).index_copy(1, which, scores)

    def boundary(self, features: Tensor) -> Sequence:
        """Logits [..., T, 3] of actionness, start and end."""
        kernels, heads = self.kernels, self.config.heads
        with stage("boundary: convolutions"):
            x = original = self._sequence(features, self.boundary_base, self.boundary_position, "original", kernels)
        looked_back = None
        if self.batched_original:
            with stage("boundary: original sequence"):
                joint = kernels.linear(original, self.original, slot="joint")
                (attended,) = self._self_attention(kernels.split(joint, len(self.boundary_attention)), kernels)
                outputs = self.boundary_outputs
                looked_back = kernels.linear_each(attended, outputs, added=original, norm=True, slot="looked_back")
        with stage("boundary: layers"):
            for i, (unit, network) in enumerate(zip(self.boundary_attention, self.boundary_feed_forward, strict=True)):
                back = self._unit(unit, original, "looked_back", kernels) if looked_back is None else looked_back[i]
                own = back if x is original else self._unit(unit, x, "own", kernels)
                query = kernels.linear(back, unit.query, slot="query")
                key_value = kernels.linear(own, unit.key_value, slot="key_value")
                key, value = key_value[..., : self.inner], key_value[..., self.inner :]
                (attended,) = kernels.attention(query, key, (value,), heads, slot="heads")
                crossed = kernels.linear(attended, unit.output, added=back, norm=True, slot="crossed")
                x = kernels.feed_forward(crossed, network.first, network.second, slot="layer")
            return kernels.linear(x, self.boundary_head, slot="boundary")

    def frames(self, features: Tensor) -> tuple[Sequence, Sequence | None]:
        """Both sequences, [2, ..., T, d], action first, and their logits [2, ..., T, 1] (None without frame level)."""
        kernels, careful, layer = self.kernels, self.careful, self.frame_layer
        with careful.arithmetic(), stage("frames: convolutions"):
            streams = [
                self._sequence(features, self.frame_base, position, f"frames{i}", careful)
                for i, position in enumerate(self.frame_positions)
            ]
        with stage("frames: interaction"):
            if layer is not None and layer.attention is not None:
                with careful.arithmetic():
                    streams = [self._unit(layer.attention, x, f"own{i}", careful) for i, x in enumerate(streams)]
            if careful is not kernels:
                streams = [kernels.rounded(x, slot=f"own{i}") for i, x in enumerate(streams)]
            both = [streams[0], streams[-1]]
            if layer is None:
                return both, None
            both = self._difference(layer, kernels.feed_forward_each(both, layer.before, slot="wide0"), None)
            return both, kernels.linear_each(both, self.frame_heads, slot="frames")

    def clips(self, both: Sequence, needed: Any = None) -> tuple[Sequence, Sequence | None]:
        """From the frame level's sequences: logits [..., P, 2] (regression, classification), [..., P, 1] (background,
        None without background constraint).

        `needed`, ascending int64 numbers of anchors: only these.
        """
        kernels, layer = self.kernels, self.clip_layer
        with stage("clips: streams"):
            streams = [kernels.convolution(both[i], self.clip_base[0], slot=f"stream{i}") for i in range(2)]
        # The difference unit has keys and values of all anchors. Without it, only the needed ones come as far.
        early, needed = (needed, None) if layer.difference is None else (None, needed)
        both = self._clip_streams(streams, early) if self.folded is None else self._folded_clip_streams(streams)
        with stage("clips: difference"):
            both = self._difference(layer, both, needed, spare="wide1" if self.folded is None else "wide0")
            action = kernels.linear(both[0], self.action_head, slot="clips0")
            if self.background_head is None:
                return action, None
            return action, kernels.linear(both[1], self.background_head, slot="clips1")

    def _clip_streams(self, streams: list[Sequence], needed: Any) -> Sequence:
        """Both streams' anchors after self-attention and feed-forward, [2, ..., needed, d], in the slot wide0."""
        kernels, layer = self.kernels, self.clip_layer
        attention = layer.attention

        def linear(x: Sequence, weight: Any, **options: Any) -> Sequence:
            if self.rewrites.shared_streams:
                return kernels.linear(x, weight, **options)
            return kernels.linear_each(x, kernels.each([weight, weight]), **options)

        with stage("clips: sampling"):
            # What a feed-forward network reads lies in another slot than what it makes.
            x = kernels.sample(streams, self.plan, self.clip_positions, slot="wide1" if attention is None else "wide0")
        if attention is not None:
            with stage("clips: self-attention"):
                if self.projection is None:
                    joint = linear(x, attention.joint, slot="joint")
                else:
                    joint = self._project(streams, self.projection)
                query, key, value = self._split(joint)
                query = query if needed is None else kernels.rows(query, needed)
                (attended,) = kernels.attention(query, key, (value,), self.config.heads, slot="heads")
        x = x if needed is None else kernels.rows(x, needed)
        with stage("clips: feed-forward"):
            if attention is not None:
                x = linear(attended, attention.output, added=x, norm=True, slot="wide1")
            return kernels.feed_forward_each(x, layer.before, slot="wide0")

    def _folded_clip_streams(self, streams: list[Sequence]) -> Sequence:
        """The same in the slot wide1, one stream after the other: what is between takes half the memory."""
        kernels, attention = self.kernels, self.clip_layer.attention
        made = None
        for i, weights in enumerate(self.folded):
            with stage("clips: sampling"):
                x = kernels.sample([streams[i]], self.plan, self.clip_positions[i : i + 1], slot="wide0")
            with stage("clips: self-attention"):
                if self.projection is None:
                    joint = kernels.linear(x, attention.joint, slot="joint")
                else:
                    joint = self._project([streams[i]], self.projection, i)
                (attended,) = self._self_attention(joint, kernels)
            with stage("clips: feed-forward"):
                made = kernels.buffer("wide1", 2, *x.shape[1:]) if made is None else made
                first = self._project([streams[i]], weights.sampled, i)[0]
                kernels.folded_feed_forward(attended[0], attention.output, x[0], first, weights, out=made[i])
        return made

    def _sequence(
        self, features: Tensor, base: list[Any], position: tuple[Any, Any], slot: str, kernels: Any
    ) -> Sequence:
        """[..., T, C] through three convolutions, with positions added: [..., T, d]."""
        x = kernels.convolution(kernels.features(features), base[0], slot="convolution0")
        x = kernels.convolution(x, base[1], slot="convolution1")
        x = kernels.convolution(x, base[2], added=position[0], slot=slot)
        return x if position[1] is None else kernels.add(x, position[1], slot=slot)

    def _split(self, joint: Sequence) -> list[Sequence]:
        """Query, key and value, which lie side by side."""
        return [joint[..., i * self.inner : (i + 1) * self.inner] for i in range(3)]

    def _self_attention(self, joint: Sequence, kernels: Any) -> tuple[Sequence]:
        query, key, value = self._split(joint)
        return kernels.attention(query, key, (value,), self.config.heads, slot="heads")

    def _unit(self, unit: AttentionWeights, x: Sequence, slot: str, kernels: Any) -> Sequence:
        """A self-attention unit."""
        (attended,) = self._self_attention(kernels.linear(x, unit.joint, slot="joint"), kernels)
        return kernels.linear(attended, unit.output, added=x, norm=True, slot=slot)

    def _difference(self, layer: InteractionWeights, both: Sequence, needed: Any, spare: str = "wide1") -> Sequence:
        """The difference unit and the feed-forward networks after it, [2, ..., needed, d].

        `both` lies in another slot than `spare`, and its memory takes the results.
        """
        kernels, inner, unit = self.kernels, self.inner, layer.difference
        if unit is None:
            return kernels.feed_forward_each(both, layer.after, slot=spare)
        key_value = kernels.linear(both[1], unit.key_value_b, slot="joint")
        value_a = kernels.linear(both[0], unit.value_a, slot=spare)
        if needed is not None:
            both = kernels.rows(both, needed)
        query = kernels.linear(both[0], unit.query, slot="query")
        values = value_a, key_value[..., inner:]
        attended = kernels.attention(query, key_value[..., :inner], values, self.config.heads, slot="heads")
        return kernels.attended_each(attended, unit.output, both, layer.after, slot=spare)

    def _project(self, streams: list[Sequence], projection: Projection, first_stream: int = 0) -> Sequence:
        """Every anchor's features, positions included, times a weight: [streams, ..., P, O]."""
        which = slice(first_stream, first_stream + len(streams))
        if projection.positions is None:
            weight = projection.position_weight
            added = [
                self.kernels.linear(p, weight, slot=f"position{i}") for i, p in enumerate(self.clip_positions[which])
            ]
        else:
            added = projection.positions[which]
        return self.kernels.project(streams, self.plan, projection.weight, added, slot="joint")
