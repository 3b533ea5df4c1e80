"""The operators, each usable alone in another model."""

from .add_layer_norm import add_layer_norm
from .anchor_sampling import anchor_projection, anchor_sampling
from .backends import use_backend
from .difference_attention import difference_attention
from .match_proposals import MatchedProposals, match_proposals
from .soft_nms import soft_nms

__all__ = [
    "MatchedProposals",
    "add_layer_norm",
    "anchor_projection",
    "anchor_sampling",
    "difference_attention",
    "match_proposals",
    "soft_nms",
    "use_backend",
]
