"""The data set that trainings of these tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.training import EASY

from bcnet_fast.data.synthetic import make_videos, write_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    subsets = (("training", 10), ("validation", 3))
    write_dataset(folder, [v for name, count in subsets for v in make_videos(count, seed=1, subset=name, config=EASY)])
    return folder
