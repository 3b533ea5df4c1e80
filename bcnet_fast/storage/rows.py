"""An .npy file [T, C] float32 that is written row by row, so that memory does not grow with T."""

from __future__ import annotations

import io
import os
from types import TracebackType

import numpy as np
from numpy.lib import format as npy


class RowFile:
    """Writes rows to `path`; the header follows when `with` ends without an error.

    width: channels C.
    """

    def __init__(self, path: str | os.PathLike, width: int) -> None:
        self.rows, self.width = 0, width
        self._file = open(path, "wb")
        self._file.write(_header(0, width))

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._file.write(_header(self.rows, self.width))

    def append(self, rows: np.ndarray) -> None:
        """Write rows [n, C] float32."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"rows have shape {list(rows.shape)}, expected [n, {self.width}]")
        self._file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        self.rows += len(rows)


def _header(rows: int, width: int) -> bytes:
    """The header of an .npy file, of the same length for every number of rows."""
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    header = stream.getvalue()
    # NumPy leaves room for 21 digits of the first axis, in blocks of 64 bytes.
    padded = header[:-1].ljust(191) + b"\n"
    return padded[:8] + (len(padded) - 10).to_bytes(2, "little") + padded[10:]
