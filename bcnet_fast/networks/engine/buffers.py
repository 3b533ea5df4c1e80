"""The memory of the C++ kernels: named buffers, allocated in the first window and reused in all later ones."""

from __future__ import annotations

import contextlib
import enum
import math
import mmap

import numpy as np

CACHE_LINE = 16  # elements of float32


class Buffer(enum.Enum):
    """The name of a buffer. A buffer holds one result at a time; the next one overwrites it."""


class BCNetBuffer(Buffer):
    """BCNet's buffers. The kernels of the frame level's first layers have a workspace of their own."""

    # Convolutional base of the boundary and the frame level: results of the first and the second layer.
    BASE_1 = enum.auto()
    BASE_2 = enum.auto()

    # Attention units of all levels.
    QUERY_KEY_VALUE = enum.auto()  # side by side; in a difference unit the background's key and value
    QUERY = enum.auto()
    ATTENDED = enum.auto()  # weighted values, heads side by side

    # Boundary level.
    ORIGINAL = enum.auto()  # the first sequence, which every layer attends to again
    ORIGINAL_ATTENDED = enum.auto()  # self-attention of the first sequence, by one layer or by all
    SELF_ATTENDED = enum.auto()  # self-attention of a layer's input
    KEY_VALUE = enum.auto()  # of the cross-attention
    CROSS_ATTENDED = enum.auto()
    LAYER = enum.auto()  # result of a boundary layer
    BOUNDARY_LOGITS = enum.auto()

    # Frame level: one sequence per stream, or one for both where they are equal.
    FRAME_ACTION = enum.auto()  # base with positions
    FRAME_BACKGROUND = enum.auto()
    FRAME_ACTION_ATTENDED = enum.auto()  # self-attention, then the same in the precision of the other layers
    FRAME_BACKGROUND_ATTENDED = enum.auto()
    FRAME_LOGITS = enum.auto()

    # Clip level.
    CLIP_ACTION = enum.auto()  # convolution that is sampled
    CLIP_BACKGROUND = enum.auto()
    ACTION_LOGITS = enum.auto()
    BACKGROUND_LOGITS = enum.auto()

    # Frame and clip level: both streams of a step. A step reads one of the two buffers and writes the other.
    STREAMS_PING = enum.auto()
    STREAMS_PONG = enum.auto()


class BMNBuffer(Buffer):
    """BMN's buffers up to the map."""

    BASE_1 = enum.auto()
    BASE_2 = enum.auto()
    BOUNDARY_HIDDEN = enum.auto()  # first layer of a boundary head
    START_LOGITS = enum.auto()
    END_LOGITS = enum.auto()
    SEQUENCE = enum.auto()  # sampled by the map


class GTADBuffer(Buffer):
    """G-TAD's buffers up to the map. Results of graph blocks are PyTorch's."""

    STEM = enum.auto()
    TIME_1 = enum.auto()  # the layers of a block along time
    TIME_2 = enum.auto()
    TIME_3 = enum.auto()
    NODE = enum.auto()  # first layer on edges: the node's share, and its neighbour's
    NEIGHBOUR = enum.auto()
    EDGES_2 = enum.auto()  # second and third layer on edges
    EDGES_3 = enum.auto()
    START_LOGITS = enum.auto()
    END_LOGITS = enum.auto()


class MapBuffer(Buffer):
    """The buffers of the layers over a map. Its layers alternate between PING and PONG."""

    SAMPLES = enum.auto()  # sampled features, where they are not projected first
    PING = enum.auto()  # projected samples, then the first convolution
    PONG = enum.auto()  # first layer on cells, then the second convolution
    SCORES = enum.auto()


class Workspace:
    """Hands out named buffers of one dtype. They grow where a result is larger than any before it."""

    # For tests: a buffer gets new memory whenever it is handed out, and the old memory is filled with NaN. A read of an
    # overwritten result then shows as NaN instead of as a value of the next result.
    poison = False

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.memory: dict[Buffer, np.ndarray] = {}
        self._views: dict[Buffer, tuple[tuple[tuple[int, ...], bool], np.ndarray]] = {}  # last shape of each buffer

    def take(self, buffer: Buffer, *shape: int, padded: bool = True) -> np.ndarray:
        """Hand out a buffer as [..., d]; earlier results in it are lost.

        Padded rows are an odd number of cache lines apart. At a power of two, the rows of a tile would compete for a
        few sets of the cache.
        """
        if self.poison and buffer in self.memory:
            self.memory.pop(buffer).fill(np.nan)
            del self._views[buffer]
        known = self._views.get(buffer)
        if known is not None and known[0] == (shape, padded):
            return known[1]
        return self._view(buffer, shape, padded)

    def _view(self, buffer: Buffer, shape: tuple[int, ...], padded: bool) -> np.ndarray:
        columns = (-(-shape[-1] // CACHE_LINE) | 1) * CACHE_LINE if padded else shape[-1]
        size = math.prod(shape[:-1]) * columns
        memory = self.memory.get(buffer)
        if memory is None or len(memory) < size:
            memory = self.memory[buffer] = _pages(size, self.dtype)
            if self.poison:
                memory.fill(np.nan)
        view = memory[:size].reshape(*shape[:-1], columns)[..., : shape[-1]]
        self._views[buffer] = (shape, padded), view
        return view


def _pages(size: int, dtype: np.dtype) -> np.ndarray:
    """Allocate pages that return to the system as a whole when a buffer grows, so that the heap keeps no hole."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, max(size, 1) * dtype.itemsize, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # kernels without huge pages refuse the hint
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype)
