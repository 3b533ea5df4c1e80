"""The exact rewrites of the network that the engine makes, each of which can be switched off alone.

All of them give the same function as `bcnet_fast.networks.reference`, summed in another order. The engine without one
of them, `Rewrites(constant_positions=False)`, shows where a difference comes from and what each rewrite is worth.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rewrites:
    """Which rewrites are made.

    One more, the table of the anchors that match pairs of boundaries, is part of `ops.match_proposals`.
    """

    # Sampling is linear: what is made of sampled features (BCNet's queries, keys and values, the first layer of a map)
    # is made for every snippet and bin, and sampled then, where that is less by the cost model of `anchor_projection`.
    project_sampling: bool = True
    # Boundaries first: of the clip level, what follows keys and values is computed only for the anchors that some pair
    # of boundaries matches. No other score is ever read. Counts where only those are asked for.
    matched_anchors: bool = True
    # Both streams have one self-attention unit: at frame level, where their inputs are equal too, it runs once, and at
    # clip level both streams are rows of the same products.
    shared_streams: bool = True
    # Every boundary layer looks at the first sequence again: its queries, keys and values, for all layers, are one
    # product. Not on a CPU, whose cache the result would not fit.
    batched_original: bool = True
    # LayerNorm has no scale and shift, so W LN(y) = (W y - mean(y) W 1) / std(y): the product of the clip level's first
    # feed-forward takes the attention's 512 columns and sampled projections instead of the 2048 columns made of them.
    folded_norm: bool = True
    # Positional encodings are constants, and so are their products with weights.
    constant_positions: bool = True
    # Large products with weights by Strassen's algorithm, applied once: seven eighths of the multiply-adds, twice the
    # rounding errors. In C++ and float32 alone.
    strassen: bool = True
    # The map of BMN and G-TAD: cells that are no proposals are computed only where valid ones read them.
    valid_cells: bool = True
    # G-TAD: the first layer on the edges of a graph is linear in both nodes, so it is made for nodes, not for edges.
    split_edges: bool = True


# By system, those that concern it.
REWRITES = {
    "bcnet": (
        "project_sampling",
        "matched_anchors",
        "shared_streams",
        "batched_original",
        "folded_norm",
        "constant_positions",
        "strassen",
    ),
    "bmn": ("project_sampling", "valid_cells"),
    "gtad": ("project_sampling", "valid_cells", "split_edges"),
}
ALL_REWRITES = Rewrites()
