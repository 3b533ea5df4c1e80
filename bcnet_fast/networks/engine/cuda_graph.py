"""A network on CUDA as graphs, one per batch size: each is launched as a whole, without Python between its kernels."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..outputs import Output

# Captured batch sizes. They bound both the number of graphs and the memory that the largest of them keeps.
BATCHES = (1, 2, 4, 8, 16, 32)
WARM_UP = 3  # runs before a capture: kernels compile, libraries choose algorithms and load their code
STREAMS = 32  # in PyTorch's pool, from which torch.cuda.Stream takes turns

_streams_in_use: set[tuple[int, int]] = set()  # device, handle
_captures = threading.Lock()  # one capture at a time in a process


def portions(batch: int) -> list[tuple[int, int]]:
    """Split a batch into replays: (windows, size of the graph) of each.

    A graph has at most one unused window for every three in use.
    """
    parts = []
    while batch:
        size = next((s for s in BATCHES if batch <= s), BATCHES[-1])
        if 4 * batch < 3 * size:
            size = max(s for s in BATCHES if s <= batch)
        parts.append((min(batch, size), size))
        batch -= parts[-1][0]
    return parts


@dataclass(frozen=True)
class Captured:
    """A graph with the tensors that it reads and writes at each replay."""

    graph: torch.cuda.CUDAGraph
    features: Tensor
    scores: Output


class Graphed:
    """A function of features [B, C, T], captured once for each of `BATCHES` and replayed from then on.

    All captures and replays happen on one stream that no other `Graphed` uses. One replay follows another there, so
    all graphs share one memory pool, which is as large as the largest of them. The pool also holds the workspace of
    cuBLAS, which PyTorch keeps per stream: warm-up runs on the caller's stream, so the first capture allocates it. Thus
    graphs of two objects never write to the same memory, and nothing that happens to one breaks the other.

    Events order the caller's stream with the object's own, whichever streams and threads call. The caller has to make
    sure that only one thread is inside a call. Outputs are copies and stay as they are.

    A failed capture is reported once as a warning; from then on the function runs eagerly.
    """

    def __init__(self, function: Callable[[Tensor], Output], device: torch.device, dtype: torch.dtype) -> None:
        """dtype: of the graphs' static inputs, to which features are converted."""
        self.function, self.device, self.dtype = function, device, dtype
        self.captured: dict[int, Captured] = {}
        self.problem: str | None = None
        self._stream: torch.cuda.Stream | None = None
        self._replayed, self._copied = torch.cuda.Event(), torch.cuda.Event()

    def __call__(self, features: Tensor) -> Output:
        with torch.cuda.device(self.device):
            # Inside a capture of the caller's, the kernels become part of that graph.
            if self.problem is not None or torch.cuda.is_current_stream_capturing():
                return self.function(features.to(self.device, self.dtype))
            parts, begin = [], 0
            for windows, size in portions(len(features)):
                part = features[begin : begin + windows]
                captured = self._graph_of(size, features.shape[1:])
                if captured is None:
                    return self.function(features.to(self.device, self.dtype))
                parts.append(self._replay(captured, part))
                begin += windows
            return Output.cat(parts)

    def _replay(self, captured: Captured, features: Tensor) -> Output:
        stream, caller = self._stream, torch.cuda.current_stream()
        assert stream is not None  # claimed by the capture
        stream.wait_stream(caller)
        stream.wait_event(self._copied)  # the last caller may have used another stream
        with torch.cuda.stream(stream):
            captured.features[: len(features)].copy_(features)
            captured.graph.replay()
            self._replayed.record(stream)
        caller.wait_event(self._replayed)
        scores = captured.scores.map(lambda scores: scores[: len(features)].clone())
        self._copied.record(caller)
        return scores

    def _graph_of(self, size: int, shape: torch.Size) -> Captured | None:
        """The graph of a batch size, captured if need be; None where that fails."""
        if size not in self.captured and self.problem is None:
            features = torch.zeros(size, *shape, dtype=self.dtype, device=self.device)
            for _ in range(WARM_UP):
                self.function(features)
            try:
                self.captured[size] = self._capture(features)
            except Exception as error:  # whatever it is, the function has just run without a graph
                self.problem = f"{type(error).__name__}: {error}"
                warnings.warn(f"{self.device} runs without CUDA graphs, since a capture failed: {error}", stacklevel=2)
        return self.captured.get(size)

    def _capture(self, features: Tensor) -> Captured:
        with _captures:
            if self._stream is None:
                self._stream, self._pool = _claim_stream(self.device), torch.cuda.graph_pool_handle()
                finalizer = weakref.finalize(self, _release, self.captured, self._stream)
                finalizer.atexit = False  # the process gives everything back by itself
            self._stream.wait_stream(torch.cuda.current_stream())
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on allocating memory while this one captures.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                scores = self.function(features)
        return Captured(graph, features, scores)


def _claim_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that neither the caller nor another `Graphed` uses."""
    callers = torch.cuda.current_stream(device).cuda_stream
    for _ in range(STREAMS + 1):
        stream = torch.cuda.Stream(device)
        key = device.index, stream.cuda_stream
        if key not in _streams_in_use and stream.cuda_stream != callers:
            _streams_in_use.add(key)
            return stream
    raise RuntimeError(f"other networks use all {STREAMS} streams of {device}")


def _release(captured: dict[int, Captured], stream: torch.cuda.Stream) -> None:
    """Destroy graphs after their last replay, then let others have their stream."""
    stream.synchronize()
    captured.clear()
    _streams_in_use.discard((stream.device.index, stream.cuda_stream))
