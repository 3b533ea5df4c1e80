"""Exact rewrites of a network that can be switched off one by one.

Every rewrite computes the same function as `bcnet_fast.networks.reference`, summed in another order. Switched off, as
in `Rewrites(folded_norm=False)`, it shows where a difference comes from and what the rewrite saves (docs/engine.md).

A rewrite has a switch where its alternative exists anyway: because a cost model or the device decides, or because the
alternative takes no code. Others always pay and are part of the network: the table that replaces the search for the
matching anchor (`ops.match_proposals`); constant products with positional encodings; one run of BCNet's self-attention
for streams with equal inputs; G-TAD's first layer on edges, computed per node.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rewrites:
    """Which rewrites the engine uses."""

    # Sampling is linear. A layer on sampled features (BCNet's query, key and value, the first layer of a map) is
    # applied to every snippet and bin before sampling, where the cost model of `anchor_projection` finds less work.
    project_sampling: bool = True
    # The clip level after keys and values is computed only for anchors that a pair of boundaries matches, because no
    # other score is read. Applies to `boundaries` and `anchors`, on a CPU.
    matched_anchors: bool = True
    # Every boundary layer attends to the first sequence again: one product computes query, key and value for all
    # layers. On GPUs, since its result would not fit a CPU's cache.
    batched_original: bool = True
    # LayerNorm has no scale and shift, so W LN(y) = (W y - mean(y) W 1) / std(y). The clip level's first feed-forward
    # product reads the 512 columns of attention and sampled projections instead of the 2048 columns computed from them.
    folded_norm: bool = True
    # One step of Strassen's algorithm for large products with weights: seven eighths of the multiply-adds, twice the
    # rounding errors. In C++ and float32 only.
    strassen: bool = True
    # BMN and G-TAD: cells of the map that are no proposals are computed only where valid ones read them.
    valid_cells: bool = True
    # P-GCN: a proposal occurs in many graphs, so the first layer's product is computed once for each proposal, not for
    # each node. With all slots as neighbours, so is the whole first layer.
    shared_nodes: bool = True
    # P-GCN: only the root's row of the last layer is read, hence only the rows of root and children of the first.
    root_rows: bool = True
    # P-GCN: the second layer is linear, so the heads' weights absorb its weight and bias.
    folded_heads: bool = True
    # P-GCN: cosines along edges, each pair of proposals once, instead of between all nodes of every graph.
    edge_cosines: bool = True
    # MUSES-Net: the four branches of a layer are one convolution of 21 taps.
    merged_taps: bool = True
    # MUSES-Net: two look-ups in a table of maxima over 2^k columns instead of a scan for each bin.
    maxima_table: bool = True
    # MUSES-Net: the 21 taps are seven groups of three, and three outputs of three taps take five products instead of
    # nine (`short_filters`). In C++ only.
    short_filters: bool = True


# The switches that concern each system.
REWRITES = {
    "bcnet": ("project_sampling", "matched_anchors", "batched_original", "folded_norm", "strassen"),
    "bmn": ("project_sampling", "valid_cells"),
    "gtad": ("project_sampling", "valid_cells"),
    "pgcn": ("shared_nodes", "root_rows", "folded_heads", "edge_cosines", "strassen"),
    "muses": ("merged_taps", "maxima_table", "short_filters", "strassen"),
}
# Switches of the second stage that only C++ has.
IN_CPP = ("strassen", "short_filters")
ALL_REWRITES = Rewrites()
