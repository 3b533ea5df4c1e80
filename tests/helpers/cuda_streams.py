"""CUDA's streams, events, graphs and cuBLAS workspaces, as far as they decide which memory is accessed when.

Tensors stay on the CPU and operators run at once. Beside that, each stream has a vector clock, and each access to a
tensor's memory is checked: one that no event orders after an earlier write, or a write after an earlier read, is a
race. That is what a GPU may do, on which streams run at the same time. PyTorch's workspaces for cuBLAS are modelled as
well. Each stream has one, allocated at the first product, from the graph's pool during a capture. Destroying a graph
drops the workspace of the stream that it was captured on (PyTorch 2.12).
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

POOL = 32
PRODUCTS = ("mm", "addmm", "bmm")


class Race(AssertionError):
    """Two accesses to one memory that nothing orders."""


class Memory:
    """Who wrote it last, and who read it since: (stream, time)."""

    def __init__(self) -> None:
        self.written: tuple[Any, int] | None = None
        self.reads: list[tuple[Any, int]] = []

    def access(self, line: Line, what: str, write: bool) -> None:
        for other, time in [*([self.written] if self.written else []), *(self.reads if write else [])]:
            if line.clock.get(other, 0) < time:
                raise Race(f"{what}: not ordered after an access on another stream")
        if write:
            self.written, self.reads = (line, line.clock[line]), []
        else:
            self.reads.append((line, line.clock[line]))


class Line:
    """A stream of work that runs in order; one handle stands for it."""

    def __init__(self, device: int, handle: int) -> None:
        self.device, self.handle = device, handle
        self.clock: dict[Line, int] = {self: 0}

    def join(self, clock: dict[Line, int]) -> None:
        for line, time in clock.items():
            self.clock[line] = max(self.clock.get(line, 0), time)


class Workspace(Memory):
    def __init__(self, pool: Pool | None) -> None:
        super().__init__()
        self.pool, self.freed = pool, False

    def usable(self) -> bool:
        return not self.freed or (self.pool is not None and self.pool.graphs > 0)


class Pool:
    """A private memory pool: freed memory stays in it while it has graphs."""

    graphs = 0


class Streams:
    """The simulated device functions; `install` puts them in the place of `torch.cuda`'s."""

    def __init__(self) -> None:
        self.lines = {(device, 0): Line(device, 0) for device in range(2)}
        self.storages: dict[int, Memory] = {}
        self.kept: list[Any] = []  # storages, so that no two have one address
        self.workspaces: dict[Line, Workspace] = {}
        self.turns = {device: itertools.cycle(range(1, POOL + 1)) for device in range(2)}
        self.state = threading.local()
        self.captures: list[dict[str, Any]] = []
        self.fail: Exception | None = None  # error that the next capture raises

    # ---- What torch.cuda has

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sim = self

        class Stream:
            def __init__(self, device: torch.device | int | None = None, handle: int | None = None) -> None:
                index = sim.index(device)
                self.device = torch.device("cpu", index)
                self.cuda_stream = next(sim.turns[index]) if handle is None else handle
                self.line = sim.lines.setdefault((index, self.cuda_stream), Line(index, self.cuda_stream))

            def wait_stream(self, other: Stream) -> None:
                self.line.join(other.line.clock)

            def wait_event(self, event: Event) -> None:
                self.line.join(event.clock)

            def synchronize(self) -> None:
                for line in sim.lines.values():  # work that the host starts from now on is later
                    line.join(self.line.clock)

        class Event:
            def __init__(self) -> None:
                self.clock: dict[Line, int] = {}

            def record(self, stream: Stream) -> None:
                self.clock = dict(stream.line.clock)

        class CUDAGraph:
            def __init__(self) -> None:
                self.operations: list[tuple[Any, ...]] = []
                self.pool: Pool | None = None
                self.line: Line | None = None

            def replay(self) -> None:
                for function, arguments, outputs, workspace in self.operations:
                    if workspace is not None and not workspace.usable():
                        raise Race("a graph writes to a workspace that was freed")
                    sim.run(function, arguments, outputs, workspace, sim.current().line)

            def __del__(self) -> None:
                if self.pool is not None:
                    self.pool.graphs -= 1
                    dropped = sim.workspaces.pop(self.line, None)
                    if dropped is not None:
                        dropped.freed = True

        class graph:
            default_capture_stream = None

            def __init__(self, graph: CUDAGraph, pool=None, stream=None, capture_error_mode="global") -> None:
                kind = type(self)
                if stream is None:
                    kind.default_capture_stream = stream = kind.default_capture_stream or Stream()
                self.graph, self.stream = graph, stream
                graph.pool, graph.line = pool or Pool(), stream.line
                sim.captures.append({"mode": capture_error_mode, "stream": stream, "pool": graph.pool})

            def __enter__(self) -> None:
                if self.stream.device.index != sim.device():
                    raise RuntimeError("capture on a stream of another device")
                self.before = sim.current()
                sim.state.stream, sim.state.capturing = self.stream, self.graph

            def __exit__(self, *error: object) -> None:
                sim.state.stream, sim.state.capturing = self.before, None
                if sim.fail is not None:
                    raise sim.fail
                self.graph.pool.graphs += 1

        self.Stream, self.CUDAGraph, self.graph = Stream, CUDAGraph, graph
        replaced = {
            **{"Stream": Stream, "Event": Event, "CUDAGraph": CUDAGraph, "graph": graph},
            **{"graph_pool_handle": Pool, "device": self.on_device, "stream": self.on_stream},
            "current_stream": lambda device=None: self.current(),
            "is_current_stream_capturing": lambda: self.capturing() is not None,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def index(self, device: torch.device | int | None) -> int:
        index = device.index if isinstance(device, torch.device) else device
        return self.device() if index is None else index

    def device(self) -> int:
        return getattr(self.state, "device", 0)

    def current(self) -> Any:
        stream = getattr(self.state, "stream", None)
        return stream if stream is not None and stream.device.index == self.device() else self.Stream(handle=0)

    def capturing(self) -> Any:
        return getattr(self.state, "capturing", None)

    @contextlib.contextmanager
    def on_device(self, device: torch.device):
        before, self.state.device = self.device(), self.index(device)
        yield
        self.state.device = before

    @contextlib.contextmanager
    def on_stream(self, stream: Any):
        before, self.state.stream = getattr(self.state, "stream", None), stream
        yield
        self.state.stream = before

    # ---- What operators do

    def watch(self) -> TorchDispatchMode:
        """A mode in which every operator of this thread is one of the current stream, or of a graph."""
        sim = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                kwargs = kwargs or {}
                outputs = function(*args, **kwargs)
                line, workspace = sim.current().line, None
                if function.overloadpacket.__name__ in PRODUCTS:
                    captured = sim.capturing()
                    workspace = sim.workspaces.setdefault(line, Workspace(captured.pool if captured else None))
                if sim.capturing() is not None:
                    sim.capturing().operations.append((function, (args, kwargs), outputs, workspace))
                else:
                    sim.run(function, (args, kwargs), outputs, workspace, line, done=True)
                return outputs

        return Mode()

    def run(self, function, arguments, outputs, workspace, line: Line, done: bool = False) -> None:
        line.clock[line] += 1
        args, kwargs = arguments
        inputs = [t for t in tree_leaves(arguments) if isinstance(t, torch.Tensor)]
        results = [t for t in tree_leaves(outputs) if isinstance(t, torch.Tensor)]
        mutable = function._schema.is_mutable
        read = {t.untyped_storage().data_ptr() for t in inputs}
        if not mutable and results and all(t.untyped_storage().data_ptr() in read for t in results):
            return  # a view
        if not done:
            again = function(*args, **kwargs)
            if not mutable:
                for into, value in zip(results, tree_leaves(again), strict=True):
                    into.copy_(value)
        for tensor in inputs:
            self.of(tensor).access(line, str(function), write=False)
        for tensor in [args[0]] if mutable else results:
            self.of(tensor).access(line, str(function), write=True)
        if workspace is not None:
            workspace.access(line, "workspace of cuBLAS", write=True)

    def of(self, tensor: torch.Tensor) -> Memory:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.storages:
            self.kept.append(storage)
            self.storages[storage.data_ptr()] = Memory()
        return self.storages[storage.data_ptr()]
