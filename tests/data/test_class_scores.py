"""Class scores: every layout reads the same, and an unusable file is one clear line."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bcnet_fast.data.class_scores import ClassScores, read_class_scores, score_files
from bcnet_fast.errors import InputError


def test_class_scores_in_every_layout(tmp_path: Path) -> None:
    scores = np.array([[0.7, 0.3], [0.25, 0.75]])
    names = {"videos": ["v", "w"], "labels": ["a", "b"]}
    np.savez(tmp_path / "scores.npz", scores=scores, videos=np.array(names["videos"]), labels=np.array(names["labels"]))
    np.save(tmp_path / "scores.npy", scores)
    rows = dict(zip("vw", scores.tolist(), strict=True))
    pairs = {
        name: [{"label": label, "score": x} for label, x in zip("ab", row, strict=True)] for name, row in rows.items()
    }
    texts = {
        "scores.json": names,
        "cuhk.json": {"results": rows, "class": ["a", "b"]},
        "pairs.json": {"results": pairs},
        "plain.json": {name: dict(zip("ab", row, strict=True)) for name, row in rows.items()},
    }
    for name, content in texts.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "table.csv").write_text("video,label,score\nv,a,0.7\nv,b,0.3\nw,a,0.25\nw,b,0.75\n")
    for name in ("scores.npz", "scores.npy", "cuhk.json", "pairs.json", "plain.json", "table.csv"):
        read = read_class_scores(tmp_path / name)
        assert (read.videos, read.labels) == (("v", "w"), ("a", "b")), name
        np.testing.assert_array_equal(read.scores, scores)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", b"\x93NUMPY\x01", r"x\.npy cannot be read"),
        (
            "x.json",
            b'{"results": {"v": [1.0]}, "class": ["a", "b"]}',
            "video 'v' has another number of scores than the 2 classes",
        ),
        ("x.json", b'{"v": {"a": NaN}}', "score nan, expected a finite number"),
        ("x.json", b'{"v": 3}', "expected labels with scores"),
        ("x.csv", b"video,label,score\nv,a,1\nv,a,2\n", "has more than one score of 'a'"),
        ("x.csv", b"video,score\n", "has the columns 'video, score'"),
        ("x.csv", b"video,label,score\n", "has no score"),
        ("x.csv", b'video,label,score\nv,"a,1\n', "malformed CSV at line 2"),
        ("x.csv", b"video,label,score\nv," + b"a" * 140_000 + b",1\n", "malformed CSV at line 2 .*field limit"),
        ("x.csv", b"video,label,score\nv,a\n", "line 2: more or fewer cells than the 3 columns"),
        (
            "x.json",
            b'{"results": {"v": [1, 2]}, "class": [["a"], ["b"]]}',
            r"a class has the name \['a'\], expected text",
        ),
        ("x.json", b'{"results": {"v": [{"label": 3, "score": 1}]}}', "a class has the name 3, expected text"),
        ("x.json", b'{"v": {}}', "has no score"),
        ("x.json", b'{"results": {"v": []}, "class": []}', "has no score"),
        ("x.json", b'{"v": {"a": 1%s}}' % (b"0" * 400), "video 'v' has the score 10+, expected a finite number"),
        ("x.json", b'{"results": {"v": [1%s]}, "class": ["a"]}' % (b"0" * 400), "a score is not a finite number"),
        (
            "x.json",
            b'{"v": {"a": 0.5}, "w": {"b": -1.5}}',
            "video 'w' has the score -1.5, expected at least 0",
        ),
    ],
)
def test_unusable_class_scores_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_class_scores(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_an_archive_is_closed_and_its_names_are_text(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    path = tmp_path / "scores.npz"
    np.savez(path, scores=np.ones((1, 2)), videos=np.array(["v"]), labels=np.array(["a", "b"]))
    read_class_scores(path)
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)
    np.savez(path, scores=np.ones((1, 2)), videos=np.array(["v"]), labels=np.arange(2))
    with pytest.raises(InputError, match=r"scores\.npz: a class has the name 0, expected text"):
        read_class_scores(path)


def test_videos_are_found_by_name() -> None:
    scores = ClassScores(("v", "w"), ("a",), np.ones((2, 1)))
    assert "w" in scores and "a" not in scores and scores.row_of["w"] == 1
    assert scores.row_of is scores.row_of  # made once


def test_an_array_beside_other_class_scores_is_named(tmp_path):
    np.save(tmp_path / "scores.npy", np.ones((1, 2)))
    (tmp_path / "scores.json").write_text(json.dumps({"v": {"a": 1.0}}))
    with pytest.raises(InputError, match=r"scores\.json: unknown layout, expected .* for scores\.npy"):
        read_class_scores(tmp_path / "scores.npy")


def test_small_files_that_stand_for_large_tables_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"v{number},l{number},1\n" for number in range(12_000))
    (tmp_path / "x.csv").write_text(f"video,label,score\n{rows}")
    with pytest.raises(InputError, match=r"x.csv has 1.07 GiB of scores, expected at most 1 GiB"):
        read_class_scores(tmp_path / "x.csv")
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += "{'descr': '<U0', 'fortran_order': False, 'shape': (250000000,), }".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for name in ("scores", "videos", "labels"):
            file.writestr(f"{name}.npy", header)
    with pytest.raises(InputError, match=r"x.npz has 44.7 GiB of scores, expected at most 1 GiB"):
        read_class_scores(tmp_path / "x.npz")


def test_other_arrays_than_scores_and_names_are_not_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for number in range(6000):
            file.writestr(f"n{number}.npy", b"no array")
    with pytest.raises(InputError, match=r"has the arrays n0, n1, n2, ..., expected scores, videos and labels"):
        read_class_scores(tmp_path / "x.npz")


def test_huge_scores_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"v": {"a": 1e31}}')
    with pytest.raises(InputError, match=r"has the score 1e\+31, expected at most 1e\+30"):
        read_class_scores(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("name", "content", "files"),
    [
        ("s.npy", np.ones((1, 1)), ["s.npy", "s.json"]),
        ("s.scores", np.ones((1, 1)), ["s.scores", "s.json"]),
        ("s.npy", np.ones((1574, 101)), ["s.npy"]),
        ("s.npy", {"v": {"run": 1}}, ["s.npy"]),
        ("s.npy", None, ["s.npy"]),
    ],
    ids=["array", "array of another name", "array with known names", "JSON", "missing"],
)
def test_names_beside_scores_are_an_input_where_they_are_read(tmp_path, name, content, files):
    path = tmp_path / name
    if isinstance(content, dict):
        path.write_text(json.dumps(content))
    elif content is not None:
        with open(path, "wb") as file:
            np.save(file, content)
    assert score_files(path) == [tmp_path / file for file in files]
    assert score_files("s3://bucket/s.npy") == ["s3://bucket/s.npy"] and score_files(None) == []
