"""Weights in the layout of the C++ products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ...ops import native


class PackedWeight(Protocol):
    """The extension's class of that name: weights of one or several groups."""

    @property
    def groups(self) -> int: ...

    @property
    def outputs(self) -> int: ...  # of a group

    @property
    def inputs(self) -> int: ...  # of a group

    def part(self, first: int, last: int) -> PackedWeight: ...

    def pack_outputs(self, weight: np.ndarray, first: int, threads: int = 1) -> None: ...


def extension() -> Any:
    """The compiled module. Looked up at every call, because profilers replace it."""
    return native.module


def packed(weight: np.ndarray, groups: int = 1, *, int8: bool = False, strassen: bool = False) -> PackedWeight:
    """Pack weight [groups * outputs, inputs] or [groups, outputs, inputs]."""
    # Packed weights have pages of their own and cannot use memory that the C library keeps after a free.
    extension().return_freed_memory()
    return extension().PackedWeight(weight, groups, int8=int8, strassen=strassen, threads=torch.get_num_threads())


def packed_slices(
    weight: np.ndarray, slices: Sequence[tuple[int, int]], *, int8: bool = False, strassen: bool = False
) -> list[PackedWeight]:
    """Pack all rows of weight [outputs, inputs], which the first slice names, then the other ranges of rows.

    Aliases: ranges of whole panels share the memory of the first.
    """
    panel = extension().PANEL
    whole = packed(weight, int8=int8, strassen=strassen)
    parts = [whole]
    for first, last in slices[1:]:
        if first % panel == 0 and last % panel == 0:
            parts.append(whole.part(first, last))
        else:
            parts.append(packed(weight[first:last], int8=int8, strassen=strassen))
    return parts


def packed_parts(parts: Iterable[np.ndarray], outputs: int, dtype: np.dtype) -> PackedWeight:
    """Pack a weight of one group per bin from parts [N, outputs of the part, C] of whole panels."""
    weight, first = None, 0
    for part in parts:
        bins, rows, columns = part.shape
        if weight is None:
            extension().return_freed_memory()  # as in `packed`
            weight = extension().PackedWeight.unpacked(bins, outputs, columns, dtype == np.float64)
        weight.pack_outputs(part, first, torch.get_num_threads())
        first += rows
    assert weight is not None
    return weight
