"""Arrays in .npy and .npz files. Shape and dtype come from the header, and values are read when they are indexed.

Files are read, not mapped: a map ends the process where the file shrinks meanwhile. Object arrays are refused, because
they would run pickled code.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

# NumPy warns about headers that Python 2 wrote. The warning takes several lines and asks nothing of the user.
warnings.filterwarnings("ignore", r"Reading `\.npy` or `\.npz` file required additional header parsing", UserWarning)


_LONGEST_HEADER = 1 << 16  # bytes


class StoredArray:
    """An array in a file; `array[index]` reads the file as a whole at the first call.

    open_stream: opens the content of the .npy format.
    """

    def __init__(self, open_stream: Callable[[], IO[bytes]]) -> None:
        self._open_stream = open_stream
        self._values: np.ndarray | None = None
        with open_stream() as stream:
            version = npy.read_magic(stream)
            if version == (1, 0):
                shape, _, self.dtype = npy.read_array_header_1_0(stream)
            else:  # version 3 has the header of version 2, in UTF-8
                length = stream.read(4)
                if int.from_bytes(length, "little") > _LONGEST_HEADER:
                    raise ValueError("the header is too long")
                rest = stream.read(int.from_bytes(length, "little"))
                shape, _, self.dtype = npy.read_array_header_2_0(io.BytesIO(length + rest))
        if not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"the header has the shape {shape!r:.80}")
        self.shape: tuple[int, ...] = shape
        self.ndim = len(shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        if self._values is None:
            with self._open_stream() as stream:
                self._values = npy.read_array(stream, allow_pickle=False)
            if self._values.shape != self.shape:
                raise ValueError("the file has changed while it was read")
        return self._values[index]


def open_npy(path: Path) -> StoredArray:
    """The array of an .npy file. Raises whatever a damaged header or file makes NumPy raise."""
    return StoredArray(lambda: open(path, "rb"))


def open_npz(file: Path | IO[bytes]) -> dict[str, Callable[[], StoredArray]]:
    """Functions that open the arrays of an .npz file, by name. Raises whatever a damaged file makes zipfile raise."""
    with zipfile.ZipFile(file) as archive:
        require_bounded(archive)
        members = archive.namelist()
    return {member.removesuffix(".npy"): lambda member=member: _open_member(file, member) for member in members}


def require_bounded(archive: zipfile.ZipFile) -> None:
    """ValueError: a member is packed by a method that zipfile unpacks as a whole, whatever is read of it."""
    for member in archive.infolist():
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"compression method {member.compress_type}, expected deflate or none")


def _open_member(file: Path | IO[bytes], member: str) -> StoredArray:
    def open_stream() -> IO[bytes]:
        with zipfile.ZipFile(file) as archive:
            return archive.open(member)  # which keeps the file open until it is closed itself

    return StoredArray(open_stream)
