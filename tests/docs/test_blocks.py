"""Every Python block of README, CONTRIBUTING and the docs runs, in the order of its page, on small files."""

from __future__ import annotations

import json
import re
import shutil
from importlib import resources
from pathlib import Path

import pytest
from helpers.paths import ROOT

from bcnet_fast.data.synthetic import make_videos, write_dataset

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """What the pages take for given: features, annotations, a checkpoint and result files."""
    folder = tmp_path_factory.mktemp("files")
    videos = list(make_videos(2, seed=7, subset="test"))
    write_dataset(folder, videos)
    shutil.copy(str(resources.files("bcnet_fast") / "assets" / "demo.safetensors"), folder / "bcnet.safetensors")
    results = {
        video.annotation.id: [
            {"segment": [instance.start, instance.end], "score": 0.5 + 0.1 * place, "label": instance.label}
            for place, instance in enumerate(video.annotation.instances[:5])
        ]
        for video in videos
    }
    (folder / "bcnet_demo").mkdir()
    for name in ("out.json", "detections.json", "bcnet_demo/proposals.json"):
        (folder / name).write_text(json.dumps({"results": results}), encoding="utf-8")
    return folder


def test_some_pages_have_blocks():
    assert len(WITH_BLOCKS) >= 8


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, files, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "here"))
    text, names = page.read_text(encoding="utf-8"), {}
    for found in BLOCK.finditer(text):
        # As many empty lines in front as the page has, so that a traceback shows the page's own line number.
        lines = "\n" * text[: found.start(1)].count("\n")
        exec(compile(lines + found[1], str(page), "exec"), names)
