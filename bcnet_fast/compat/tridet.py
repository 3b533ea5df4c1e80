"""TriDet's evaluator (`libs/utils/metrics.py`), which DyFADet uses too: ActionFormer's without the recall."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import actionformer


class ANETdetection(actionformer.ANETdetection):
    """Mean average precision as TriDet computes and prints it; arguments as in ActionFormer's, without `top_k`.

    Instances that repeat another one are left out first, then those without length. Their classes still count: a class
    that loses all its instances has an AP of 0, where the original stops.
    """

    def __init__(
        self,
        ant_file: str | os.PathLike,
        split: str | None = None,
        tiou_thresholds: Sequence[float] | np.ndarray = np.linspace(0.1, 0.5, 5),  # noqa: B008 - a constant
        label: str = "label_id",
        label_offset: int = 0,
        num_workers: int = 8,
        dataset_name: str | None = None,
    ) -> None:
        self._setup(ant_file, split, tiou_thresholds, label, label_offset, num_workers, dataset_name)

    @staticmethod
    def _long_enough(length: float) -> bool:
        return True

    @staticmethod
    def _counts(start: float, end: float) -> bool:
        return start != end

    def evaluate(self, preds: Any, verbose: bool = True) -> tuple[Any, ...]:
        """Compare detections, as in ActionFormer's. Returns: mAP [T] at each threshold, and their mean."""
        mean, average = self._mean_average_precision(self._detections(preds))
        if verbose:
            pairs = zip(self.tiou_thresholds, mean, strict=True)
            lines = [f"\n|tIoU = {tiou:.2f}: mAP = {precision * 100:.2f} (%)" for tiou, precision in pairs]
            self._print(lines, f"Avearge mAP: {average * 100:.2f} (%)")
        return mean, average
