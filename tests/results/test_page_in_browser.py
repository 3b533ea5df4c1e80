"""The page of a result file in a real browser: what a person sees, clicks and types."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.view import HOSTILE, write_clip
from support import browser as browsers
from support.seeded_results import write_results

from bcnet_fast import view
from bcnet_fast.data.annotations import read_annotations
from bcnet_fast.evaluation.matching import pairwise_tiou
from bcnet_fast.results.reader import read_results

pytestmark = pytest.mark.skipif(browsers.reason_against() is not None, reason=str(browsers.reason_against()))
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.launched() as running:
        yield running


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open the page of a result file; at the end, nothing must have been logged or fetched from elsewhere."""
    contexts, complaints = [], []

    def opened(results: Path, *flags: object, expected: str = "", **options: Any) -> Any:
        output = tmp_path / f"page{len(contexts)}.html"
        assert view.main([str(flag) for flag in (results, "--output", output, *flags)]) == 0
        contexts.append(browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)

        def complain(text: str) -> None:
            if not expected or expected not in text:
                complaints.append(text)

        page.on("console", lambda message: complain(message.text))
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "blob:")) or complain(request.url))
        page.goto(output.as_uri())
        page.wait_for_selector("#rows-list .row, #bars-box")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results.json", 12, 60, labels=("run", "jump"))


@pytest.fixture
def truth(results: Path) -> Path:
    return results.parent / "truth.json"


def first_ranks(results: Path, truth: Path, threshold: float) -> np.ndarray:
    """Rank of the first proposal that finds each true action, computed by the evaluation code."""
    found, annotations = read_results(results), read_annotations(truth)
    ranks = []
    for number, name in enumerate(found.video_names):
        segments = found.segments[found.video == number]
        for instance in annotations[name].instances:
            true = np.tile([instance.start, instance.end], (len(segments), 1))
            hits = np.flatnonzero(pairwise_tiou(segments, true) >= threshold)
            ranks.append(hits[0] if len(hits) else 10**6)
    return np.array(ranks)


def set_slider(page: Any, name: str, value: float) -> None:
    page.eval_on_selector(
        name, "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def wait_until(page: Any, condition: str) -> None:
    """Wait until an expression is true. Playwright's own function evaluates in the page, which the policy forbids."""
    ends = time.monotonic() + 8
    while not page.evaluate(f"!!({condition})"):
        assert time.monotonic() < ends, condition
        page.wait_for_timeout(20)


def time_of(page: Any) -> float:
    return page.evaluate("app.player.time")


def bar(page: Any, rank: int) -> tuple[float, float]:
    """Where on the screen the bar of a proposal is, with rows by rank."""
    box = page.locator("#bars-box").bounding_box()
    x = page.evaluate(
        "rank => app.timeline.x((app.data.start[app.video.first + rank] + app.data.end[app.video.first + rank]) / 2)",
        rank,
    )
    y = page.evaluate("rank => app.timeline.placed.tops[rank] + app.timeline.placed.bar / 2 + 1", rank)
    return box["x"] + x, box["y"] + y


def test_the_page_opens_and_agrees_with_the_evaluation(open_page: Open, results: Path, truth: Path) -> None:
    page = open_page(results, "--ground-truth", truth)
    found = int((first_ranks(results, truth, 0.5) < 50).sum())
    summary = page.text_content("#summary")
    assert f"12 videos · 600 of 720 proposals · {found} of 72 true actions found" in summary
    assert page.title() == "results.json"
    # A click on a row plays its interval, to its end.
    start, end = read_results(results).segments[2]
    page.evaluate("app.player.rate = 16")
    page.locator("#rows-list .row").nth(2).click()
    assert page.get_by_role("button", name="Pause").is_visible()
    wait_until(page, "!app.player.playing")
    assert time_of(page) == pytest.approx(end) and end > start
    # The picture of the timeline is not empty.
    assert page.evaluate(
        "document.getElementById('bars').getContext('2d').getImageData(0, 0, 900, 200).data.some(Boolean)"
    )


@pytest.mark.slow
def test_found_actions_are_those_of_the_evaluation(open_page: Open, results: Path, truth: Path) -> None:
    page = open_page(results, "--ground-truth", truth)
    scores = read_results(results)
    for threshold, best, least in [(0.1, "all", 0.0), (0.7, "10", 0.3), (0.95, "all", 0.0), (0.35, "20", 0.8)]:
        set_slider(page, "#tiou", threshold)
        set_slider(page, "#threshold", least)
        page.select_option("#best", best)
        set_at = page.evaluate("app.threshold")
        number = 10**5 if best == "all" else int(best)
        kept = [min(int((scores.scores[scores.video == video] >= (set_at or -1)).sum()), number) for video in range(12)]
        ranks = first_ranks(results, truth, page.evaluate("app.tiou"))
        expected = sum(int((ranks[6 * video : 6 * video + 6] < kept[video]).sum()) for video in range(12))
        assert f"{expected} of 72 true actions found" in page.text_content("#summary")
        assert page.text_content("#videos .row .facts").count(f"{kept[0]} proposal") == 1


@pytest.mark.slow
def test_clicks_on_the_timeline(open_page: Open, results: Path, truth: Path) -> None:
    page = open_page(results, "--ground-truth", truth)
    page.mouse.move(*bar(page, 7))
    assert "Proposal 8 of 60" in page.text_content("#tip") and "confidence" in page.text_content("#tip")
    page.mouse.click(*bar(page, 7))
    assert page.evaluate("[app.selected, app.player.playing]") == [7, True]
    assert page.get_attribute("#rows-list .row[aria-selected=true]", "data-index") == "7"
    page.keyboard.press(" ")
    # Elsewhere: a jump.
    stage = page.locator("#stage").bounding_box()
    page.mouse.click(stage["x"] + page.evaluate("app.timeline.x(25)"), stage["y"] + 41)
    assert time_of(page) == pytest.approx(25, abs=0.2)
    # The strip at the top chooses the window of time, a drag below moves it, the button shows all.
    page.mouse.move(stage["x"] + page.evaluate("app.timeline.x(20)"), stage["y"] + 15)
    page.mouse.down()
    page.mouse.move(stage["x"] + page.evaluate("app.timeline.x(60)"), stage["y"] + 15, steps=4)
    page.mouse.up()
    assert page.evaluate("[app.timeline.from, app.timeline.to]") == pytest.approx([20, 60], abs=0.5)
    page.mouse.move(stage["x"] + 600, stage["y"] + 41)
    page.mouse.down()
    page.mouse.move(stage["x"] + 500, stage["y"] + 41, steps=4)
    page.mouse.up()
    assert page.evaluate("app.timeline.from") > 22
    page.get_by_role("button", name="Show the whole video").click()
    assert page.evaluate("[app.timeline.from, app.timeline.to]") == [0, 100]
    # The wheel zooms with Ctrl, and the time below the pointer stays there.
    x = page.evaluate("app.timeline.x(50)")
    page.mouse.move(stage["x"] + x, stage["y"] + 41)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    wait_until(page, "app.timeline.to - app.timeline.from < 70")
    assert page.evaluate("x => app.timeline.time(x)", x) == pytest.approx(50, abs=0.5)


@pytest.mark.slow
def test_keys(open_page: Open, results: Path, truth: Path) -> None:
    page = open_page(results, "--ground-truth", truth)
    segments = read_results(results).segments
    page.keyboard.press("n")
    page.keyboard.press("n")
    assert page.evaluate("app.selected") == 1 and time_of(page) == segments[1, 0]
    assert "Proposal 2 of 60" in page.text_content("#announce")
    page.keyboard.press("p")
    assert page.evaluate("app.selected") == 0
    page.keyboard.press("ArrowRight")
    assert time_of(page) == pytest.approx(segments[0, 0] + 1)
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert time_of(page) == pytest.approx(min(segments[0, 0] + 11, 100) - 1)
    page.keyboard.press(" ")
    assert page.evaluate("app.player.playing")
    wait_until(page, f"app.player.time > {time_of(page)} + 0.1")
    page.keyboard.press(" ")
    assert not page.evaluate("app.player.playing")
    for key, zoomed in (("+", True), ("0", False), ("+", True), ("-", False)):
        page.keyboard.press(key)
        assert page.evaluate("app.timeline.zoomed") is zoomed, key
    page.keyboard.press("]")
    assert page.evaluate("app.video.id") == "video_001"
    page.keyboard.press("/")
    page.keyboard.type("n 0/")
    assert page.input_value("#search") == "n 0/" and page.evaluate("app.video.id") == "video_001"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    # A focused slider keeps its arrows.
    page.focus("#tiou")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("app.tiou") == pytest.approx(0.55) and time_of(page) == 0


@pytest.mark.slow
def test_an_interval_loops(open_page: Open, tmp_path: Path) -> None:
    entries = [{"segment": [1.0, 1.3], "score": 0.9}, {"segment": [0.0, 8.0], "score": 0.8}]
    (tmp_path / "results.json").write_text(json.dumps({"results": {"a": entries}}))
    page = open_page(tmp_path / "results.json")
    page.keyboard.press("l")
    page.locator("#rows-list .row").first.click()
    page.evaluate("window.seen = []; window.watch = setInterval(() => seen.push(app.player.time), 20)")
    page.wait_for_timeout(1000)
    seen = page.evaluate("seen")
    assert min(seen) >= 1.0 and max(seen) <= 1.4
    assert sum(b < a for a, b in itertools.pairwise(seen)) >= 2
    assert page.get_by_role("button", name="Loop").get_attribute("aria-pressed") == "true"


@pytest.mark.slow
def test_search_and_sorting(open_page: Open, results: Path, truth: Path) -> None:
    page = open_page(results, "--ground-truth", truth)
    page.fill("#search", "_01")
    assert page.text_content("#video-count") == "2 of 12 videos"
    page.keyboard.press("Enter")
    assert page.evaluate("app.video.id") == "video_010"
    page.fill("#search", "nowhere")
    assert page.text_content("#video-count") == "0 of 12 videos"
    page.fill("#search", "JUMP")
    assert page.text_content("#video-count") == "12 videos"
    page.select_option("#sort-videos", "missed")
    found = page.evaluate("app.order.map(video => video.instances - video.found)")
    assert found == sorted(found, reverse=True)
    page.get_by_role("button", name="Length").click()
    lengths = page.evaluate(
        "app.ranks.map(r => app.data.end[app.video.first + r] - app.data.start[app.video.first + r])"
    )
    assert lengths == sorted(lengths, reverse=True)
    assert page.get_by_role("columnheader", name="Length").get_attribute("aria-sort") == "descending"


@pytest.mark.slow
def test_copy_and_csv(open_page: Open, results: Path, truth: Path) -> None:
    page = open_page(results, "--ground-truth", truth, permissions=["clipboard-read", "clipboard-write"])
    page.select_option("#best", "10")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    assert download.value.suggested_filename == "video_000.csv"
    text = Path(download.value.path()).read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["video", "rank", "start", "end", "score", "label", "tiou", "hit"]
    found = read_results(results)
    assert [(float(row["start"]), float(row["end"])) for row in rows] == [tuple(one) for one in found.segments[:10]]
    assert [float(row["score"]) for row in rows] == list(found.scores[:10])
    assert all((float(row["tiou"]) >= 0.5) == (row["hit"] == "1") for row in rows)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV, all videos").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 1 + 12 * 10
    page.get_by_role("button", name="Copy").click()
    page.wait_for_selector("#copy.done")
    assert page.evaluate("navigator.clipboard.readText()").split() == text.split()


@pytest.mark.slow
def test_light_and_dark(open_page: Open, results: Path) -> None:
    page = open_page(results, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    wait_until(page, f"{background} !== '{dark}'")
    light = page.evaluate(background)
    assert sum(map(int, re.findall(r"\d+", dark))) < 100 < 600 < sum(map(int, re.findall(r"\d+", light)))
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate(background) == dark
    page.keyboard.press("t")
    assert page.evaluate(background) == light


@pytest.mark.slow
def test_hostile_names_are_shown_as_text(open_page: Open, tmp_path: Path) -> None:
    entries = [{"segment": [0.0, 1.0], "score": 0.5, "label": name} for name in HOSTILE]
    (tmp_path / "results.json").write_text(json.dumps({"results": dict.fromkeys(HOSTILE, entries)}))
    truth = {name: {"annotations": [{"segment": [0, 1], "label": name}]} for name in HOSTILE}
    (tmp_path / "truth.json").write_text(json.dumps({"database": truth}))
    page = open_page(tmp_path / "results.json", "--ground-truth", tmp_path / "truth.json", "--title", HOSTILE[2])
    page.select_option("#rows", "class")
    names = page.locator("#videos .name").all_text_contents()
    assert names[:3] == HOSTILE[:3] and names[3] == r"line\u{2028}break\u{2029}\r\n"
    assert names[4] == r"caf\u{dce9} \u{202e}reversed"
    labels = page.locator("#rows-list .label span").all_text_contents()
    assert sorted(labels) == sorted(names)
    assert page.text_content("h1") == page.title() == HOSTILE[2]
    for number in range(len(HOSTILE)):
        page.locator("#videos .row").nth(number).click()
        page.keyboard.press("n")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV, all videos").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode(), newline="")))
    assert {row["video"] for row in rows} >= {HOSTILE[0], HOSTILE[5], "'=HYPERLINK(1)", "'@@DATA@@ @@SCRIPT@@"}
    assert page.evaluate("window.broken === undefined && !document.querySelector('img, iframe')")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--embed",)], ids=["linked", "embedded"])
def test_the_video_plays_in_step(open_page: Open, tmp_path: Path, flags: tuple[str, ...]) -> None:
    pytest.importorskip("av", reason="PyAV makes the video")
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "clip #1.webm")
    entries = [{"segment": [2.0, 3.0], "score": 0.9}, {"segment": [4.0, 5.5], "score": 0.8}]
    content = {"results": {"clip #1": entries, "none": entries}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    page = open_page(tmp_path / "results.json", "--videos", tmp_path / "clips", *flags)
    wait_until(page, "app.player.hasVideo")
    assert page.evaluate("app.timeline.length") == pytest.approx(6, abs=0.3)  # that of the video
    page.mouse.click(*bar(page, 0))
    wait_until(page, "document.querySelector('video').currentTime > 2.4")
    x = page.evaluate("new DOMMatrix(getComputedStyle(document.getElementById('playhead')).transform).m41")
    assert page.evaluate("x => app.timeline.time(x)", x) == pytest.approx(time_of(page), abs=0.3)
    wait_until(page, "!app.player.playing")
    assert page.evaluate("[document.querySelector('video').paused, app.player.time]") == [True, 3.0]
    page.keyboard.press("ArrowRight")
    wait_until(page, "document.querySelector('video').currentTime === 4")
    page.keyboard.press("]")
    assert "had no file of this one" in page.text_content("#no-video-text")
    page.keyboard.press(" ")
    wait_until(page, "app.player.time > 0.2")


@pytest.mark.slow
def test_a_video_that_is_gone_is_named_and_time_still_runs(open_page: Open, results: Path) -> None:
    clip = results.parent / "clips" / "video_000.mp4"
    clip.parent.mkdir()
    clip.write_bytes(b"not a video")
    page = open_page(results, "--videos", clip.parent, expected="net::ERR")
    page.wait_for_selector("#no-video:not([hidden])")
    assert page.text_content("#no-video-text").startswith("video_000.mp4 cannot be played")
    page.keyboard.press(" ")
    wait_until(page, "app.player.time > 0.2")


@pytest.mark.slow
def test_many_proposals_are_few_elements(open_page: Open, tmp_path: Path) -> None:
    page = open_page(write_results(tmp_path / "results.json", 1, 30_000))
    page.select_option("#best", "all")
    assert page.text_content("#shown-count") == "30,000 proposals"
    page.focus("#proposals")
    page.keyboard.press("End")
    page.wait_for_selector("#proposal-row-29999")
    assert page.evaluate("document.querySelectorAll('*').length") < 900
    assert "Proposal 30000 of 30000" in page.text_content("#announce")


@pytest.mark.slow
def test_a_phone_scrolls_in_one_direction(open_page: Open, results: Path, truth: Path) -> None:
    page = open_page(
        results, "--ground-truth", truth, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    assert page.evaluate("document.querySelector('main').scrollWidth <= 360 && document.body.scrollWidth <= 360")
    assert not page.locator("#videos").is_visible()
    page.get_by_role("button", name="Show the list of videos").tap()
    page.locator("#videos .row").nth(3).tap()
    assert page.evaluate("app.video.id") == "video_003" and not page.locator("#videos").is_visible()
    page.locator("#stage").scroll_into_view_if_needed()
    page.touchscreen.tap(*bar(page, 3))
    assert page.evaluate("app.selected") == 3


@pytest.mark.slow
def test_roles_names_and_focus(open_page: Open, results: Path, truth: Path) -> None:
    page = open_page(results, "--ground-truth", truth)
    nameless = """[...document.querySelectorAll('button, input, select')].filter(element =>
        !(element.ariaLabel || element.textContent.trim() || (element.labels && element.labels.length)))
        .map(element => element.id)"""
    assert page.evaluate(nameless) == []
    videos = page.get_by_role("listbox", name="Videos")
    videos.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    assert page.evaluate("app.video.id") == "video_011"
    page.wait_for_selector("#video-row-11")
    assert videos.get_attribute("aria-activedescendant") == "video-row-11"
    assert videos.get_by_role("option", selected=True).get_attribute("aria-setsize") == "12"
    table = page.get_by_role("grid", name="Proposals")
    table.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("app.selected") == 0
    page.keyboard.press("ArrowDown")
    assert page.evaluate("app.selected") == 1 and table.get_attribute("aria-rowcount") == "51"
    position = page.get_by_role("slider", name="Position in the video")
    position.focus()
    page.keyboard.press("ArrowRight")
    assert float(position.get_attribute("aria-valuenow")) == pytest.approx(time_of(page), abs=0.01)
    # Every stop of the Tab key can be seen and shows that it has the focus.
    page.evaluate("document.activeElement.blur()")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        assert page.evaluate("document.activeElement.getBoundingClientRect().width") > 5
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.slow
def test_the_lowest_place_of_the_slider_hides_nothing(open_page: Open, tmp_path: Path) -> None:
    """The slider rounds these numbers up."""
    entries = [
        {"segment": [n, n + 1.5], "score": score}
        for n, score in enumerate((0.8924772131260915, 1.8077490639163174e-19))
    ]
    (tmp_path / "results.json").write_text(json.dumps({"results": {"a": entries}}))
    page = open_page(tmp_path / "results.json")
    assert page.text_content("#threshold-value") == "any"
    assert "2 proposals" in page.text_content("#summary")
    set_slider(page, "#threshold", 0.3)
    assert "1 of 2 proposals" in page.text_content("#summary")
    set_slider(page, "#threshold", 0)
    assert page.text_content("#threshold-value") == "any"


@pytest.mark.slow
def test_names_of_true_actions_are_readable_on_every_colour(open_page: Open, results: Path, truth: Path) -> None:
    page = open_page(results, "--ground-truth", truth)

    def luminance(colour: str) -> float:
        values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for colour in page.evaluate("app.data.colours"):
        dark, light = sorted((luminance(colour), luminance(page.evaluate("colour => inkOn(colour)", colour))))
        assert (light + 0.05) / (dark + 0.05) > 4.5, colour
