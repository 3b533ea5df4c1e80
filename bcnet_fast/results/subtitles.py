"""Proposals as subtitles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..storage.output import atomic_text
from ..text import shown


def write_subtitles(
    path: str | os.PathLike, segments: np.ndarray, scores: np.ndarray, labels: Sequence[str] | np.ndarray | None = None
) -> None:
    """Write proposals as SubRip (.srt) subtitles in temporal order, each with its rank, label and confidence.

    A label is one line: a line break in it would begin another subtitle.

    segments: [n, 2], seconds.
    scores: [n], best first.
    labels: n names of classes, for detections.
    """
    order = np.lexsort((segments[:, 1], segments[:, 0])).tolist()
    with atomic_text(Path(path)) as file:
        for number, row in enumerate(order, 1):
            start, end = (_clock(second) for second in segments[row].tolist())
            label = "" if labels is None else shown(str(labels[row]))
            text = " ".join(filter(None, (f"#{row + 1}", label, f"{scores[row]:.3f}")))
            file.write(f"{number}\n{start} --> {end}\n{text}\n\n")


def _clock(seconds: float) -> str:
    """Format seconds as hh:mm:ss,mmm."""
    milliseconds = max(round(seconds * 1000), 0)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d},{milliseconds % 1000:03d}"
