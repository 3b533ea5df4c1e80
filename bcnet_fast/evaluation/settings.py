"""The numbers that the evaluation of each data set is defined by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MetricSettings:
    """The numbers that a data set's evaluation is defined by."""

    subset: str
    recall_thresholds: tuple[float, ...]  # tIoU
    max_proposals: int  # AN of the last point of the recall curve, which has a point for every whole AN
    recall_at: tuple[int, ...]  # AN that papers print
    map_thresholds: tuple[float, ...]  # tIoU


# The recall thresholds are those of linspace to the last bit: 0.8500000000000001 on THUMOS14, 0.8999999999999999 on
# ActivityNet. Results depend on that where a tIoU equals a threshold.
METRICS: dict[str, MetricSettings] = {
    "thumos14": MetricSettings(
        subset="test",
        recall_thresholds=tuple(np.linspace(0.5, 1.0, 11).tolist()),
        max_proposals=1000,
        recall_at=(50, 100, 200, 500, 1000),
        map_thresholds=(0.3, 0.4, 0.5, 0.6, 0.7),
    ),
    "activitynet13": MetricSettings(
        subset="validation",
        recall_thresholds=tuple(np.linspace(0.5, 0.95, 10).tolist()),
        max_proposals=100,
        recall_at=(1, 5, 10, 100),
        map_thresholds=tuple(np.linspace(0.5, 0.95, 10).tolist()),
    ),
}
