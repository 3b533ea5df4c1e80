"""A CUDA device that is the CPU: runs the code that steps of the first contact have for GPUs where there is none.

Tensors asked for on "cuda" lie on the CPU, streams and events do nothing, and a captured graph repeats the operators
that ran meanwhile. It therefore finds wrong calls and names in that code, but no errors of a GPU.

The step target `fake_cuda.py:module.function` is that function with this device in place.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "NVIDIA H100 80GB HBM3"
SHORT = {"window": 32, "max_duration": 16}


def on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


class OnCpu(TorchFunctionMode):
    """Tensors that are asked for on CUDA lie on the CPU."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is torch.device:
            return function(*arguments, **(options or {}))
        arguments, options = (tree_map(on_cpu, given) for given in (arguments, options or {}))
        return function(*arguments, **options)


class Thread(threading.Thread):
    """A thread whose tensors lie on the CPU as well."""

    def run(self) -> None:
        with OnCpu():
            super().run()


class Stream:
    cuda_stream, device = 0, torch.device("cuda", 0)
    made = 0

    def __init__(self, *_: Any) -> None:
        Stream.made += 1
        self.cuda_stream = Stream.made

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    def wait_event(self, event: Event) -> None:
        assert isinstance(event, Event)

    def synchronize(self) -> None:
        pass


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.timed, self.at = enable_timing, None

    def record(self, stream: Stream | None = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at is not None

    def elapsed_time(self, end: Event) -> float:
        assert self.timed and end.timed
        return 1e3 * (end.at - self.at)


class CUDAGraph(TorchDispatchMode):
    """Records operators while it is captured."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.operations.append((function, arguments, options or {}, result))
        return result

    def replay(self) -> None:
        with torch.inference_mode():
            for function, arguments, options, result in self.operations:
                again = function(*arguments, **options)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)


@contextlib.contextmanager
def graph(captured: CUDAGraph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"):
    assert isinstance(stream, Stream) and capture_error_mode in ("global", "thread_local", "relaxed")
    with captured:
        yield


def install() -> None:
    """Put the fake in the place of torch.cuda's functions, for the rest of the process."""
    present = Stream()
    shared = {"shared_memory_per_block_optin": 232448, "L2_cache_size": 50 << 20}
    properties = SimpleNamespace(
        name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, **shared
    )
    values = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": NAME,
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "get_arch_list": ["sm_90"],
        "mem_get_info": (79 << 30, 80 << 30),
        "is_current_stream_capturing": False,
        "current_stream": present,
        "graph_pool_handle": (0, 1),
        **dict.fromkeys(("memory_reserved", "memory_allocated", "max_memory_allocated"), 0),
        **dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats", "set_device"), None),
    }
    for name, value in values.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    torch.cuda.device = torch.cuda.stream = lambda *_: contextlib.nullcontext()
    torch.cuda.Stream, torch.cuda.Event, torch.cuda.CUDAGraph, torch.cuda.graph = Stream, Event, CUDAGraph, graph


def __getattr__(name: str) -> Any:
    """The step `name`, "module.function" of the package `contact`, on the fake device at small sizes."""
    module, dot, function = name.partition(".")
    if not dot:
        raise AttributeError(name)

    def step(context: Any) -> None:
        install()
        context.device, context.small = "cuda", True
        threading.Thread = Thread
        with OnCpu():
            found = importlib.import_module(f"contact.{module}")
            if module == "profiled":  # operators on the CPU stand for kernels
                found.ON_DEVICE = ("cpu_op",)
                found.profile = lambda activities: profile(activities=activities[:1])
            if module == "work":
                found.VIDEOS = 2
            if module == "engine":
                found.BATCHES = (2,)
                networks = importlib.import_module("contact.networks")
                networks.PRESETS = {
                    system: {"synthetic": presets["synthetic"].override({"model": SHORT}, "short")}
                    for system, presets in networks.PRESETS.items()
                }
            getattr(found, function)(context)

    return step
