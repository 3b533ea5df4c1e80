"""Proposal lists of second-stage networks as text."""

from __future__ import annotations

import gzip
import json

import pytest
from helpers.second_stage import STAGE2, listed

from bcnet_fast.data.proposal_list import read_proposal_list
from bcnet_fast.errors import InputError

BLOCK = "# 0\na/b/v1\n100\n1\n1\n2 10 20\n2\n2 0.5 0.5 10 30\n0 0 0 40 50\n"


def as_lists(video) -> dict:
    rows = video.labels, video.best_iou, video.overlap_self, *video.proposals.T, video.coverage
    return {
        "id": video.name,
        "num_frames": video.frames,
        "gt": [[label, *segment] for label, segment in zip(video.instance_labels, video.instances, strict=True)],
        "proposals": [list(row) for row in zip(*rows, strict=True)],
    }


def written(tmp_path, text: str):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(("system", "classes"), [("pgcn", None), ("muses", 20)])
def test_quirks_are_read_as_in_the_public_code(system, classes):
    known = json.loads((STAGE2 / f"parse_{system}.json").read_text())[f"quirks_{system}"]
    assert [as_lists(video) for video in read_proposal_list(STAGE2 / "quirks.txt", classes=classes)] == known


def test_a_whole_list_has_the_public_code_s_counts():
    known = json.loads((STAGE2 / "parse_pgcn.json").read_text())["counts_test"]
    assert [[v.name, v.frames, len(v.instances), len(v.proposals)] for v in listed("thumos_test")] == known


def test_line_ends_blank_lines_and_compression_change_nothing(tmp_path):
    expected = as_lists(read_proposal_list(written(tmp_path, BLOCK))[0])
    blanks = BLOCK.replace("\n", "\r\n").replace("1\r\n2 10", "1\r\n \r\n2 10") + "\r\n"
    assert as_lists(read_proposal_list(written(tmp_path, blanks))[0]) == expected
    (tmp_path / "list.txt").write_bytes(gzip.compress(BLOCK.encode()))
    assert as_lists(read_proposal_list(tmp_path / "list.txt")[0]) == expected


def test_whole_frames_may_be_written_with_a_point(tmp_path):
    video = read_proposal_list(written(tmp_path, BLOCK.replace("10 30", "10.0 3e1")))[0]
    assert video.proposals.tolist() == [[10, 30], [40, 50]]


def test_a_video_may_have_nothing(tmp_path):
    video = read_proposal_list(written(tmp_path, "#\nv\n0\n25\n0\n0\n"))[0]
    assert video.frames == 0
    assert video.proposals.shape == video.instances.shape == (0, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.txt has no video, expected a proposal list"),
        ("# 0\n#1\n", "list.txt has no video"),
        ("#\nv\n10\n", "line 3 ends a video, expected another line with rate"),
        ("#\nv\nten\n1\n0\n0\n", "line 3 is 'ten', expected duration as a number"),
        ("#\nv\n10\n-1\n0\n0\n", "line 4 is '-10', expected a number of frames, .* of at least 0"),
        ("#\nv\n-10\n-1\n0\n0\n", "line 4 is .*, expected a number of frames, .* of at least 0"),
        ("#\nv\n1e200\n1\n0\n0\n", "line 3 is '1e200', expected duration as a number"),
        ("#\nv\n10\n1\n1.5\n", "line 5 is '1.5', expected the number of instances"),
        (BLOCK.replace("2 10 20", "2 10"), "line 6 is '2 10', expected label start end as numbers"),
        (
            BLOCK.replace("10 30", "10.5 30"),
            "line 8 is '2 0.5 0.5 10.5 .*, expected label best_iou .*without a fraction",
        ),
        (BLOCK.replace("10 30", "10 1e300"), "line 8 is .*, expected label best_iou"),
        (BLOCK.replace("10 30", "10 nan"), "line 8 is .*, expected label best_iou"),
        (BLOCK.replace("\n2\n", "\n3\n"), "line 9 ends a video, expected another line with label best_iou"),
        (BLOCK + BLOCK, "line 11: video v1 occurs twice, expected it once"),
    ],
)
def test_what_is_no_list_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_proposal_list(written(tmp_path, text))
