"""A trained network prepared for inference. `bcnet_fast.networks.reference` defines its results."""

from .rewrites import REWRITES, Rewrites

__all__ = ["REWRITES", "Rewrites"]
