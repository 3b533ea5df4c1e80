"""Optional libraries."""

from __future__ import annotations

from typing import Any

from ..errors import InputError


def require_pyarrow() -> Any:
    """The module pyarrow, with pyarrow.parquet. InputError: it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError("pyarrow is not installed, which Parquet needs: pip install 'bcnet_fast[parquet]'") from error
    return pyarrow
