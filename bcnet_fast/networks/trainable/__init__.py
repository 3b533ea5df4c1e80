"""The networks for training: those of `bcnet_fast.networks.reference` with a faster forward.

Parameters, their names and their initial values are inherited, so state dicts are interchangeable. Values and gradients
differ from the reference only by the order of sums. Dropout draws the same numbers in the same order.
"""

from __future__ import annotations

from torch import nn

from ...config import ModelConfig
from ..reference.muses import MUSES
from .bcnet import BCNet
from .bmn import BMN
from .gtad import GTAD
from .pgcn import PGCN

NETWORKS = {"bcnet": BCNet, "bmn": BMN, "gtad": GTAD}
# On a CPU, the merged convolution of the engine's MUSES-Net gains nothing in a training step.
SECOND_STAGE = {"pgcn": PGCN, "muses": MUSES}


def build(config: ModelConfig) -> nn.Module:
    """Build the network of a configuration with PyTorch's random initial weights."""
    return NETWORKS[config.name](config)
