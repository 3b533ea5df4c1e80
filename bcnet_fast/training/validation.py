"""Average recall of a network on the validation videos."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.annotations import VideoAnnotation
from ..data.features import FeatureArchive
from ..data.timing import TimeResolver
from ..evaluation import METRICS, AverageRecall, average_recall
from ..inference.model import Model
from ..inference.predict import Failure, predict
from ..progress import progress
from ..protocols import Protocol

VALIDATION = METRICS["activitynet13"]  # tIoU 0.5:0.05:0.95, AN 1 to 100, on every data set


SHOWN_AN = (10, 50, 100)


def validate(
    model: Model,
    archive: FeatureArchive,
    truth: Mapping[str, VideoAnnotation],
    times: TimeResolver,
    protocol: Protocol,
    workers: int = 0,
) -> tuple[AverageRecall, list[Failure]]:
    """Average recall of the model's proposals, by the ActivityNet protocol, and the videos on which it failed."""
    proposals: dict[str, Any] = {}
    failures = []
    found = predict(model, archive, list(truth), times, protocol, workers=workers)
    # In a log file, a line for every epoch is enough.
    for result in progress(found, len(truth), "videos validated", hidden=not sys.stderr.isatty()):
        if isinstance(result, Failure):
            failures.append(result)
        else:
            proposals[result.video] = np.column_stack([result.segments, result.scores])
    recall = average_recall(
        truth, proposals, tiou_thresholds=VALIDATION.recall_thresholds, max_proposals=VALIDATION.max_proposals
    )
    return recall, failures
