"""The demo's clips and their page, on two short videos."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.view import data_of
from support import browser as browsers

from bcnet_fast import infer
from bcnet_fast.cli import demo, demo_clips
from bcnet_fast.data.synthetic import make_videos, write_dataset
from bcnet_fast.errors import InputError
from bcnet_fast.inference.model import demo_checkpoint


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Path, demo_clips.Watched]:
    pytest.importorskip("av", reason="needs PyAV: pip install bcnet_fast[video]")
    folder = tmp_path_factory.mktemp("demo")
    videos = [list(make_videos(8, seed=demo.SEED, subset="demo"))[place] for place in (4, 7)]
    _, annotations = write_dataset(folder, videos)
    found = demo_clips.watch(folder, videos, demo_checkpoint(), annotations)
    assert found is not None
    return folder, found


def test_the_clips_lead_to_proposals_and_a_page(watched: tuple[Path, demo_clips.Watched]) -> None:
    folder, found = watched
    assert not found.failed and found.error < 0.2
    assert len(found.results.scores) > 50
    data = data_of(found.page)
    assert [video["id"] for video in data["videos"]] == ["demo_0004", "demo_0007"]
    for video in data["videos"]:
        link = video["source"]["link"]
        assert (folder / link).stat().st_size < 500_000 and video["boundaries"] and video["instances"]


@pytest.mark.slow
@pytest.mark.skipif(browsers.reason_against() is not None, reason=str(browsers.reason_against()))
def test_a_browser_plays_the_page(watched: tuple[Path, demo_clips.Watched]) -> None:
    _, found = watched
    complaints: list[Any] = []
    with browsers.launched() as browser:
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(found.page.as_uri())
        page.wait_for_selector("#rows-list .row")
        page.locator("#rows-list .row").first.click()
        page.wait_for_timeout(1500)
        state = "(() => { const v = document.querySelector('video'); return [v.videoWidth, v.readyState, v.error]; })()"
        assert page.evaluate(state) == [320, 4, None]
        start = found.results.segments[0, 0]
        assert page.evaluate("document.querySelector('video').currentTime") > start
    assert complaints == []


@pytest.mark.slow
def test_the_whole_demo_with_clips(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("av", reason="needs PyAV: pip install bcnet_fast[video]")
    monkeypatch.chdir(tmp_path)
    assert infer.main([]) == 0
    shown = capsys.readouterr().out
    rows = {name: re.search(rf"{re.escape(name)}((?: +\d+\.\d){{4}})$", shown, re.MULTILINE) for name in demo.ROWS}
    recalls = {name: [float(number) for number in found[1].split()] for name, found in rows.items() if found}
    trained, pixels, random = (recalls[name] for name in demo.ROWS)
    assert all(abs(a - b) < 4 and b > c + 10 for a, b, c in zip(trained, pixels, random, strict=True))
    assert len(list((tmp_path / "bcnet_demo" / "videos").iterdir())) == demo.VIDEOS
    assert json.loads((tmp_path / "bcnet_demo" / "from_pixels.json").read_text())["results"]
    assert "to watch in a browser: bcnet_demo/page.html" in shown


def test_without_pyav_a_line_says_what_is_left_out(tmp_path, monkeypatch, capsys) -> None:
    def missing() -> None:
        raise InputError("writing videos requires PyAV: pip install bcnet_fast[video]")

    monkeypatch.setattr(demo_clips, "require_encoder", missing)
    assert demo_clips.watch(tmp_path, [], demo_checkpoint(), tmp_path / "annotations.json") is None
    assert capsys.readouterr().out == (
        "\nleft out: the videos as clips, and the page that plays them (writing videos requires PyAV: pip install "
        "bcnet_fast[video])\n"
    )
    assert not list(tmp_path.iterdir())
