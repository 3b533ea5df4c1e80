"""The networks for training: those of `bcnet_fast.networks.reference` with another forward.

Parameters, their names and their first values are inherited, so that a state dict goes both ways. Values and gradients
are those of the reference, but for the order of sums; dropout draws the same numbers in the same order.
"""

from __future__ import annotations

from torch import nn

from ...config import ModelConfig
from .bcnet import BCNet
from .bmn import BMN
from .gtad import GTAD

NETWORKS = {"bcnet": BCNet, "bmn": BMN, "gtad": GTAD}


def build(config: ModelConfig) -> nn.Module:
    """The network of a configuration, with PyTorch's random initial weights."""
    return NETWORKS[config.name](config)
