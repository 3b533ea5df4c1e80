"""The written page of a result file: its content and links; names are never markup."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.view import HOSTILE, Elements, data_of
from support.seeded_results import write_results

from bcnet_fast.data.annotations import Instance, VideoAnnotation
from bcnet_fast.errors import InputError
from bcnet_fast.results import page as page_module
from bcnet_fast.results.boundaries import Boundaries, boundary_path, read_boundaries, write_boundaries
from bcnet_fast.results.page import PageContent, write_page
from bcnet_fast.results.reader import Results, read_results


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return read_results(write_results(tmp_path / "results.json", 3, 20, labels=("run", "jump")))


def test_columns_are_those_of_the_file_best_first(tmp_path: Path, results: Results) -> None:
    shuffled = np.random.default_rng(1).permutation(len(results.scores))
    assert results.label is not None
    mixed = Results(
        results.video_names,
        results.video[shuffled],
        results.segments[shuffled],
        results.scores[shuffled],
        results.label_names,
        results.label[shuffled],
    )
    write_page(tmp_path / "page.html", PageContent("results", mixed, results.video_names))
    data = data_of(tmp_path / "page.html")
    assert [video["id"] for video in data["videos"]] == list(results.video_names)
    assert [video["count"] for video in data["videos"]] == [20, 20, 20]
    # At full precision: the file lists every video best first.
    np.testing.assert_array_equal(data["start"], results.segments[:, 0])
    np.testing.assert_array_equal(data["end"], results.segments[:, 1])
    np.testing.assert_array_equal(data["score"], results.scores)
    assert [data["labels"][code] for code in data["label"]] == [results.label_names[code] for code in results.label]


def test_videos_without_proposals_and_annotations_are_listed(tmp_path: Path, results: Results) -> None:
    truth = {"other": VideoAnnotation("other", duration=9.0, instances=(Instance(1.0, 2.0, "dive"),))}
    content = PageContent("results", results, [*results.video_names, "other"], truth)
    write_page(tmp_path / "page.html", content)
    data = data_of(tmp_path / "page.html")
    *others, last = data["videos"]
    assert (last["id"], last["count"], last["instances"], last["duration"]) == ("other", 0, 1, 9.0)
    assert not any(video["annotated"] or video["instances"] for video in others)
    assert [data["labels"][code] for code in data["trueLabel"]] == ["dive"]


def test_hostile_names_are_data_and_never_markup(tmp_path: Path) -> None:
    entries = [{"segment": [0.0, 1.0], "score": 0.5, "label": name} for name in HOSTILE]
    hostile = Results.from_dict(dict.fromkeys(HOSTILE, entries))
    videos = {}
    for name in HOSTILE:
        videos[name] = tmp_path / (re.sub(r"\W", "_", name.encode("utf-8", "replace").decode()) + '"<b>.webm')
        videos[name].write_bytes(b"not a video")
    instances = tuple(Instance(0.0, 1.0, name) for name in HOSTILE)
    truth = {name: VideoAnnotation(name, instances=instances) for name in HOSTILE}
    plain = Results.from_dict({"a": [{"segment": [0.0, 1.0], "score": 0.5}]})
    write_page(tmp_path / "plain.html", PageContent("plain", plain, ["a"]))
    content = PageContent(HOSTILE[0], hostile, HOSTILE, truth, video_files=videos)
    write_page(tmp_path / "page.html", content)
    # The same elements with the same attributes as without such names.
    assert Elements(tmp_path / "page.html").found == Elements(tmp_path / "plain.html").found
    data = data_of(tmp_path / "page.html")
    assert data["title"] == HOSTILE[0] and data["labels"] == HOSTILE
    assert [video["id"] for video in data["videos"]] == HOSTILE
    assert (tmp_path / "page.html").read_bytes().isascii() or "\u2028" not in (tmp_path / "page.html").read_text()


def test_the_policy_admits_this_script_and_style_alone(tmp_path: Path, results: Results) -> None:
    write_page(tmp_path / "page.html", PageContent("results", results, results.video_names))
    text = (tmp_path / "page.html").read_text()
    elements = Elements(tmp_path / "page.html").found
    (policy,) = (a["content"] for tag, a in elements if tag == "meta" and a.get("http-equiv"))
    assert policy is not None and "default-src 'none'" in policy and "unsafe" not in policy
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in content]
        assert f"{directive} 'sha256-{digests[0]}'" in policy and len(digests) == 1
    assert not any(name.startswith("on") or name in ("style", "src", "srcdoc") for _, a in elements for name in a)
    assert not re.search(r"https?://(?!www\.w3\.org)", text)  # nothing from a network


def test_links_are_relative_to_the_page_and_escaped(tmp_path: Path, results: Results) -> None:
    names = results.video_names
    files = [tmp_path / "clips" / name for name in ("a #1?%.mp4", "b.webm", "javascript:c.avi")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(b"x")
    content = PageContent("results", results, names, video_files=dict(zip(names, files, strict=True)))
    write_page(tmp_path / "pages" / "page.html", content)
    sources = [video["source"] for video in data_of(tmp_path / "pages" / "page.html")["videos"]]
    assert [source["link"] for source in sources] == [
        "./../clips/a%20%231%3F%25.mp4",
        "./../clips/b.webm",
        "./../clips/javascript%3Ac.avi",
    ]
    assert [source["type"] for source in sources] == ["video/mp4", "video/webm", None]


def test_embedded_videos_are_in_the_page_unless_they_are_large(
    tmp_path: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "LARGEST_EMBEDDED", 1 << 20)
    names = results.video_names
    content = {names[0]: os.urandom(900_001), names[2]: os.urandom(1_100_000)}
    files = {}
    for name, part in content.items():
        files[name] = tmp_path / f"{name}.mp4"
        files[name].write_bytes(part)
    notes = write_page(tmp_path / "page.html", PageContent("results", results, names, video_files=files, embed=True))
    assert notes == [f"{files[names[2]]}: too large to embed, linked instead"]
    first, second, third = (video["source"] for video in data_of(tmp_path / "page.html")["videos"])
    assert first["embedded"] and "link" not in first and second is None and third["link"] == "./video_002.mp4"
    held = re.findall(
        r'<script type="text/plain" id="video-(\d+)">(.*?)</script>', (tmp_path / "page.html").read_text()
    )
    assert [(number, base64.b64decode(part)) for number, part in held] == [("0", content[names[0]])]


def test_boundaries_come_back_and_go_into_the_page(tmp_path: Path, results: Results) -> None:
    name = "a/b\n"
    curves = Boundaries(*np.array([[0.0, 0.5, 1.0], [0.0, 0.2, 1.0], [1.0, 0.4, 0.0]], np.float32), 1.5)
    write_boundaries(tmp_path / "curves", name, curves)
    found = read_boundaries(tmp_path / "curves", name)
    assert found is not None and found.duration_s == 1.5 and list(found.end) == list(curves.end)
    assert read_boundaries(tmp_path / "curves", "other") is None
    video = results.video_names[1]
    content = PageContent("results", results, results.video_names, boundaries={video: curves})
    write_page(tmp_path / "page.html", content)
    listed = data_of(tmp_path / "page.html")["videos"][1]
    assert listed["duration"] == 1.5
    parts = {key: base64.b64decode(value) for key, value in listed["boundaries"].items()}
    assert np.frombuffer(parts["times"], "<f4").tolist() == [0.0, 0.5, 1.0]
    assert list(parts["start"]) == [0, 51, 255] and list(parts["end"]) == [255, 102, 0]


@pytest.mark.parametrize(
    ("long", "message"),
    [
        (np.zeros(2**23 + 1, np.int8), "times has more than 64 MiB"),
        (np.zeros(30, "U1000000"), "times has type <U1000000"),
        (np.zeros(3, np.complex128), "times has type complex128"),
    ],
    ids=["long", "text", "complex"],
)
def test_boundaries_of_a_small_file_that_fill_the_memory_are_refused(tmp_path: Path, long, message) -> None:
    np.savez_compressed(boundary_path(tmp_path, "a"), times=long, start=long, end=long, duration=np.float64(3))
    with pytest.raises(InputError, match=rf"a\.npz .*{message}"):
        read_boundaries(tmp_path, "a")


@pytest.mark.parametrize("damage", ["text", "another", "lengths"])
def test_a_damaged_boundary_file_is_named(tmp_path: Path, damage: str) -> None:
    path = boundary_path(tmp_path, "a")
    if damage == "text":
        path.write_text("hello")
    else:
        arrays = {"times": np.arange(3.0), "start": np.zeros(2 if damage == "lengths" else 3), "end": np.zeros(3)}
        np.savez(path, **(arrays | ({"duration": np.float64(3)} if damage == "lengths" else {})))
    with pytest.raises(InputError, match=r"a\.npz .*expected boundary probabilities as infer --boundaries"):
        read_boundaries(tmp_path, "a")


def test_a_page_of_300_videos_is_small(tmp_path: Path) -> None:
    found = read_results(write_results(tmp_path / "results.json", 300, 200))
    write_page(tmp_path / "page.html", PageContent("results", found, found.video_names))
    assert (tmp_path / "page.html").stat().st_size < 3e6
