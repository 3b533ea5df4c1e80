"""Result files with seeded proposals and true actions, for pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_results(path: Path, videos: int, proposals: int, *, seed: int = 0, labels: tuple[str, ...] = ()) -> Path:
    """A result file and `truth.json` beside it; about half of the proposals lie near a true action."""
    rng = np.random.default_rng(seed)
    results: dict[str, Any] = {}
    database: dict[str, Any] = {}
    for number in range(videos):
        actions = np.sort(rng.uniform(0, 100, (6, 2)), axis=1)
        names = [str(name) for name in rng.choice(labels or ("jump",), 6)]
        near = actions[rng.integers(0, 6, proposals)] + rng.normal(0, 2, (proposals, 2))
        far = np.sort(rng.uniform(0, 100, (proposals, 2)), axis=1)
        segments = np.sort(np.where(rng.random((proposals, 1)) < 0.5, near, far).clip(0, 100), axis=1)
        scores = np.sort(rng.random(proposals))[::-1]
        entries = [{"segment": s, "score": score} for s, score in zip(segments.tolist(), scores.tolist(), strict=True)]
        if labels:
            for entry, name in zip(entries, rng.choice(labels, proposals), strict=True):
                entry["label"] = str(name)
        results[f"video_{number:03d}"] = entries
        found = [{"segment": s, "label": name} for s, name in zip(actions.tolist(), names, strict=True)]
        database[f"video_{number:03d}"] = {"duration": 100.0, "subset": "test", "annotations": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": results}))
    (path.parent / "truth.json").write_text(json.dumps({"database": database}))
    return path
