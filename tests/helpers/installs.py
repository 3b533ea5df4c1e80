"""Processes that import a package from elsewhere than the checkout."""

from __future__ import annotations

# An editable install of the checkout would answer for modules that a package on PYTHONPATH lacks.
NOT_EDITABLE = """
import sys
sys.meta_path = [f for f in sys.meta_path if getattr(f, "__name__", "") != "_EditableFinder"]
"""
