"""Result files: proposals go in as columns, and come out as the JSON that every reader of submissions knows."""

from __future__ import annotations

import json
import random
import zlib

import numpy as np
import pytest

from bcnet_fast.data.class_scores import ClassScores
from bcnet_fast.errors import InputError
from bcnet_fast.results.fusion import fuse, fuse_video
from bcnet_fast.results.reader import Results, read_results
from bcnet_fast.results.writer import ResultWriter

SEGMENTS = np.array([[1.0, 2.5], [0.125, 0.3]])
SCORES = np.array([0.9, 0.1])


def test_the_bytes_of_the_partial_and_of_the_final_file(tmp_path):
    writer = ResultWriter(tmp_path / "out.json", {"fps": 25})
    writer.add("b", SEGMENTS, SCORES, np.array(["run", "jump"], dtype=object))
    writer.add("a", SEGMENTS[:1], SCORES[:1])
    checksums, lines = zip(*(line.split(" ", 1) for line in writer.partial.read_text().splitlines(True)), strict=True)
    assert [int(checksum, 16) for checksum in checksums] == [zlib.crc32(line.encode()[:-1]) for line in lines]
    assert "".join(lines) == (
        '{"settings": {"fps": 25}}\n'
        '{"video": "b", "proposals": [{"score": 0.9, "segment": [1.0, 2.5], "label": "run"}, '
        '{"score": 0.1, "segment": [0.125, 0.3], "label": "jump"}]}\n'
        '{"video": "a", "proposals": [{"score": 0.9, "segment": [1.0, 2.5]}]}\n'
    )
    assert writer.finish("VERSION 1.3", "how") == 3
    assert (tmp_path / "out.json").read_text() == (
        '{"version": "VERSION 1.3", "results": {\n'
        '"a": [{"score": 0.9, "segment": [1.0, 2.5]}],\n'
        '"b": [{"score": 0.9, "segment": [1.0, 2.5], "label": "run"}, '
        '{"score": 0.1, "segment": [0.125, 0.3], "label": "jump"}]\n'
        '}, "external_data": {"used": true, "details": "how", "settings": {"fps": 25}}}\n'
    )


def test_a_full_disk_is_one_error_that_names_the_output(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"out\.json\.partial cannot be written: File too large"):
            ResultWriter(tmp_path / "out.json", {"x": "y" * 2000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_column_of_another_length_is_refused(tmp_path):
    writer = ResultWriter(tmp_path / "out.json", {})
    with pytest.raises(ValueError, match="scores has length 1, expected 2 as segments"):
        writer.add("a", SEGMENTS, SCORES[:1])
    with pytest.raises(ValueError, match="labels has length 3, expected 2 as segments"):
        writer.add("a", SEGMENTS, SCORES, ["run", "jump", "sit"])
    assert not writer.done
    writer.close()


def test_what_is_written_is_read_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    segments, scores = np.sort(rng.uniform(0, 100, (50, 2)), axis=1), rng.random(50)
    writer = ResultWriter(tmp_path / "out.json", {})
    writer.add("a", segments, scores)
    writer.finish("VERSION 1.3", "")
    found = read_results(tmp_path / "out.json")
    assert np.array_equal(found.segments, segments) and np.array_equal(found.scores, scores)


@pytest.mark.parametrize("rule", ["product", "sqrt"])
def test_the_detections_of_one_video_are_those_of_many_best_first(rule):
    rng = np.random.default_rng(0)
    segments, scores = np.sort(rng.uniform(0, 100, (40, 2)), axis=1), rng.random(40).round(1)  # many equal scores
    classes = ClassScores(("a", "b"), ("x", "y", "z"), rng.random((2, 3)))
    videos = {name: np.column_stack([segments, scores]) for name in "ab"}
    listed = fuse(Results.from_dict(videos), classes, rule, top_k=2).to_dict()["b"]
    expected = sorted(listed, key=lambda entry: -entry["score"])  # equal scores keep their order
    columns = fuse_video("b", segments, scores, classes, rule, top_k=2)
    found = [dict(zip(("segment", "score", "label"), row, strict=True)) for row in zip(*columns, strict=True)]
    assert [{**entry, "segment": entry["segment"].tolist()} for entry in found] == expected


def test_a_video_without_proposals_has_no_detections(tmp_path):
    classes = ClassScores(("a",), ("x",), np.ones((1, 1)))
    columns = fuse_video("a", np.empty((0, 2)), np.empty(0), classes, "product", top_k=1)
    writer = ResultWriter(tmp_path / "out.json", {})
    writer.add("a", *columns)
    writer.finish("VERSION 1.3", "")
    assert json.loads((tmp_path / "out.json").read_text())["results"] == {"a": []}


def test_damage_of_the_partial_file_is_never_taken_over(tmp_path):
    """Whatever happens to a byte, a line or the end: resuming reads only what was written, and the rest is counted."""
    settings, videos = {"fps": 25}, [f"video_{number}" for number in range(5)]
    writer = ResultWriter(tmp_path / "out.json", settings)
    for number, video in enumerate(videos):
        writer.add(video, SEGMENTS + number, SCORES / (number + 1))
    writer.close()
    whole = writer.partial.read_bytes()
    expected = dict.fromkeys(whole.splitlines(True)[1:])
    draw = random.Random(0)
    counted = 0
    for _ in range(300):
        place, other = sorted(draw.sample(range(len(whole)), 2))
        damaged = draw.choice(
            [
                whole[:place] + bytes([draw.randrange(256)]) + whole[place + 1 :],
                whole[:place] + whole[place + 1 :],
                whole[:place] + draw.choice([b"\n", b"1", b"}"]) + whole[place:],
                whole[:place] + whole[other:],
                whole[:other] + whole[place:],
                whole[:place],
            ]
        )
        writer.partial.write_bytes(damaged)
        try:
            writer = ResultWriter(tmp_path / "out.json", settings, resume=True)
        except InputError as error:
            assert "its first line is damaged" in str(error)
            continue
        counted += bool(writer.damaged)
        content = writer.partial.read_bytes()
        for place in writer.done.values():
            assert content[place:].splitlines(True)[0] in expected
        assert len(writer.done) + 2 * writer.damaged >= 5 or len(damaged) < len(whole) or damaged == whole
        writer.close()
    assert counted > 30


def test_a_record_of_other_types_is_done_again(tmp_path):
    for value in (3, [3], [{"score": "1", "segment": [0, 1]}], [{"score": 1, "segment": [0]}], [{"score": 1}]):
        writer = ResultWriter(tmp_path / "out.json", {}, overwrite=True)
        writer.add("a", SEGMENTS, SCORES)
        writer._append({"video": "b", "proposals": value})
        writer.close()
        writer = ResultWriter(tmp_path / "out.json", {}, resume=True)
        assert list(writer.done) == ["a"] and writer.damaged == 1
        writer.close()


def test_a_line_without_end_of_nesting_is_a_damaged_one(tmp_path):
    writer = ResultWriter(tmp_path / "out.json", {"fps": 25})
    writer.add("a", SEGMENTS, SCORES)
    writer.close()
    deep = b"[" * 100_000
    with open(writer.partial, "ab") as file:
        file.write(b"%08x %s\n" % (zlib.crc32(deep), deep))
    again = ResultWriter(tmp_path / "out.json", {"fps": 25}, resume=True)
    assert list(again.done) == ["a"] and again.damaged == 1
    again.close()


@pytest.mark.parametrize("settings", [[[1, 2], ["a", 3]], None, "x"])
def test_a_result_with_odd_settings_is_not_resumed(tmp_path, settings):
    content = {"results": {}, "external_data": {"settings": settings}}
    (tmp_path / "out.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"out.json does not say with which settings it was made"):
        ResultWriter(tmp_path / "out.json", {"fps": 25}, resume=True)


def test_what_others_have_added_to_a_result_is_left_out_of_the_resumed_one(tmp_path):
    writer = ResultWriter(tmp_path / "out.json", {"fps": 25})
    writer.add("a", SEGMENTS, SCORES)
    writer.finish("VERSION 1.3", "how")
    before = (tmp_path / "out.json").read_text()
    (tmp_path / "out.json").write_text(before.replace('"score": 0.9,', '"score": 0.9, "extra": Infinity,'))
    again = ResultWriter(tmp_path / "out.json", {"fps": 25}, resume=True)
    again.finish("VERSION 1.3", "how")
    assert (tmp_path / "out.json").read_text() == before
