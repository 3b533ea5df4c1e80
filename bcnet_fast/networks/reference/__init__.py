"""The networks in plain PyTorch, which define what every faster version computes."""

from .bcnet import BCNet
from .bmn import BMN
from .gtad import GTAD

NETWORKS = {"bcnet": BCNet, "bmn": BMN, "gtad": GTAD}
