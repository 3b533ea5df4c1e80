"""The networks in plain PyTorch: the specification as code."""

from .bcnet import BCNet
from .bmn import BMN
from .gtad import GTAD

NETWORKS = {"bcnet": BCNet, "bmn": BMN, "gtad": GTAD}
