"""Makes the Triton kernels importable as ``bcnet_fast.kernels``.

They lie in ``<checkout>/kernels`` in a source tree and in ``bcnet_fast/kernels`` in a wheel. The folder has no
``__init__.py``: with one, running from the repository root would hide the unrelated PyPI package ``kernels``.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
__path__ = [str(next(p for p in (_HERE / "kernels", _HERE.parent / "kernels") if p.is_dir()))]
