"""A network that ends its process, for tests of processes that read videos; they import it by its name."""

from __future__ import annotations

import os
import signal

from torch import Tensor

from bcnet_fast.recipe import Recipe
from bcnet_fast.video.backbones.base import FrameIndex
from bcnet_fast.video.run import NetworkOptions


class Killer(FrameIndex):
    """Kills its process where a clip is white."""

    needs_pixels = True

    def __call__(self, clips: Tensor, frames: Tensor) -> Tensor:
        if clips.float().mean() > 250:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(clips, frames)


class KillerOptions(NetworkOptions):
    def open(self, known: Recipe | None = None) -> Killer:
        return Killer(Recipe("killer", clip=4, stride=4))
