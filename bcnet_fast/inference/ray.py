"""Shards of an archive on a Ray cluster, or on all cores of one machine. Needs the extra `ray`.

A task is a shard, whose parts are written by the worker that does it. So kills, resuming, locks and the result are
those of `inference.shards`, and Ray's part is to start workers, to replace those that end, and to give them shards.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data.shard import Shard
from ..errors import InputError
from ..results.columns import COLUMNS, require_pyarrow
from ..results.parts import Part, parts_in
from .model import load
from .predict import Failure
from .propose import propose
from .run import InferOptions, InferReport, prepare
from .shards import run_shard
