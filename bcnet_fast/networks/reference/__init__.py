"""The networks in plain PyTorch, which define what every faster version computes."""

from .bcnet import BCNet
from .bmn import BMN
from .gtad import GTAD
from .muses import MUSES
from .pgcn import PGCN

NETWORKS = {"bcnet": BCNet, "bmn": BMN, "gtad": GTAD}
SECOND_STAGE = {"pgcn": PGCN, "muses": MUSES}
