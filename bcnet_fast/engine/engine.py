"""A network prepared for inference: windows of features to scores, of all anchors or of those that are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .. import _native
from ..config import ModelConfig
from ..outputs import BCNetOutput
from ..profiling import stage
from .bcnet import BCNetEngine
from .graph import Graphed
from .native import NativeKernels
from .portable import PortableKernels
from .rewrites import ALL_REWRITES, Rewrites

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
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
    ) -> None:
        """native: by the C++ kernels (CPU; "fp32", "fp64", "int8"), else by PyTorch and ops (all but "int8")."""
        self.config, self.device, self.native, self.rewrites = config, device, native, rewrites
        self.dtype = torch.float64 if precision == "fp64" else torch.float32  # of the outputs
        kernels = NativeKernels(precision) if native else PortableKernels(device, DTYPES[precision])
        # Only a CPU has float64 at half the rate of float32.
        careful = NativeKernels("fp64") if native and precision != "fp64" else kernels
        self.network = BCNetEngine(config, state, kernels, careful, rewrites)
        if native:
            _native.module.return_freed_memory()  # what packing took besides the weights themselves
        self._graph = Graphed(self._scores, device) if device.type == "cuda" else None
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, features: Tensor, needed: Needed | None = None) -> BCNetOutput:
        """features [B, C, T] of any float dtype and device -> scores on the engine's device.

        With `needed`, the other anchors have the score 0. On a GPU all are computed: which ones are needed is known on
        the device alone, and to wait for that would take longer.
        """
        with self._lock:
            if self._graph is not None:
                return self._graph(features)
            # One window fills a CPU. Taken one by one they need less memory, and give the same bits in any batch.
            made = [self._window(i, window[None], needed) for i, window in enumerate(features)]
        if not made:
            window, anchors = self.config.window, self.network.anchor_count
            sizes = (0, window, 3), (2, 0, window, 1), (0, anchors, 2), (0, anchors, 1)
            return self._output(*(torch.empty(size, device=self.device) for size in sizes))
        return BCNetOutput(*(torch.cat(column) for column in zip(*(vars(m).values() for m in made), strict=True)))

    def _scores(self, features: Tensor) -> BCNetOutput:
        """All anchors of all windows at once, without waiting for the device."""
        boundary = self.network.boundary(features)
        both, frames = self.network.frames(features)
        return self._output(boundary, frames, *self.network.clips(both))

    def _window(self, index: int, features: Tensor, needed: Needed | None) -> BCNetOutput:
        """One window, [1, C, T]."""
        network = self.network
        window, result = (features[0], network.kernels.result) if self.native else (features, lambda x: x)
        boundary = result(network.boundary(window)).view(1, self.config.window, 3)
        both, frames = network.frames(window)
        frames = result(frames).view(2, 1, self.config.window, 1)
        which = None
        if needed is not None and self.rewrites.matched_anchors:
            with stage("anchors that are needed"):
                _, start, end = boundary[0].to(self.dtype).sigmoid().unbind(-1)
                which = needed(index, start, end).nonzero()[:, 0]
        if which is not None and not len(which):
            action, background = (boundary.new_zeros(1, 0, columns) for columns in (2, 1))
        else:
            made = network.clips(both, which)
            action, background = (result(x).view(1, -1, x.shape[-1]) for x in made)
        return self._output(boundary, frames, action, background, which)

    def _output(
        self, boundary: Tensor, frames: Tensor, action: Tensor, background: Tensor, which: Tensor | None = None
    ) -> BCNetOutput:
        """From logits to scores; `which` are the anchors that were computed, the others get 0."""
        boundary, frames, action, background = (x.to(self.dtype) for x in (boundary, frames, action, background))
        actionness, start, end = boundary.sigmoid().unbind(-1)
        frame_action, frame_background = frames.sigmoid().squeeze(-1).unbind(0)
        anchors = [action[..., 0], action[..., 1], background[..., 0]]
        if which is not None:
            # As logits, so that each has its place in the row: a sigmoid's last bit can depend on that.
            others = (0.0, -torch.inf, -torch.inf)
            size = 1, self.network.anchor_count
            anchors = [x.new_full(size, n).index_copy(1, which, x) for x, n in zip(anchors, others, strict=True)]
        regression, classification, background = (x.contiguous() for x in anchors)
        return BCNetOutput(
            *(start, end, actionness, frame_action, frame_background),
            *(regression, classification.sigmoid(), background.sigmoid()),
        )
