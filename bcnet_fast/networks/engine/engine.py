"""A network prepared for inference: windows of features to scores, of all anchors or of those that are needed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...config import ModelConfig
from ...ops import native as _native
from ..outputs import Output
from .bcnet import BCNetEngine
from .bmn import BMNEngine
from .cuda_graph import Graphed
from .gtad import GTADEngine
from .native import NativeKernels
from .rewrites import ALL_REWRITES, Rewrites
from .torch_backend import PortableKernels

NETWORKS = {"bcnet": BCNetEngine, "bmn": BMNEngine, "gtad": GTADEngine}
DTYPES = {
    "fp32": torch.float32,
    "fp64": torch.float64,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# From the number of a window and its start and end probabilities, [T] each, to the anchors that will be read, bool [P].
Needed = Callable[[int, Tensor, Tensor], Tensor]


class Engine:
    """Calls from several threads wait for each other, since they share the buffers."""

    def __init__(
        self,
        config: ModelConfig,
        state: Mapping[str, Tensor],
        device: torch.device,
        precision: str,
        *,
        native: bool,
        rewrites: Rewrites = ALL_REWRITES,
        graph: bool = True,
    ) -> None:
        """native: by the C++ kernels (CPU; "fp32", "fp64", "int8"), else by PyTorch and ops (all but "int8").

        graph: whether a GPU runs the network as CUDA graphs.
        """
        self.config, self.device, self.native = config, device, native
        self.kernels = kernels = _kernels(device, precision, native, rewrites)
        # A CPU has float64 at half the rate of float32; a GPU has float32 without TF32 at a fraction of the rate of 16
        # bits. Either costs little in the one percent of the work that is done this way.
        careful = kernels
        if precision not in ("fp64", "fp32") or (native and precision == "fp32"):
            careful = _kernels(device, "fp64" if native else "fp32", native, rewrites)
        self.network = NETWORKS[config.name](config, state, kernels, careful, rewrites)
        if native:
            _native.module.return_freed_memory()  # what packing took besides the weights themselves
        on_gpu = device.type == "cuda"
        self._graph = Graphed(self._eager, device, kernels.accumulated) if on_gpu and graph else None
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, features: Tensor, needed: Needed | None = None) -> Output:
        """features [B, C, T] of any float dtype and device -> scores on the engine's device.

        With `needed`, the other anchors have the score 0. On a GPU all are computed: which ones are needed is known on
        the device alone, and to wait for that would take longer.
        """
        with self._lock:
            if not len(features):
                one = features.new_zeros(1, *features.shape[1:])
                return self._window(one, None).map(lambda scores: scores[:0])
            if self._graph is not None:
                return self._graph(features)
            if self.device.type == "cuda":
                with torch.cuda.device(self.device):
                    return self._eager(features)
            # One window fills a CPU. Taken one by one they need less memory, and give the same bits in any batch.
            return Output.cat(
                [
                    self._window(window[None], None if needed is None else functools.partial(needed, i))
                    for i, window in enumerate(features)
                ]
            )

    def _eager(self, features: Tensor) -> Output:
        with self.kernels.arithmetic():
            return self.network(features)

    def _window(self, features: Tensor, needed: Callable[[Tensor, Tensor], Tensor] | None) -> Output:
        """One window, [1, C, T]; C++ takes it without the first axis."""
        with self.kernels.arithmetic():
            return self.network(features[0] if self.native else features, needed)


def _kernels(device: torch.device, precision: str, native: bool, rewrites: Rewrites) -> NativeKernels | PortableKernels:
    if native:
        return NativeKernels(precision, rewrites.strassen)
    return PortableKernels(device, DTYPES[precision], tf32=precision == "tf32")
