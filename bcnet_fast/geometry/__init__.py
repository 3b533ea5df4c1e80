"""Anchors and proposal maps: which intervals a network scores."""
