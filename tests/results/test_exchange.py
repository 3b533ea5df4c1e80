"""Export to other people's tools, checked by their own libraries where these are installed, and the way back."""

from __future__ import annotations

import importlib
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from bcnet_fast.data.annotations import Instance, VideoAnnotation, read_annotations
from bcnet_fast.errors import InputError
from bcnet_fast.results import exchange
from bcnet_fast.results.reader import Results, read_results

HOSTILE = 'a/b "<&>\n-->'
ENTRIES = {
    "clip": [
        {"segment": [12.0, 15.0], "score": 0.9, "label": "Long jump"},
        {"segment": [2.0, 4.5], "score": 0.8, "label": "High jump"},
        {"segment": [3.0, 5.0], "score": 0.7, "label": "Long jump"},
        {"segment": [4.5, 4.5], "score": 0.1, "label": "High jump"},
    ],
    HOSTILE: [{"segment": [0.0, 1.0], "score": 0.5, "label": "<b>&-->\nx"}],
    "none": [],
}
RESULTS = Results.from_dict(ENTRIES)
VIDEOS = {
    name: VideoAnnotation(id=name, fps=fps, duration=60.0)
    for name, fps in zip(ENTRIES, (25.0, 30.0, 10.0), strict=True)
}
INSTANCES = (
    Instance(2.0, 4.5, "High jump"),
    Instance(3.0, 5.0, "Long jump"),
    Instance(12.0, 15.0, "Long jump"),
)


def one(name: str = "clip") -> Results:
    return Results.from_dict({name: ENTRIES[name][:3]})


def test_csv_is_read_as_results_and_as_annotations(tmp_path):
    assert exchange.write("csv", tmp_path / "out.csv", RESULTS) == [tmp_path / "out.csv"]
    back = read_results(tmp_path / "out.csv").to_dict()
    assert back == {name: sorted(entries, key=lambda e: -e["score"]) for name, entries in ENTRIES.items() if entries}
    instances = read_annotations(tmp_path / "out.csv")["clip"].instances
    assert instances[:3] == (INSTANCES[2], INSTANCES[0], INSTANCES[1])


def test_best_proposals_only(tmp_path):
    exchange.write("csv", tmp_path / "out.csv", RESULTS, best=1)
    assert [entry["score"] for entry in read_results(tmp_path / "out.csv").to_dict()["clip"]] == [0.9]


def test_fiftyone_has_class_numbers_and_seconds(tmp_path):
    exchange.write("fiftyone", tmp_path / "labels.json", RESULTS)
    content = json.loads((tmp_path / "labels.json").read_text())
    assert list(content["labels"]) == list(ENTRIES) and content["labels"]["none"] == []
    first = content["labels"]["clip"][0]
    assert content["classes"][first["label"]] == "High jump"
    assert first["timestamps"] == [2.0, 4.5] and first["confidence"] == 0.8


def test_label_studio_and_back(tmp_path):
    path = tmp_path / "tasks.json"
    exchange.write("labelstudio", path, RESULTS, videos=VIDEOS, media={"clip": "/data/local-files/?d=clip.mp4"})
    tasks = json.loads(path.read_text())
    assert tasks[0]["data"] == {"video": "/data/local-files/?d=clip.mp4", "video_id": "clip", "fps": 25.0}
    region = tasks[0]["predictions"][0]["result"][0]
    # Frame 51 is the first one after two seconds; frame 112 ends before 4.5 s.
    assert region["value"] == {"ranges": [{"start": 51, "end": 112}], "timelinelabels": ["High jump"]}
    assert region["type"] == "timelinelabels" and region["score"] == 0.8
    assert tasks[2]["predictions"][0]["result"] == []
    for task in tasks:
        task["annotations"] = [{"result": [], "was_cancelled": False}, {"result": task["predictions"][0]["result"][:3]}]
    tasks[1]["annotations"].append({"result": [{"value": {"choices": ["bad"]}}], "was_cancelled": True})
    path.write_text(json.dumps(tasks))
    videos = read_annotations(path)
    assert list(videos) == list(ENTRIES) and videos["clip"].fps == 25.0 and videos["none"].instances == ()
    found = videos["clip"].instances
    assert [one.label for one in found] == ["High jump", "Long jump", "High jump"]
    assert [(one.start, one.end) for one in found[:2]] == [pytest.approx((2.0, 4.48)), pytest.approx((3.0, 5.0))]
    with pytest.raises(InputError, match="video 'clip' has no frame rate, which Label Studio needs"):
        exchange.write("labelstudio", tmp_path / "other.json", RESULTS)
    assert not (tmp_path / "other.json").exists()


def test_label_studio_of_uploaded_files(tmp_path):
    region = {"value": {"ranges": [{"start": 1, "end": 25}], "timelinelabels": ["x", "y"]}}
    task = {
        "data": {"video": "/data/upload/3/0a1b2c3d-my clip.mp4", "fps": "25"},
        "annotations": [{"result": [region]}],
    }
    (tmp_path / "export").write_text(json.dumps([task]))
    assert read_annotations(tmp_path / "export")["my clip"].instances == (Instance(0, 1, "x"), Instance(0, 1, "y"))


def test_webvtt(tmp_path):
    (path,) = exchange.write("webvtt", tmp_path / "clip.vtt", one())
    lines = path.read_text().splitlines()
    assert lines[:5] == ["WEBVTT", "", "1", "00:00:02.000 --> 00:00:04.500", "High jump 0.800"]
    files = exchange.write("webvtt", tmp_path / "all", RESULTS)
    text = files[1].read_text()
    assert len(files) == 3 and text.count("-->") == 1 and "&lt;b&gt;&amp;--&gt;\\nx 0.500" in text
    webvtt = pytest.importorskip("webvtt", reason="needs webvtt-py")
    found = [(one.start_in_seconds, one.end_in_seconds, one.text) for one in webvtt.read(str(path))]
    assert [one[2] for one in found] == ["High jump 0.800", "Long jump 0.700", "Long jump 0.900"]


def test_elan_and_back(tmp_path):
    files = exchange.write("elan", tmp_path / "elan", RESULTS)
    videos = read_annotations(tmp_path / "elan")
    assert {name.replace("\\n", "\n") for name in videos} == set(ENTRIES) and videos["none"].instances == ()
    assert sorted(map(str, videos["clip"].instances[:4])) == sorted(
        map(str, (*INSTANCES, Instance(4.5, 4.501, "High jump")))
    )
    text = files[0].read_text()
    tiers = ElementTree.fromstring(text).findall("TIER")
    # Two of the four overlap; each tier of actions has one of scores.
    assert [tier.get("PARENT_REF") for tier in tiers] == [None, "actions 1", None, "actions 2"]
    pympi = pytest.importorskip("pympi", reason="needs pympi-ling")
    eaf = pympi.Elan.Eaf(str(files[0]))
    assert sorted(eaf.get_annotation_data_for_tier("actions 1") + eaf.get_annotation_data_for_tier("actions 2")) == [
        (2000, 4500, "High jump"),
        (3000, 5000, "Long jump"),
        (4500, 4501, "High jump"),
        (12000, 15000, "Long jump"),
    ]
    eaf.add_annotation("actions 1", 20000, 21000, "Pole vault")
    eaf.to_file(str(tmp_path / "corrected.eaf"))
    assert Instance(20.0, 21.0, "Pole vault") in read_annotations(tmp_path / "corrected.eaf")["clip"].instances


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a>", "malformed XML"),
        ("<a/>", "is XML of 'a', expected an ELAN file"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares XML entities, which are never expanded"),
        (
            '<ANNOTATION_DOCUMENT><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1"/></ANNOTATION_DOCUMENT>',
            "annotation 'a1' has the times",
        ),
        ('[{"data": {}}]', "task 1 has the data {}, expected video or video_id"),
        (
            '[{"data": {"video": "a.mp4"}, "annotations": [{"result": [{"value": {"timelinelabels": ["x"]}}]}]}]',
            "task 1 counts frames and states no frame rate, expected fps in its data",
        ),
        (
            '[{"data": {"video": "a", "fps": 1}, "annotations": [{"result": [{"value": {"timelinelabels": ["x"]}}]}]}]',
            "task 1 has the range {}, expected start and end as frames",
        ),
        ("video,start,end,label\na,1,,x\n", "line 2: segment is"),
    ],
)
def test_damaged_annotations_are_one_line(tmp_path, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path / "file")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_csv_of_annotations_states_facts_and_empty_videos(tmp_path):
    (tmp_path / "a.csv").write_text(
        "video,start,end,label,fps,subset\nv,1,2,x,25,train\nv,3,4,y,25,train\nw,,,,30,val\n"
    )
    videos = read_annotations(tmp_path / "a.csv")
    assert videos["v"].instances == (Instance(1, 2, "x"), Instance(3, 4, "y"))
    assert videos["w"].instances == () and videos["w"].fps == 30 and videos["w"].subset == "val"


def test_opentimelineio(tmp_path):
    (path,) = exchange.write("otio", tmp_path / "clip.otio", one(), videos=VIDEOS, media={"clip": "clip.mp4"})
    otio = pytest.importorskip("opentimelineio", reason="needs opentimelineio")
    timeline = otio.adapters.read_from_file(str(path))
    clip = timeline.find_clips()[0]
    assert clip.media_reference.target_url == "clip.mp4" and timeline.duration().to_seconds() == 60.0
    marker = clip.markers[0]
    assert marker.name == "High jump" and marker.marked_range.start_time == otio.opentime.RationalTime(50, 25)
    assert marker.marked_range.end_time_exclusive().to_seconds() == 4.48
    importlib.import_module("opentimelineio.adapters").write_to_file(timeline, str(tmp_path / "again.otio"))


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"export format is 'elam', expected csv, .* or otio; did you mean elan\?"):
        exchange.write("elam", tmp_path / "x", RESULTS)
    with pytest.raises(InputError, match=r"clip.eaf is one file, expected a folder for 3 videos"):
        exchange.write("elan", tmp_path / "clip.eaf", RESULTS)
    proposals = Results.from_dict({"v": [{"segment": [0, 1], "score": 1}]})
    exchange.write("csv", tmp_path / "p.csv", proposals)
    assert "proposal" in (tmp_path / "p.csv").read_text()


def test_overlapping_actions_take_the_first_free_tier_of_elan(tmp_path, rng):
    """A search through all tiers finds the same."""
    starts = np.sort(rng.integers(0, 60, 200)).astype(float)
    ends = starts + rng.integers(1, 15, 200)
    entries = [{"segment": [*pair], "score": 0.5} for pair in zip(starts.tolist(), ends.tolist(), strict=True)]
    exchange.write("elan", tmp_path / "v.eaf", Results.from_dict({"v": entries}), videos={})
    root = ElementTree.parse(tmp_path / "v.eaf").getroot()
    times = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE", 0)) for slot in root.iter("TIME_SLOT")}
    found = []
    for tier in root.iter("TIER"):
        spans = [
            (times[one.get("TIME_SLOT_REF1")], times[one.get("TIME_SLOT_REF2")])
            for one in tier.iter("ALIGNABLE_ANNOTATION")
        ]
        found += [spans] if spans else []
    expected: list[list[tuple[int, int]]] = []
    for start, end in sorted((round(1000 * one), round(1000 * two)) for one, two in zip(starts, ends, strict=True)):
        free = next((tier for tier in expected if tier[-1][1] <= start), None)
        if free is None:
            expected.append(free := [])
        free.append((start, end))
    assert [sorted(one) for one in found] == expected
