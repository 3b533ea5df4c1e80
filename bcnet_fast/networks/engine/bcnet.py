"""BCNet's inference, written once against `Kernels`: which products are computed, and what is fused with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ...config import BCNetConfig
from ...geometry.anchors import make_anchors
from ...ops.anchor_sampling import cheaper_strategy
from ...ops.sampling_plan import interpolated_plan
from ...profiling import stage
from ..outputs import BCNetOutput, Boundaries
from .bcnet_weights import AttentionWeights, DifferenceWeights, FoldedStream, InteractionWeights, Projection
from .buffers import BCNetBuffer as Buffer
from .kernels import ConvolutionLayer, FeedForwardWeights, FoldedWeights, FoldingKernels, Kernels, S, Stack, W
from .rewrites import Rewrites

T = TypeVar("T")
FRAME_BASES = Buffer.FRAME_ACTION, Buffer.FRAME_BACKGROUND
FRAME_ATTENDED = Buffer.FRAME_ACTION_ATTENDED, Buffer.FRAME_BACKGROUND_ATTENDED
CLIP_BASES = Buffer.CLIP_ACTION, Buffer.CLIP_BACKGROUND


class BCNetEngine(Generic[S, W, Stack]):
    """Features to scores in two steps: `boundaries`, then `anchors`, all of them or those that are needed."""

    def __init__(
        self,
        config: BCNetConfig,
        state: Mapping[str, Tensor],
        kernels: Kernels[S, W, Stack],
        precise: Kernels[S, W, Stack],
        rewrites: Rewrites,
    ) -> None:
        """Prepare all weights.

        state: the parameters of `reference.bcnet.BCNet` by name, not needed afterwards
        precise: kernels of higher precision for the frame level's first layers. They are 1 % of the work, and all
            later layers enlarge their rounding errors.
        """
        self.config, self.kernels, self.precise, self.rewrites = config, kernels, precise, rewrites
        self.inner = config.heads * config.head_dim
        self._prepare_boundary(state)
        self._prepare_frames(state)
        self._prepare_clips(state)

    # ---- Preparation

    def _base(
        self, state: Mapping[str, Tensor], prefix: str, channels: int, kernels: Kernels[S, W, Stack]
    ) -> list[ConvolutionLayer[S, W]]:
        """The convolutions of a base module for sequences with `channels` columns."""
        layers = []
        while f"{prefix}.{2 * len(layers)}.weight" in state:  # a ReLU follows each
            weight, bias = (state[f"{prefix}.{2 * len(layers)}.{name}"] for name in ("weight", "bias"))
            layers.append(kernels.convolution_layer(weight, bias, channels // weight.shape[1]))
            channels = len(bias)
        return layers

    def _query_key_value(self, state: Mapping[str, Tensor], unit: str) -> Tensor:
        return torch.cat([state[f"{unit}.{name}.weight"] for name in ("W_Q", "W_K", "W_V")])

    def _attention(self, state: Mapping[str, Tensor], unit: str, kernels: Kernels[S, W, Stack]) -> AttentionWeights[W]:
        inner = self.inner
        slices = [(0, 3 * inner), (0, inner), (inner, 3 * inner)]
        joint, query, key_value = kernels.weight_slices(self._query_key_value(state, unit), slices)
        return AttentionWeights(joint, query, key_value, kernels.weight(state[f"{unit}.fc.weight"]))

    def _feed_forward(self, state: Mapping[str, Tensor], prefix: str) -> FeedForwardWeights[W]:
        return FeedForwardWeights(*(self.kernels.weight(state[f"{prefix}.fc.{i}.weight"]) for i in (0, 2)))

    def _interaction(
        self,
        state: Mapping[str, Tensor],
        layer: str,
        attention: AttentionWeights[W] | None,
        folded: bool = False,
    ) -> InteractionWeights[W, Stack]:
        unit, weight = f"{layer}.enc_abi_attn", self.kernels.weight
        before = [] if folded else [self._feed_forward(state, f"{layer}.pos_ffn_{s}") for s in "ab"]
        difference = None
        if self.config.difference_attention:
            key_value_b = torch.cat([state[f"{unit}.{name}.weight"] for name in ("W_K", "W_V_B")])
            difference = DifferenceWeights(
                weight(state[f"{unit}.W_Q.weight"]),
                weight(state[f"{unit}.W_V_A.weight"]),
                weight(key_value_b),
                self.kernels.stack([weight(state[f"{unit}.fc_{s}.weight"]) for s in "ab"]),
            )
        after = [self._feed_forward(state, f"{layer}.pos_ffn_{s}") for s in ("aa", "bb")]
        return InteractionWeights(attention, before, difference, after)

    def _positions(self, query: Tensor, encoding: Tensor, kernels: Kernels[S, W, Stack]) -> S:
        """The sum of the learned and the sinusoidal table, [T, d]."""
        return kernels.constant(query.double() + encoding[: len(query), 0].double())

    def _prepare_boundary(self, state: Mapping[str, Tensor]) -> None:
        layers, inner, kernels = range(self.config.boundary_layers), self.inner, self.kernels
        units = [f"bpm.encoder.layers.{i}.enc_self_attn" for i in layers]
        self.boundary_base = self._base(state, "bpm.bpm_base", self.config.feature_dim, kernels)
        self.boundary_positions = self._positions(state["bpm.query.weight"], state["bpm.encoder.pos_emb.pe"], kernels)
        self.batched: tuple[W, Stack] | None = None  # query, key, value and output of all layers
        if self.rewrites.batched_original and kernels.batches_layers:
            slices = [(0, 3 * inner * len(layers))]
            for begin in range(0, slices[0][1], 3 * inner):
                slices += [(begin, begin + 3 * inner), (begin, begin + inner), (begin + inner, begin + 3 * inner)]
            joint = torch.cat([self._query_key_value(state, unit) for unit in units])
            query_key_value, *parts = kernels.weight_slices(joint, slices)
            outputs = [kernels.weight(state[f"{unit}.fc.weight"]) for unit in units]
            self.batched = query_key_value, kernels.stack(outputs)
            parts = zip(parts[::3], parts[1::3], parts[2::3], outputs, strict=True)
            self.boundary_attention = [AttentionWeights(*layer) for layer in parts]
        else:
            self.boundary_attention = [self._attention(state, unit, kernels) for unit in units]
        self.boundary_feed_forward = [self._feed_forward(state, f"bpm.encoder.layers.{i}.pos_ffn") for i in layers]
        self.boundary_head = kernels.weight(state["bpm.fc_cls.0.weight"], exact=True)

    def _prepare_frames(self, state: Mapping[str, Tensor]) -> None:
        prefix, layer = "abi.frame_model", "abi.frame_model.encoder.layers.0"
        self.frame_base = self._base(state, f"{prefix}.base_module", self.config.feature_dim, self.precise)
        query = state[f"{prefix}.query.weight"]
        encodings = [state[f"{prefix}.encoder.pos_emb_{s}.pe"][: len(query)] for s in ("action", "background")]
        if torch.equal(*encodings):
            del encodings[1]  # both streams have one input, and share self-attention
        self.frame_positions = [self._positions(query, encoding, self.precise) for encoding in encodings]
        self.frame_layer: InteractionWeights[W, Stack] | None = None
        if not self.config.frame_level:
            return
        attention = None
        if self.config.self_attention:
            attention = self._attention(state, f"{layer}.enc_self_attn", self.precise)
        self.frame_layer = self._interaction(state, layer, attention)
        heads = [self.kernels.weight(state[f"{prefix}.fc_cls_{s}.0.weight"], exact=True) for s in "ab"]
        self.frame_heads = self.kernels.stack(heads)

    def _prepare_clips(self, state: Mapping[str, Tensor]) -> None:
        config, kernels, rewrites = self.config, self.kernels, self.rewrites
        layer, unit = "abi.encoder.layers.0", "abi.encoder.layers.0.enc_self_attn"
        anchors = make_anchors(config.window, config.max_duration)
        plan = interpolated_plan(anchors, config.window, config.bins, config.points_per_bin)
        self.anchor_count, self.anchor_kernels = len(anchors), kernels.anchors(plan)
        self.clip_base = self._base(state, "abi.base_module", config.width, kernels)
        encodings = [state[f"abi.encoder.pos_emb_{s}.pe"][: len(anchors), 0] for s in ("action", "background")]
        self.clip_positions = _per_stream(kernels.constant, encodings)

        def projection_pays(outputs: int) -> bool:
            if not (rewrites.project_sampling and kernels.projects_samples):
                return False
            return cheaper_strategy(plan, config.clip_channels, outputs, kernels.device.type) == "project"

        self.projection: Projection[S, W] | None = None
        attention: AttentionWeights[W] | None = None
        self.clip_output: W | None = None  # the self-attention unit's last layer
        if config.self_attention and projection_pays(3 * self.inner):
            self.projection = self._projection(encodings, self._query_key_value(state, unit))
            self.clip_output = kernels.weight(state[f"{unit}.fc.weight"])
        elif config.self_attention:
            attention = self._attention(state, unit, kernels)
            self.clip_output = attention.output
        # Only where both units are present: the folded LayerNorm belongs to self-attention, and without difference
        # attention it would be computed for all anchors instead of the needed ones.
        self.folded: list[FoldedStream[S, W]] = []
        folds = rewrites.folded_norm and kernels.folding is not None and projection_pays(config.feedforward)
        if self.clip_output is not None and config.difference_attention and folds:
            output = state[f"{unit}.fc.weight"], self.clip_output
            self.folded = [self._fold(state, f"{layer}.pos_ffn_{s}", output, encodings) for s in "ab"]
        self.clip_layer = self._interaction(state, layer, attention, folded=bool(self.folded))
        heads = [state[f"abi.{name}.0.weight"] for name in ("fc_reg_a", "fc_cls_a")]
        self.action_head = kernels.weight(torch.cat(heads), exact=True)
        self.background_head: W | None = None
        if config.background_constraint:
            self.background_head = kernels.weight(state["abi.fc_cls_b.0.weight"], exact=True)

    def _projection(self, encodings: list[Tensor], weight: Tensor) -> Projection[S, W]:
        packed = self.kernels.anchor_weight([weight.unflatten(1, (self.config.bins, -1))], len(weight))
        positions = _per_stream(lambda encoding: self.kernels.product(encoding, weight), encodings)
        return Projection(packed, positions)

    def _fold(
        self, state: Mapping[str, Tensor], network: str, output: tuple[Tensor, W], encodings: list[Tensor]
    ) -> FoldedStream[S, W]:
        """output: the self-attention unit's last weight, as a tensor and prepared."""
        first, kernels = state[f"{network}.fc.0.weight"], self.kernels
        attended = kernels.weight(kernels.tensor(kernels.product(first, output[0].T)))
        hidden = self._projection(encodings, first)
        sums, second = kernels.constant(first.double().sum(1)), kernels.weight(state[f"{network}.fc.2.weight"])
        return FoldedStream(hidden, FoldedWeights(output[1], attended, sums, second))

    # ---- Inference

    def __call__(self, features: Tensor) -> BCNetOutput:
        """Compute all scores of features as the kernels take them: one window [C, T] in C++, else [B, C, T]."""
        return self.anchors(features, self.boundaries(features))

    def boundaries(self, features: Tensor) -> Boundaries:
        """Compute boundary probabilities, which decide what anchors are read."""
        logits = self.kernels.result(self._boundary_level(features)).view(-1, self.config.window, 3)
        actionness, start, end = logits.sigmoid().unbind(-1)
        return Boundaries(start, end, actionness)

    def anchors(self, features: Tensor, boundaries: Boundaries, needed: Tensor | None = None) -> BCNetOutput:
        """Compute frame and clip level, and return all scores.

        needed: bool [P], of one window: the anchors to compute. The others get the score 0.
        """
        result, start = self.kernels.result, boundaries.start
        streams, frame_logits = self._frame_level(features)
        frame_action = frame_background = None
        if frame_logits is not None:
            frame_action, frame_background = result(frame_logits).view(2, *start.shape).sigmoid().unbind(0)
        rows = None if needed is None else needed.nonzero()[:, 0]
        if rows is not None and not len(rows):
            action, background = start.new_zeros(1, 0, 2), start.new_zeros(1, 0, 1)
        else:
            action_logits, background_logits = self._clip_level(streams, rows)
            action = result(action_logits).view(len(start), -1, 2)
            background = None
            if background_logits is not None:
                background = result(background_logits).view(len(start), -1, 1)
        # Scattered as logits, because the last bit of a sigmoid can depend on its place in a vector.
        regression = self._scatter(action[..., 0], rows, 0.0)
        classification = self._scatter(action[..., 1], rows, -torch.inf).sigmoid()
        if self.background_head is None or background is None:
            background = None
        else:
            background = self._scatter(background[..., 0], rows, -torch.inf).sigmoid()
        return BCNetOutput(
            start,
            boundaries.end,
            boundaries.actionness,
            frame_action,
            frame_background,
            regression,
            classification,
            background,
        )

    def _scatter(self, scores: Tensor, rows: Tensor | None, fill: float) -> Tensor:
        """Scores [B, n] of the anchors `rows` -> [B, P] with `fill` elsewhere."""
        if rows is None:
            return scores.contiguous()
        return scores.new_full((len(scores), self.anchor_count), fill).index_copy(1, rows, scores)

    def _boundary_level(self, features: Tensor) -> S:
        """Logits [..., T, 3] of actionness, start and end."""
        kernels, inner = self.kernels, self.inner
        with stage("boundary: convolutions"):
            original = self._with_positions(
                features, self.boundary_base, self.boundary_positions, Buffer.ORIGINAL, kernels
            )
        batched = None
        if self.batched is not None:
            with stage("boundary: original sequence"):
                batched = self._original_attended(original, *self.batched)
        x = original
        with stage("boundary: layers"):
            for i, (unit, network) in enumerate(zip(self.boundary_attention, self.boundary_feed_forward, strict=True)):
                if batched is None:
                    from_original = self._unit(unit, original, Buffer.ORIGINAL_ATTENDED, kernels)
                else:
                    from_original = batched[i]
                own = from_original if x is original else self._unit(unit, x, Buffer.SELF_ATTENDED, kernels)
                query = kernels.linear(from_original, unit.query, out=Buffer.QUERY)
                key_value = kernels.linear(own, unit.key_value, out=Buffer.KEY_VALUE)
                key, value = key_value[..., :inner], key_value[..., inner:]
                attended = kernels.attention(query, key, (value,), self.config.heads, out=Buffer.ATTENDED)[0]
                crossed = kernels.linear(
                    attended, unit.output, residual=from_original, norm=True, out=Buffer.CROSS_ATTENDED
                )
                x = kernels.feed_forward(crossed, network, out=Buffer.LAYER)
            return kernels.linear(x, self.boundary_head, out=Buffer.BOUNDARY_LOGITS)

    def _original_attended(self, original: S, query_key_value: W, outputs: Stack) -> S:
        """Self-attention of the first sequence by all layers, [layers, ..., T, d]."""
        kernels = self.kernels
        joint = kernels.tensor(kernels.linear(original, query_key_value, out=Buffer.QUERY_KEY_VALUE))
        by_layer = joint.unflatten(-1, (len(self.boundary_attention), -1)).movedim(-2, 0)
        attended = self._self_attention(kernels.sequence(by_layer), kernels)
        return kernels.linear_each(attended, outputs, residual=original, norm=True, out=Buffer.ORIGINAL_ATTENDED)

    def _frame_level(self, features: Tensor) -> tuple[S | list[S], S | None]:
        """Sequences of action and background, [..., T, d] each, and logits [2, ..., T, 1], None without frame level."""
        kernels, precise, layer = self.kernels, self.precise, self.frame_layer
        with precise.arithmetic(), stage("frames: convolutions"):
            streams = [
                self._with_positions(features, self.frame_base, positions, buffer, precise)
                for positions, buffer in zip(self.frame_positions, FRAME_BASES, strict=False)
            ]
        with stage("frames: interaction"):
            if layer is not None and layer.attention is not None:
                with precise.arithmetic():
                    streams = [
                        self._unit(layer.attention, x, buffer, precise)
                        for x, buffer in zip(streams, FRAME_ATTENDED, strict=False)
                    ]
            if precise is not kernels:
                streams = [kernels.cast(x, out=buffer) for x, buffer in zip(streams, FRAME_ATTENDED, strict=False)]
            both = [streams[0], streams[-1]]
            if layer is None:
                return both, None
            stacked = kernels.feed_forward_each(both, layer.before, out=Buffer.STREAMS_PING)
            stacked = self._difference(layer, stacked, None, spare=Buffer.STREAMS_PONG)
            return stacked, kernels.linear_each(stacked, self.frame_heads, out=Buffer.FRAME_LOGITS)

    def _clip_level(self, streams: S | list[S], rows: Tensor | None = None) -> tuple[S, S | None]:
        """Logits [..., P, 2] of regression and classification, and [..., P, 1] of background (None without it).

        streams: the frame level's sequences of action and background
        rows: numbers of the anchors to compute, int64, ascending; None for all
        """
        kernels, layer = self.kernels, self.clip_layer
        with stage("clips: streams"):
            bases = [
                kernels.convolution(streams[i], self.clip_base[0], out=buffer) for i, buffer in enumerate(CLIP_BASES)
            ]
        # The difference unit needs keys and values of all anchors; without it, few go beyond self-attention.
        early, late = (rows, None) if layer.difference is None else (None, rows)
        if self.folded and kernels.folding is not None:
            both, spare = self._folded_clip_streams(bases, kernels.folding), Buffer.STREAMS_PING
        else:
            both, spare = self._clip_streams(bases, early), Buffer.STREAMS_PONG
        with stage("clips: difference"):
            both = self._difference(layer, both, late, spare=spare)
            action = kernels.linear(both[0], self.action_head, out=Buffer.ACTION_LOGITS)
            if self.background_head is None:
                return action, None
            return action, kernels.linear(both[1], self.background_head, out=Buffer.BACKGROUND_LOGITS)

    def _clip_streams(self, bases: list[S], rows: Tensor | None) -> S:
        """Both streams after self-attention and feed-forward network, [2, ..., n, d], in STREAMS_PING."""
        kernels, layer, output = self.kernels, self.clip_layer, self.clip_output
        with stage("clips: sampling"):
            # A feed-forward network reads PONG: what self-attention writes, or without it the samples.
            buffer = Buffer.STREAMS_PONG if output is None else Buffer.STREAMS_PING
            x = self.anchor_kernels.sample(bases, self.clip_positions, out=buffer)
        attended = None
        if output is not None:
            with stage("clips: self-attention"):
                query, key, value = self._split(self._clip_query_key_value(x, bases))
                query = query if rows is None else kernels.select_rows(query, rows)
                attended = kernels.attention(query, key, (value,), self.config.heads, out=Buffer.ATTENDED)[0]
        x = x if rows is None else kernels.select_rows(x, rows)
        with stage("clips: feed-forward"):
            if output is not None and attended is not None:
                x = kernels.linear(attended, output, residual=x, norm=True, out=Buffer.STREAMS_PONG)
            return kernels.feed_forward_each(x, layer.before, out=Buffer.STREAMS_PING)

    def _folded_clip_streams(self, bases: list[S], folding: FoldingKernels[S, W]) -> S:
        """The same of all anchors in STREAMS_PONG, stream by stream, so that intermediate results take half."""
        result = None
        for i, stream in enumerate(self.folded):
            with stage("clips: sampling"):
                x = self.anchor_kernels.sample([bases[i]], self.clip_positions[i : i + 1], out=Buffer.STREAMS_PING)
            with stage("clips: self-attention"):
                attended = self._self_attention(self._clip_query_key_value(x, [bases[i]], i), self.kernels)
            with stage("clips: feed-forward"):
                result = folding.empty(Buffer.STREAMS_PONG, 2, *x.shape[1:]) if result is None else result
                hidden = self._project([bases[i]], stream.hidden, i)
                folding.folded_feed_forward(attended[0], x[0], hidden[0], stream.weights, result[i])
        assert result is not None
        return result

    def _clip_query_key_value(self, x: S, bases: list[S], first_stream: int = 0) -> S:
        """Query, key and value of anchors, side by side: from sampled features x, or projected before sampling."""
        if self.projection is not None:
            return self._project(bases, self.projection, first_stream)
        attention = self.clip_layer.attention
        assert attention is not None
        return self.kernels.linear(x, attention.query_key_value, out=Buffer.QUERY_KEY_VALUE)

    def _project(self, bases: list[S], projection: Projection[S, W], first_stream: int) -> S:
        """Apply a projection to every anchor: [streams, ..., P, outputs]."""
        positions = projection.positions[first_stream : first_stream + len(bases)]
        return self.anchor_kernels.project(bases, projection.weight, positions, out=Buffer.QUERY_KEY_VALUE)

    def _with_positions(
        self,
        features: Tensor,
        base: list[ConvolutionLayer[S, W]],
        positions: S,
        buffer: Buffer,
        kernels: Kernels[S, W, Stack],
    ) -> S:
        """Features through a convolutional base, with positions added: [..., T, d]."""
        x = kernels.convolution(kernels.features(features), base[0], out=Buffer.BASE_1)
        x = kernels.convolution(x, base[1], out=Buffer.BASE_2)
        return kernels.convolution(x, base[2], added=positions, out=buffer)

    def _split(self, joint: S) -> list[S]:
        """Split query, key and value that lie side by side."""
        return [joint[..., i * self.inner : (i + 1) * self.inner] for i in range(3)]

    def _self_attention(self, joint: S, kernels: Kernels[S, W, Stack]) -> S:
        query, key, value = self._split(joint)
        return kernels.attention(query, key, (value,), self.config.heads, out=Buffer.ATTENDED)[0]

    def _unit(self, unit: AttentionWeights[W], x: S, buffer: Buffer, kernels: Kernels[S, W, Stack]) -> S:
        """A self-attention unit, residual and LayerNorm included."""
        joint = kernels.linear(x, unit.query_key_value, out=Buffer.QUERY_KEY_VALUE)
        attended = self._self_attention(joint, kernels)
        return kernels.linear(attended, unit.output, residual=x, norm=True, out=buffer)

    def _difference(self, layer: InteractionWeights[W, Stack], both: S, rows: Tensor | None, spare: Buffer) -> S:
        """The difference unit and the feed-forward networks after it, [2, ..., n, d].

        Requires: `both` does not lie in `spare`.
        Aliases: the result may lie in the memory of `both`.
        """
        kernels, inner, unit = self.kernels, self.inner, layer.difference
        if unit is None:
            return kernels.feed_forward_each(both, layer.after, out=spare)
        key_value = kernels.linear(both[1], unit.key_value_b, out=Buffer.QUERY_KEY_VALUE)
        value_a = kernels.linear(both[0], unit.value_a, out=spare)
        if rows is not None:
            both = kernels.select_rows(both, rows)
        query = kernels.linear(both[0], unit.query, out=Buffer.QUERY)
        values = value_a, key_value[..., inner:]
        attended = kernels.attention(query, key_value[..., :inner], values, self.config.heads, out=Buffer.ATTENDED)
        return kernels.finish_attention_each(attended, unit.outputs, both, layer.after, scratch=spare)


def _per_stream(function: Callable[[Tensor], T], encodings: list[Tensor]) -> list[T]:
    """Apply a function to the positional encoding of each stream, once where both are equal."""
    first = function(encodings[0])
    return [first, first if torch.equal(*encodings) else function(encodings[1])]
