"""BCNet's weights as its engine uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from .kernels import FeedForwardWeights, FoldedWeights, S, Stack, W


@dataclass(frozen=True)
class AttentionWeights(Generic[W]):
    """A self- or cross-attention unit.

    query_key_value: query, key and value weights, one below the other
    query, key_value: parts of it
    output: the layer after attention
    """

    query_key_value: W
    query: W
    key_value: W
    output: W


@dataclass(frozen=True)
class Projection(Generic[S, W]):
    """A layer on the clip level's inputs, which are sampled features and a positional encoding.

    weight: for sampled features, of `Kernels.anchor_weight`
    positions: its products with the positional encoding of each stream, [P, outputs]
    """

    weight: W
    positions: list[S]


@dataclass(frozen=True)
class FoldedStream(Generic[S, W]):
    """One stream of the clip level with the first LayerNorm folded into the product after it.

    hidden: projects the inputs by the feed-forward network's first weight
    weights: the layers around LayerNorm
    """

    hidden: Projection[S, W]
    weights: FoldedWeights[S, W]


@dataclass(frozen=True)
class DifferenceWeights(Generic[W, Stack]):
    """A difference-attention unit of the streams action (a) and background (b).

    query: of a
    value_a: of a
    key_value_b: key and value of b, one below the other
    outputs: the layers after attention, of a and b
    """

    query: W
    value_a: W
    key_value_b: W
    outputs: Stack


@dataclass(frozen=True)
class InteractionWeights(Generic[W, Stack]):
    """One layer of action-background interaction. A unit that the network lacks is None.

    attention: shared by both streams; None as well where `projection` replaces its first layer
    before: feed-forward networks of both streams after self-attention, none where they are folded
    difference: the difference-attention unit
    after: feed-forward networks of both streams at the end
    """

    attention: AttentionWeights[W] | None
    before: list[FeedForwardWeights[W]]
    difference: DifferenceWeights[W, Stack] | None
    after: list[FeedForwardWeights[W]]
