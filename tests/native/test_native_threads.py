"""Threads of the C++ operators: any number of them is safe, and a forked process has its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers import native_layers  # skips this file where the extension was not built

# The gather of anchors allocates for each thread, so that a wrong number damages the heap.
GATHER = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import numpy as np, torch
from helpers.native_layers import module
from helpers.sampling_plans import PLANS
from bcnet_fast.ops.anchor_groups import packed_plan

def gather(threads):
    plan = PLANS["gtad-unequal"]().to(dtype=torch.float32)
    sequences = np.random.default_rng(0).random((1, sum(plan.bins), plan.length, 70), dtype=np.float32)
    out = np.full((1, plan.anchors, 70), np.nan, np.float32)
    bias = np.zeros(70, np.float32)
    module.gather(sequences, packed_plan(plan), bias, out, False, threads)
    return out
"""

NUMBERS = """
expected = gather(1)
for threads in (0, -1, -(2**31), 2**31, 2**62):
    for i in range(5): assert np.array_equal(gather(threads), expected), threads
"""
FORK = """
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(gather(2), expected) else 1)
import time
for _ in range(300):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.1)
os.kill(child, 9)
sys.exit("the child hangs")
"""


def test_a_number_out_of_range_is_the_nearest_in_it_and_a_forked_process_computes_with_threads():
    """In a process of its own. In the fork, the OpenMP runtime would wait forever for the threads of the parent."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "MALLOC_CHECK_": "3"}
    assert native_layers.module
    code = GATHER + NUMBERS + (FORK if hasattr(os, "fork") else "")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
