"""Proposals as subtitles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..storage.files import atomic_text


def write_subtitles(path: str | os.PathLike, proposals: list[dict[str, Any]]) -> None:
    """Write proposals as SubRip (.srt) subtitles in order of time, each with its rank, confidence and label."""
    ranked = sorted(enumerate(proposals, 1), key=lambda item: item[1]["segment"])
    with atomic_text(Path(path)) as file:
        for number, (rank, proposal) in enumerate(ranked, 1):
            start, end = (_clock(second) for second in proposal["segment"])
            text = " ".join(filter(None, (f"#{rank}", proposal.get("label"), f"{proposal['score']:.3f}")))
            file.write(f"{number}\n{start} --> {end}\n{text}\n\n")


def _clock(seconds: float) -> str:
    """Seconds as SubRip writes them, hh:mm:ss,mmm."""
    milliseconds = max(round(seconds * 1000), 0)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d},{milliseconds % 1000:03d}"
