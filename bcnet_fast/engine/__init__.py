"""Inference of a trained network, prepared once and run many times; the reference stays the definition of its results."""

from .rewrites import REWRITES, Rewrites

__all__ = ["REWRITES", "Rewrites"]
