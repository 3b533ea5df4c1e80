"""Average recall and mean average precision with the arithmetic of the public evaluators, vectorised.

Average recall at an average number of proposals (AR@AN) and the area under that curve (AUC) follow the ActivityNet
proposal task (Escorcia et al., DAPs, ECCV 2016), which BSN, BMN, G-TAD and BCNet report. Mean average precision (mAP)
follows the ActivityNet detection task; `toolkit_precision` is the mAP of the THUMOS'14 challenge. These rules decide
the numbers:

* AN is a share of every video's own list, not its first AN proposals. With N proposals in the file (those of
  videos without ground truth included) and V videos with instances, each video keeps `int(n * ratio)` of its n,
  `ratio = AN_max * V / N`. Point j of P takes `int(kept * share_j)` of them, `share_j = j / P * AN_max * V / all kept`.
* A tIoU equal to the threshold counts. A tIoU of 0 / 0 (two equal segments of no length) is a miss in AR and a true
  positive in mAP.
* Equal scores and equal tIoUs come in the order of a reversed introsort: the later one first, in lists of up to 16.
* Average precision interpolates at all points; a class without detections counts 0.

Where the public code stops with a KeyError, this code goes on and reports it in its result. Instances of a video
without proposals are missed; detections of a class that the ground truth lacks are set aside.
"""

from ..results.reader import Results, read_results
from .average_recall import AverageRecall, average_recall
from .ground_truth import without_duplicates
from .mean_average_precision import MeanAveragePrecision, mean_average_precision
from .settings import METRICS, MetricSettings
from .toolkit_precision import toolkit_precision

__all__ = [
    "METRICS",
    "AverageRecall",
    "MeanAveragePrecision",
    "MetricSettings",
    "Results",
    "average_recall",
    "mean_average_precision",
    "read_results",
    "toolkit_precision",
    "without_duplicates",
]
