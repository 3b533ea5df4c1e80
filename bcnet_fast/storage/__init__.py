"""Atomic file writing, and checkpoints."""
