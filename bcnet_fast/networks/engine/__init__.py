"""Inference of a trained network, prepared once and run many times. The reference defines its results."""

from .rewrites import REWRITES, Rewrites

__all__ = ["REWRITES", "Rewrites"]
