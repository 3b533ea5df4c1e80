"""`view`, and `infer --page`: the page that they write, and one line on unusable or missing input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.view import data_of
from support.seeded_results import write_results

from bcnet_fast import infer, view
from bcnet_fast.errors import InputError


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results.json", 3, 10)


def run(*arguments: object) -> None:
    assert view.main([str(argument) for argument in arguments]) == 0


def test_the_page_lies_beside_the_results_and_has_their_name(results: Path, capsys) -> None:
    run(results)
    assert data_of(results.with_suffix(".html"))["title"] == "results.json"
    assert "results.html: 3 videos, 30 proposals, 0." in capsys.readouterr().out


def test_a_subset_shows_its_videos_with_and_without_proposals(results: Path) -> None:
    truth = results.parent / "truth.json"
    content = json.loads(truth.read_text())
    content["database"]["video_001"]["subset"] = "training"
    content["database"]["silent"] = content["database"]["video_002"]
    truth.write_text(json.dumps(content))
    run(results, "--ground-truth", truth, "--subset", "test")
    data = data_of(results.with_suffix(".html"))
    assert [(video["id"], video["count"]) for video in data["videos"]] == [
        ("video_000", 10),
        ("video_002", 10),
        ("silent", 0),
    ]
    run(results, "--ground-truth", truth)
    assert [video["count"] for video in data_of(results.with_suffix(".html"))["videos"]] == [10, 10, 10]


def test_ids_match_with_and_without_the_activitynet_prefix(results: Path) -> None:
    truth = results.parent / "truth.json"
    content = json.loads(truth.read_text())
    truth.write_text(json.dumps({"database": {f"v_{key}": value for key, value in content["database"].items()}}))
    (results.parent / "clips").mkdir()
    (results.parent / "clips" / "v_video_000.mp4").write_bytes(b"x")
    run(results, "--ground-truth", truth, "--videos", results.parent / "clips")
    first = data_of(results.with_suffix(".html"))["videos"][0]
    assert first["annotated"] and first["source"]["link"] == "./clips/v_video_000.mp4"


def test_class_scores_give_proposals_labels(results: Path, capsys) -> None:
    scores = results.parent / "scores.json"
    scores.write_text(json.dumps({"video_000": {"run": 0.5, "jump": 0.25}, "video_002": {"run": 0.1, "jump": 0.2}}))
    run(results, "--labels", scores, "--top-k", 2)
    data = data_of(results.with_suffix(".html"))
    assert [video["count"] for video in data["videos"]] == [20, 0, 20]
    assert {data["labels"][code] for code in data["label"]} == {"run", "jump"}
    assert f"note: {scores}: no class scores for 1 video, shown without proposals" in capsys.readouterr().err


def test_missing_videos_are_notes_and_the_page_knows(results: Path, capsys) -> None:
    clips = results.parent / "clips"
    (clips / "inner").mkdir(parents=True)
    (clips / "inner" / "video_000.avi").write_bytes(b"x")
    (clips / "video_001.webm").write_bytes(b"x")
    (clips / "video_001.mp4").write_bytes(b"x")
    (clips / "video_002.mp4").touch()
    run(results, "--videos", clips)
    notes = capsys.readouterr().err.splitlines()
    assert notes == [
        f"note: {clips}: 1 video with an empty file: video_002",
        f"note: {clips}: 1 video with several files, of which the first that browsers play is taken: video_001",
        f"note: {clips}: 1 file of a format that browsers do not play, convert to .mp4 or .webm: video_000.avi",
    ]
    data = data_of(results.with_suffix(".html"))
    assert data["files"]
    assert [source and source["name"] for source in (video["source"] for video in data["videos"])] == [
        "video_000.avi",
        "video_001.mp4",
        None,
    ]
    (clips / "video_002.mp4").unlink()
    run(results, "--videos", clips)
    assert f"note: {clips}: 1 video without a file: video_002" in capsys.readouterr().err


def test_ids_lead_to_no_file_outside_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"x")
    (tmp_path / "secret.mp4").write_bytes(b"x")
    entries = [{"segment": [0, 1], "score": 1.0}]
    names = {"a": entries, "../secret": entries, str(tmp_path / "secret"): entries}
    (tmp_path / "results.json").write_text(json.dumps({"results": names}))
    run(tmp_path / "results.json", "--videos", tmp_path / "clips", "--embed")
    assert [video["source"] and video["source"]["name"] for video in data_of(tmp_path / "results.html")["videos"]] == [
        "a.mp4",
        None,
        None,
    ]


def test_exports_have_the_best_proposals_of_a_subset(results: Path, capsys) -> None:
    truth = results.parent / "truth.json"
    content = json.loads(truth.read_text())
    content["database"]["video_001"]["subset"] = "training"
    truth.write_text(json.dumps(content))
    flags = ["--ground-truth", truth, "--subset", "test", "--best", 4]
    run(results, *flags, "--export", "csv", "--output", results.parent / "out.csv")
    rows = (results.parent / "out.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == ["video_000"] * 4 + ["video_002"] * 4
    run(results, *flags, "--export", "webvtt", "--output", results.parent / "chapters")
    assert {path.name for path in (results.parent / "chapters").iterdir()} == {"video_000.vtt", "video_002.vtt"}
    assert "chapters: 2 files, 2 videos, 8 proposals, " in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["gone.json"], r"gone\.json does not exist, expected proposals: JSON"),
        (["truth.json"], r"looks like an annotation file, which --ground-truth takes"),
        (["empty.json"], r"empty\.json has no video, expected proposals"),
        (
            ["results.json", "--output", "page.json"],
            r"page\.json has suffix '\.json', expected \.html or \.htm",
        ),
        (["results.json", "--embed"], r"--embed puts the files of --videos into the page, expected --videos DIR"),
        (["results.json", "--subset", "test"], r"--subset requires .*expected --ground-truth FILE"),
        (["results.json", "--videos", "none"], r"none does not exist, expected a folder of videos"),
        (
            ["results.json", "--videos", "empty"],
            r"empty has no video file of video_000, video_001, video_002, ",
        ),
        (["results.json", "--boundaries", "none"], r"none is not a folder, expected one that infer --boundaries"),
        (
            ["results.json", "--ground-truth", "other.json"],
            r"other\.json has 1 video, expected some of the 3 in ",
        ),
        (["results.json", "--labels", "scores.json"], r"scores\.json has 1 video, expected some of the 3 in results"),
        (["results.json", "--export", "csv"], r"--export csv requires --output, the file or folder to write"),
        (
            ["results.json", "--export", "csv", "--output", "results.json"],
            r"--output results\.json is the file of --results",
        ),
        (["results.json", "--export", "csv", "--output", "o", "--embed"], r"--embed is for pages, expected none with "),
        (["results.json", "--best", "3"], r"--best is for exports, expected --export FORMAT with it"),
        (["results.json", "--top-k", "0"], r"--top-k is 0, expected at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_writes_no_page(
    results: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(results.parent)
    Path("empty").mkdir()
    Path("empty.json").write_text('{"results": {}}')
    Path("other.json").write_text('{"database": {"elsewhere": {"duration": 3, "annotations": []}}}')
    Path("scores.json").write_text('{"elsewhere": {"run": 0.5}}')
    with pytest.raises(InputError, match=message) as caught:
        view.main(flags)
    assert "\n" not in str(caught.value)
    assert not list(results.parent.glob("*.html"))


def test_infer_makes_the_page_with_curves_and_keeps_them(
    checkpoint: Path, features: Path, tmp_path: Path, capsys
) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"database": {"a": {"annotations": [{"segment": [0, 2], "label": "run"}]}}}))
    flags = ["--checkpoint", checkpoint, "--features", features, "--output", tmp_path / "out.json", "--fps", 25]
    flags += ["--device", "cpu", "--page", tmp_path / "page.html", "--ground-truth", truth]
    assert infer.main([str(flag) for flag in flags]) == 0
    first = data_of(tmp_path / "page.html")
    assert "page.html: 4 videos, " in capsys.readouterr().out
    assert all(video["boundaries"] for video in first["videos"]) and first["videos"][0]["instances"] == 1
    assert all(video["duration"] > 0 for video in first["videos"])

    # From a folder, the curves are there for `view` and for a resumed run.
    kept = ["--boundaries", tmp_path / "curves"]
    assert infer.main([str(flag) for flag in [*flags, "--overwrite", *kept]]) == 0
    assert {path.stem for path in (tmp_path / "curves").iterdir()} == set("abcd")
    (tmp_path / "page.html").unlink()
    assert infer.main([str(flag) for flag in [*flags, "--resume", *kept]]) == 0
    run(tmp_path / "out.json", *kept)
    for page in (tmp_path / "page.html", tmp_path / "out.html"):
        for found, expected in zip(data_of(page)["videos"], first["videos"], strict=True):
            assert found["boundaries"] == expected["boundaries"]
            assert np.isclose(found["duration"], expected["duration"])


def test_infer_refuses_the_name_of_a_page_before_it_runs(checkpoint: Path, features: Path, tmp_path: Path) -> None:
    flags = ["--checkpoint", checkpoint, "--features", features, "--output", tmp_path / "out.json", "--fps", 25]
    with pytest.raises(InputError, match=r"--page .*page\.png has suffix '\.png', expected \.html or \.htm"):
        infer.main([str(flag) for flag in [*flags, "--page", tmp_path / "page.png"]])
    assert not (tmp_path / "out.json").exists()


def test_results_without_a_video_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text('{"video": [], "start": [], "end": [], "score": []}')
    for more in ((), ("--export", "csv")):
        with pytest.raises(InputError, match=r"none.json has no video, expected proposals to show"):
            view.main([str(tmp_path / "none.json"), "--output", str(tmp_path / "page.html"), *more])


def test_scores_that_cannot_be_fused_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"a": [[0, 1, -1]]}')
    (tmp_path / "scores.json").write_text('{"a": {"x": 0.5}}')
    flags = ["--labels", str(tmp_path / "scores.json"), "--fusion", "sqrt", "--output", str(tmp_path / "page.html")]
    with pytest.raises(InputError, match=r"bad.json: scores has a negative value"):
        view.main([str(tmp_path / "bad.json"), *flags])
