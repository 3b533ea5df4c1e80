"""Shards that are killed at random moments, resumed and merged: the result is that of an undisturbed single run.

A few kills run with the tests. tests/attack/kill_shards.py makes any number.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
from attack.kill_shards import campaign

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals as on Linux")


@pytest.mark.slow
@pytest.mark.parametrize(("part_format", "kills"), [("jsonl", 20), ("parquet", 20)])
def test_killed_shards_lose_and_double_nothing(tmp_path, part_format, kills):
    if part_format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")
    found = campaign(tmp_path, kills=kills, shards=2, part_format=part_format, seed=kills)
    assert found["kills"] == kills
    assert found == found | {"lost": 0, "doubled": 0, "equal": True, "left behind": 0}
