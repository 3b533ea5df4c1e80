"""A network prepared for inference: windows of features to the scores of all anchors, or of those that are needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ...config import ModelConfig
from ..outputs import Output
from .bcnet import BCNetEngine
from .bmn import BMNEngine
from .cuda_graph import Graphed
from .gtad import GTADEngine
from .kernels import Kernels
from .native import NativeKernels
from .native_weights import extension
from .rewrites import ALL_REWRITES, Rewrites
from .torch_backend import TorchKernels

NETWORKS = {"bcnet": BCNetEngine, "bmn": BMNEngine, "gtad": GTADEngine}
DTYPES = {
    "fp32": torch.float32,
    "fp64": torch.float64,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Engine:
    """One network with its weights. Calls from several threads wait for each other, since they share the buffers."""

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
        """Prepare a network.

        state: the parameters of the reference network by name, not needed afterwards
        precision: "fp32", "fp64", or "int8" if `native`; else any of `DTYPES`
        native: whether the C++ kernels run the network (CPU only), or PyTorch and `bcnet_fast.ops`
        rewrites: which rewrites to use
        graph: whether a GPU runs the network as CUDA graphs
        """
        self.config, self.device, self.native, self.rewrites = config, device, native, rewrites
        self.kernels = kernels = _kernels(device, precision, native, rewrites)
        # Precise kernels for the few layers that need them: float64 on a CPU, at half the rate of float32, or float32
        # on a GPU, at a fraction of the rate of TF32 and 16 bits.
        precise = kernels
        if precision not in ("fp64", "fp32") or (native and precision == "fp32"):
            precise = _kernels(device, "fp64" if native else "fp32", native, rewrites)
        self.network = NETWORKS[config.name](config, state, kernels, precise, rewrites)
        if native:
            extension().return_freed_memory()  # the temporary arrays of packing
        on_gpu = device.type == "cuda"
        self._graph = Graphed(self._eager, device, kernels.accumulation_dtype) if on_gpu and graph else None
        self._lock = threading.Lock()

    @property
    def skips_anchors(self) -> bool:
        """Whether `boundaries` and `anchors` save work: for BCNet on a CPU.

        A GPU computes all anchors: only the device knows which ones are needed, and waiting for it takes longer.
        """
        return self.device.type == "cpu" and self.config.name == "bcnet" and self.rewrites.matched_anchors

    @torch.inference_mode()
    def __call__(self, features: Tensor) -> Output:
        """Compute all scores of features [B, C, T], of any float dtype and device, on the engine's device."""
        with self._lock:
            if not len(features):
                one = features.new_zeros(1, *features.shape[1:])
                return self._eager(one).map(lambda scores: scores[:0])
            if self._graph is not None:
                return self._graph(features)
            return self._eager(features)

    @torch.inference_mode()
    def boundaries(self, features: Tensor) -> Output:
        """Compute BCNet's boundary probabilities of features [B, C, T], B >= 1.

        Requires: `skips_anchors`.
        """
        with self._lock, self.kernels.arithmetic():
            return Output.cat([self.network.boundaries(window) for window in self._windows(features)])

    @torch.inference_mode()
    def anchors(self, features: Tensor, boundaries: Output, needed: Tensor) -> Output:
        """Compute all scores of the same features, where anchors outside of needed, bool [B, P], have the score 0."""
        with self._lock, self.kernels.arithmetic():
            return Output.cat(
                [
                    self.network.anchors(window, boundaries.map(lambda scores, i=i: scores[i : i + 1]), needed[i])
                    for i, window in enumerate(self._windows(features))
                ]
            )

    def _eager(self, features: Tensor) -> Output:
        with self.kernels.arithmetic():
            if self.device.type == "cpu":
                return Output.cat([self.network(window) for window in self._windows(features)])
            with torch.cuda.device(self.device):
                return self.network(features)

    def _windows(self, features: Tensor) -> Iterator[Tensor]:
        """The windows as a CPU takes them: [C, T] in C++, else [1, C, T].

        One window fills a CPU. Taken one by one they need less memory, and give the same bits in any batch.
        """
        return iter(features if self.native else features.split(1))


def _kernels(device: torch.device, precision: str, native: bool, rewrites: Rewrites) -> Kernels:
    if native:
        return NativeKernels(precision, rewrites.strassen)
    return TorchKernels(device, DTYPES[precision], tf32=precision == "tf32")
